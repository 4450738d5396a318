"""The changes of docs/extending.md apply to the tree as it is, touch as few files as the page says, and work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project_sources import ROOT

PAGE = ROOT / "docs" / "extending.md"
PATCHES = sorted((ROOT / "docs" / "extending").glob("*.patch"))
MOST_FILES = {"adapter-kind": 4, "data-format": 2, "layer-choosing-method": 3, "plot": 1, "task": 4}
"""How many files a change may touch, beside the test of its own."""

TREE = (
    "src",
    "tests",
    "docs",
    "experiments",
    "bench",
    "examples",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "papers.toml",
    "LICENSE",
)
ALWAYS = ("tests/arch/test_docs.py", "tests/core/test_tasks.py")
"""Tests that must hold whatever was added, besides those that changes bring along."""

NOT_AGAIN = "tests/core/test_tasks.py::test_every_peft_type_is_one_of_pefts"
"""It loads PEFT, which takes seconds, and the task that is added has no type of PEFT's."""


def git_apply(patch: Path, folder: Path, *options: str) -> str:
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # the copy is no repository
    done = subprocess.run(
        ["git", "apply", *options, str(patch)], cwd=folder, env=outside, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{patch.name} does not fit the tree any more; make it anew: {done.stderr}"
    return done.stdout


def touched(patch: Path) -> list[str]:
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(encoding="utf-8"), re.M)


def own_tests(patch: Path) -> list[str]:
    return [path for path in touched(patch) if Path(path).name.startswith("test_")]


def test_every_change_has_a_limit_and_a_place_on_the_page() -> None:
    assert [patch.stem for patch in PATCHES] == sorted(MOST_FILES)
    text = PAGE.read_text(encoding="utf-8")
    for patch in PATCHES:
        assert f"(extending/{patch.name})" in text
        assert f"| {len(touched(patch)) - len(own_tests(patch))} |" in text


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_change_touches_few_files_and_brings_its_test(patch: Path) -> None:
    assert own_tests(patch), "a change without a test"
    rest = sorted({*touched(patch)} - {*own_tests(patch)})
    assert 1 <= len(rest) <= MOST_FILES[patch.stem], rest


def test_the_changes_apply_and_their_tests_pass(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (*TREE, "pyproject.toml", "constraints.txt", "Makefile", ".ci"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)  # with what Python has compiled, for the files that stay
        else:
            shutil.copy(ROOT / name, tree / name)
    for patch in PATCHES:
        git_apply(patch, tree)
    wanted = [*ALWAYS, *(test for patch in PATCHES for test in own_tests(patch))]
    quiet = ("-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, "--deselect", NOT_AGAIN, *dict.fromkeys(wanted)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
