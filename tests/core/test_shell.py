"""What people are told to type works in the shell that they are in."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedquilt.core import shell


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment in .venv of the current folder that is not on the PATH."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "fedquilt"):
        (folder / name).write_text("#!/bin/sh\necho called $0 $@\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_program_off_the_path_is_named_by_its_file_and_runs(environment):
    line = shell.command("report", "runs/my run")
    assert line == ".venv/bin/fedquilt report 'runs/my run'"
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert said.stdout == "called .venv/bin/fedquilt report runs/my run\n"


def test_a_program_on_the_path_is_named_as_it_is(environment, monkeypatch):
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    assert shell.command("check", "a.toml") == "fedquilt check a.toml"
    assert shell.pip_install("flwr").startswith("python -m pip install")


def test_a_link_on_the_path_to_this_program_counts_and_another_program_does_not(environment, monkeypatch, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PATH", f"{links}:/usr/bin:/bin")
    (links / "fedquilt").write_text("#!/bin/sh\n")
    (links / "fedquilt").chmod(0o755)
    assert shell.command() == ".venv/bin/fedquilt"
    (links / "fedquilt").unlink()
    (links / "fedquilt").symlink_to(environment / "fedquilt")
    assert shell.command() == "fedquilt"


def test_without_the_program_the_interpreter_runs_the_package_from_wherever_it_is(environment, monkeypatch, tmp_path):
    (environment / "fedquilt").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shell.command("doctor") == f"{environment}/python -m fedquilt doctor"


def test_an_extra_is_installed_from_the_sources_that_run(environment, monkeypatch):
    root = Path(shell.__file__).parents[3]
    monkeypatch.setattr(shell, "find_spec", lambda name: True)
    assert shell.install_extra("flower") == f".venv/bin/python -m pip install -e {shlex.quote(f'{root}[flower]')}"
    monkeypatch.chdir(root)
    assert shell.install_extra("flower") == f"{environment}/python -m pip install -e '.[flower]'"


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, "fedquilt[flower]"),
        ({"url": "file:///tmp/fedquilt.whl", "archive_info": {}}, "fedquilt[flower] @ file:///tmp/fedquilt.whl"),
        (
            {"url": "https://git.example/fedquilt", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "fedquilt[flower] @ git+https://git.example/fedquilt@abc",
        ),
    ],
)
def test_an_extra_of_an_installed_package_comes_from_where_it_came(environment, monkeypatch, tmp_path, origin, wanted):
    class Distribution:
        def read_text(self, name):
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(shell, "__file__", str(tmp_path / "lib" / "site-packages" / "fedquilt" / "core" / "shell.py"))
    monkeypatch.setattr(shell, "distribution", lambda name: Distribution())
    monkeypatch.setattr(shell, "find_spec", lambda name: True)
    assert shell.install_extra("flower") == f".venv/bin/python -m pip install '{wanted}'"


def test_an_environment_without_pip_is_told_of_uv(environment, monkeypatch):
    monkeypatch.setattr(shell, "find_spec", lambda name: None)
    which = shell.shutil.which
    monkeypatch.setattr(shell.shutil, "which", lambda name, **more: "/bin/uv" if name == "uv" else which(name, **more))
    assert shell.pip_install("flwr") == "uv pip install --python .venv/bin/python flwr"


def printed(source: str) -> list[str]:
    """The texts of a module that are no docstrings."""
    tree = ast.parse(source)
    kept = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in kept)
    return [node.value for node in texts if isinstance(node.value, str)]


WRITTEN = {
    "adapters/model_card.py",
    "config/reference_page.py",
    "experiment/draft.py",
    "experiment/flower_app.py",
    "report/model_card.py",
}
"""Modules that write such lines into files, which are read elsewhere."""


def test_lines_to_type_are_made_by_one_function():
    """A name that the shell may not know, or an index that has no fedquilt, is no next step."""
    root = Path(shell.__file__).parents[1]
    modules = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.py"))}
    assert len(modules) > 300
    typed = re.compile(r"pip install|fedquilt (run|report|check|plan|compare|export|demo|doctor|init|site \w)\b")
    texts = [(name, text) for name, file in modules.items() for text in printed(file.read_text("utf-8"))]
    assert [(name, text) for name, text in texts if typed.search(text) and name not in WRITTEN] == []
