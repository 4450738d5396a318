"""Follow ``docs/start.md`` to its comparison, with three seeds, and keep its plot: ``docs/images/start.png``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fedquilt

PAGE = Path(__file__).resolve().parents[1] / "start.md"
PICTURE = Path(__file__).with_name("start.png")


@contextmanager
def compared() -> Iterator[fedquilt.Comparison]:
    """The page's comparison, inside a folder with its files."""
    text = PAGE.read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    (init,) = re.findall(r"^fedquilt (init .*)$", text, re.M)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for words in (["-c", code], ["-m", "fedquilt", *init.split()]):
            subprocess.run([sys.executable, *words], check=True)
        yield fedquilt.compare("patients.toml", seeds=[1, 2, 3])
        os.chdir(before)


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else PICTURE).absolute()
    with compared() as comparison:
        comparison.plot(who="clients-mean").savefig(path)
