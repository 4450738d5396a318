"""Every Python block of README and the documents runs; a sketch that does not is marked ``py``, not ``python``."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)


WITH_BLOCKS = [page for page in PAGES if blocks(page)]
FAST = ("README.md", "docs/python.md")
"""Pages whose blocks are run by default; the others are slow."""


def marked(page):
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=[] if name in FAST else pytest.mark.slow)


def done(command, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def test_readme_begins_with_python():
    first = re.search(r"^```(\w*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert first is not None
    assert first.group(1) == "python"
    assert {"README.md", "docs/python.md"} <= {str(page.relative_to(ROOT)) for page in WITH_BLOCKS}


@pytest.mark.parametrize("page", [marked(page) for page in WITH_BLOCKS])
def test_the_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch, capsys):
    """In this process, where everything is imported already; the notebook below is a process of its own.

    Two rounds show that a block runs; the notebook runs them all.
    """
    text = re.sub(r'(?<="rounds": )\d+', lambda found: str(min(2, int(found[0]))), "\n\n".join(blocks(page)))
    (tmp_path / "page.py").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_path("page.py", run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.slow
def test_readme_runs_in_a_notebook_and_shows_its_picture(tmp_path):
    printed = done([sys.executable, ROOT / "docs" / "images" / "make_quickstart.py", tmp_path / "new.png"], tmp_path)
    assert "fed-hello" in printed
    assert "straggler" in printed
    new, kept = (tmp_path / "new.png").read_bytes(), (ROOT / "docs" / "images" / "quickstart.png").read_bytes()
    for content in (new, kept):
        assert content.startswith(b"\x89PNG")
        assert len(content) < 100_000
