"""The documentation's site, as CI builds it."""

import re
import subprocess
import sys

import pytest
from doc_blocks import ROOT


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_a_network(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 100
    assert (tmp_path / "repository" / "src" / "fedquilt" / "core" / "loop.py.html") not in pages  # linked files alone
    assert (tmp_path / "repository" / "src" / "fedquilt" / "aggregate" / "mean.py.html") in pages
    loads = re.compile(r'<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)="?(?:https?:)?//')
    assert not [page for page in pages if loads.search(page.read_text("utf-8"))]
