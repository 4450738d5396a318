"""Commands that work in the shell from which fedquilt was started: what messages tell people to type."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

NAME = "fedquilt"


def command(*words: object) -> str:
    """A line that runs fedquilt with these words, each quoted where a shell needs it.

    The program is ``fedquilt`` if the shell finds this installation by that name, else its path, as in
    ``.venv/bin/fedquilt``, or this interpreter with ``-m fedquilt`` where there is no such file.
    """
    beside = shutil.which(NAME, path=str(_folder()))
    program = [_python(), "-m", NAME] if beside is None else [_as_typed(NAME, Path(beside))]
    return shlex.join([*program, *map(str, words)])


def pip_install(*words: str) -> str:
    """A line that installs packages for this interpreter."""
    if find_spec("pip") is None and shutil.which("uv"):
        return shlex.join(["uv", "pip", "install", "--python", _python(), *words])
    return shlex.join([_python(), "-m", "pip", "install", *words])


def install_extra(extra: str) -> str:
    """A line that installs what an extra of fedquilt needs, from where this fedquilt came."""
    source = Path(__file__).parents[3]
    if (source / "pyproject.toml").is_file():  # run from its sources
        return pip_install("-e", f"{_from_here(source)}[{extra}]")
    origin = _origin()
    return pip_install(f"{NAME}[{extra}] @ {origin}" if origin else f"{NAME}[{extra}]")


def _origin() -> str | None:
    """Where an installed fedquilt came from, if not from a package index (PEP 610)."""
    try:
        said = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url, version = said.get("url"), said.get("vcs_info")
    return f"{version['vcs']}+{url}@{version['commit_id']}" if version else url


def _folder() -> Path:
    """Where this interpreter and the programs of its environment lie."""
    return Path(sys.executable).parent


def _python() -> str:
    return _as_typed("python", Path(sys.executable))


def _as_typed(name: str, file: Path) -> str:
    """The name if the shell finds this file by it, else its path."""
    found = shutil.which(name)
    same = found is not None and (Path(found).parent == file.parent or Path(found).samefile(file))
    return name if same else _from_here(file)


def _from_here(path: Path) -> str:
    """The path from the current folder if it lies below it, else the whole one."""
    here = Path(os.path.abspath(os.curdir))
    whole = Path(os.path.abspath(path))  # not resolved: the interpreter of a virtual environment is a link
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)
