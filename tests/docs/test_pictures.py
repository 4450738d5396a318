"""The scripts beside the pictures of the documents still make them."""

import os
import shutil
import subprocess
import sys

import pytest
from doc_blocks import ROOT

IMAGES = ROOT / "docs" / "images"
HEADS = {".png": b"\x89PNG", ".svg": b"<?xml"}


def made(script, picture):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    result = subprocess.run(
        [sys.executable, IMAGES / script, picture],
        cwd=picture.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def test_every_picture_has_a_script():
    pictures = {path.stem for path in IMAGES.iterdir() if path.suffix in HEADS}
    assert pictures == {path.stem.removeprefix("make_") for path in IMAGES.glob("make_*.py")} >= {"quickstart"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart.png", "start.png", "report.png", "heterogeneous.svg"])
def test_a_script_makes_its_picture(name, tmp_path):
    stem, _, end = name.partition(".")
    if stem == "report" and not shutil.which("chromium"):
        pytest.skip("needs Chromium")
    printed = made(f"make_{stem}.py", tmp_path / name)
    for content in ((tmp_path / name).read_bytes(), (IMAGES / name).read_bytes()):
        assert content.startswith(HEADS[f".{end}"])
        assert len(content) < 300_000
    if stem == "quickstart":  # README's first block, in a notebook
        assert "fed-hello" in printed
        assert "straggler" in printed
