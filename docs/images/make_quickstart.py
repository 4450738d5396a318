"""Run README's first block in a notebook, and keep the picture that it ends with: ``docs/images/quickstart.png``."""

from __future__ import annotations

import base64
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "quickstart.png"


def notebook() -> nbformat.NotebookNode:
    """A notebook whose only cell is README's first block, after it was run in an empty folder."""
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(made, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return made


def picture(made: nbformat.NotebookNode) -> bytes:
    """The PNG that the notebook shows last."""
    *_, shown = (output for output in made.cells[0].outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(shown.data["image/png"])


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    made = notebook()
    path.write_bytes(picture(made))
    print("".join(output.get("text", "") for output in made.cells[0].outputs))
