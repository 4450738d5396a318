"""Follow ``docs/start.md`` to its comparison, with three seeds, and keep its plot: ``docs/images/start.png``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "start.md"
PICTURE = Path(__file__).with_name("start.png")


def main(path: Path) -> None:
    text = PAGE.read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    (init,) = re.findall(r"^fedquilt (init .*)$", text, re.M)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for words in (["-c", code], ["-m", "fedquilt", *init.split()]):
            subprocess.run([sys.executable, *words], check=True)
        import fedquilt

        fedquilt.compare("patients.toml", seeds=[1, 2, 3]).plot(who="clients-mean").savefig(path)
        os.chdir("/")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else PICTURE).absolute())
