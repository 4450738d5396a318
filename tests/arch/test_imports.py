"""What is imported by whom: every step of a fresh process, and the modules that are there after it.

A command that answers at once, a plot on a machine without torch, a client without Flower: all of it hangs on what an
import brings along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

READING = {
    "package": "import fedquilt; dir(fedquilt)",
    "record": "import fedquilt.record; fedquilt.record.read_rounds(FOLDER)",
    "report": "import fedquilt.report, fedquilt.report.runs, fedquilt.report.table, fedquilt.report.plot, "
    "fedquilt.report.page",
}
RUNNING = {
    "command": "from fedquilt.cli import app",
    "glyphs": "from fedquilt.data.synthetic.glyphs import font_folder; font_folder()",
    "loaders": "import fedquilt.data.loaders, fedquilt.data.holdout",
    "digits": "fedquilt.data.loaders.load_table('sklearn:digits')",
    "experiment": "sys.modules['flwr'] = sys.modules['ray'] = None; import fedquilt.experiment, fedquilt.cli.app, "
    "fedquilt.experiment.flower",
}
"""The steps of two processes, in this order: each brings along what those before it do, and more."""

LINES = """
import json, sys
from pathlib import Path
FOLDER = Path(sys.argv[1])
found = {}
for name, step in json.loads(sys.argv[2]).items():
    exec(step)
    found[name] = sorted(module for module, there in sys.modules.items() if there is not None)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported(finished: Path) -> dict[str, set[str]]:
    """The names of the modules that are there after each step."""
    found: dict[str, set[str]] = {}
    for steps in (READING, RUNNING):
        line = [sys.executable, "-c", LINES, str(finished), json.dumps(steps)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found |= {name: set(modules) for name, modules in json.loads(done.stdout).items()}
    return found


def test_importing_the_package_loads_nothing_heavy(imported: dict[str, set[str]]) -> None:
    assert not {"torch", "numpy", "pydantic"} & imported["package"]


def test_reading_runs_and_reporting_on_them_need_neither_torch_nor_a_model(imported: dict[str, set[str]]) -> None:
    assert "torch" not in imported["record"]
    assert not {"torch", "transformers", "datasets", "sklearn", "matplotlib.pyplot"} & imported["report"]
    ours = {module.split(".")[1] for module in imported["report"] if module.startswith("fedquilt.")}
    assert ours == {"core", "record", "report"}


def test_help_and_a_mistake_import_nothing_heavy(imported: dict[str, set[str]]) -> None:
    """The answer to a question about the command comes at once."""
    assert not {"torch", "transformers", "matplotlib", "scipy.stats", "sklearn"} & imported["command"]


def test_drawing_letters_does_not_import_matplotlib(imported: dict[str, set[str]]) -> None:
    assert "matplotlib" not in imported["glyphs"]


def test_reading_data_does_not_import_the_hugging_face_library(imported: dict[str, set[str]]) -> None:
    assert not {"datasets", "flwr_datasets"} & imported["loaders"]


def test_fedquilt_does_not_need_flower(imported: dict[str, set[str]]) -> None:
    assert not [module for module in imported["experiment"] if module.startswith("flwr")]
    assert "fedquilt.experiment.flower" in imported["experiment"]


def test_reading_digits_does_not_import_scikit_learn(imported: dict[str, set[str]]) -> None:
    """It takes a process more than a second, and nothing that it does is needed."""
    assert "sklearn" not in imported["digits"]
