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
HEAVY = {
    *("torch", "transformers", "matplotlib", "scipy.special", "scipy.stats", "sklearn", "pandas", "pyarrow"),
    *("datasets", "flwr_datasets", "flwr", "ray", "peft", "seaborn", "altair", "vl_convert"),
}
"""Modules that take a tenth of a second or more to import."""

MAY: dict[str, set[str]] = {
    "fedquilt --help": set(),
    "fedquilt methods": set(),
    "fedquilt report": set(),
    "fedquilt check, model unread": {"torch"},
    "fedquilt check": {"torch", "transformers", "scipy.special"},
    "fedquilt run": {"torch", "transformers", "scipy.special"},
    "fedquilt plot": {"torch", "transformers", "scipy.special", "matplotlib"},
    "fedquilt report --html": {"torch", "transformers", "scipy.special", "matplotlib", "altair", "vl_convert"},
}
"""The heavy modules that a process may have loaded after each command; transformers itself loads scipy."""

RUNNING = {
    "fedquilt --help": "command('--help')",
    "fedquilt methods": "command('methods')",
    "fedquilt report": "command('report', str(FOLDER))",
    "glyphs": "from fedquilt.data.synthetic.glyphs import font_folder; font_folder()",
    "loaders": "import fedquilt.data.loaders, fedquilt.data.holdout",
    "digits": "fedquilt.data.loaders.load_table('sklearn:digits')",
    "experiment": "sys.modules['flwr'] = sys.modules['ray'] = None; import fedquilt.experiment, "
    "fedquilt.experiment.flower",
    "fedquilt check, model unread": "command('check', 'run.toml', 'model.max_length=-1')",
    "fedquilt check": "command('check', 'run.toml')",
    "fedquilt run": "command('run', 'run.toml', '--folder', 'made')",
    "fedquilt plot": "command('plot', 'made')",
    "fedquilt report --html": "command('report', 'made', '--html', 'page.html')",
}
"""The steps of two processes, in this order: each brings along what those before it do, and more."""

LINES = """
import contextlib, json, os, sys
from pathlib import Path
FOLDER = Path(sys.argv[1]).absolute()

def command(*words):
    from fedquilt.cli.app import app
    from fedquilt.core.errors import ConfigError
    with contextlib.suppress(ConfigError):
        app(words, standalone_mode=False)

found = {}
with contextlib.redirect_stdout(sys.stderr):
    for name, step in json.loads(sys.argv[2]).items():
        exec(step)
        found[name] = sorted(module for module, there in sys.modules.items() if there is not None)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of the modules that are there after each step."""
    found: dict[str, set[str]] = {}
    folder = tmp_path_factory.mktemp("commands")
    text = (
        (finished.parent / "tiny.toml")
        .read_text()
        .replace("rounds = 3", "rounds = 1")
        .replace('"pathological"', '"dirichlet"')
    )
    (folder / "run.toml").write_text(text.replace("classes_per_client = 2", "alpha = 100.0"))
    for steps in (READING, RUNNING):
        line = [sys.executable, "-c", LINES, str(finished.absolute()), json.dumps(steps)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=folder)
        assert done.returncode == 0, done.stderr
        found |= {name: set(modules) for name, modules in json.loads(done.stdout).items()}
    return found


def test_importing_the_package_loads_nothing_heavy(imported: dict[str, set[str]]) -> None:
    assert not {"torch", "numpy", "pydantic"} & imported["package"]


def test_reading_runs_and_reporting_on_them_need_neither_torch_nor_a_model(imported: dict[str, set[str]]) -> None:
    assert "torch" not in imported["record"]
    assert (
        not {"torch", "transformers", "datasets", "sklearn", "matplotlib.pyplot", "altair", "vl_convert"}
        & imported["report"]
    )
    ours = {module.split(".")[1] for module in imported["report"] if module.startswith("fedquilt.")}
    assert ours == {"core", "record", "report"}


@pytest.mark.parametrize("command", MAY)
def test_a_command_loads_only_the_libraries_that_it_uses(imported: dict[str, set[str]], command: str) -> None:
    assert HEAVY & imported[command] <= MAY[command]


def test_the_commands_did_what_they_are_for(imported: dict[str, set[str]]) -> None:
    assert [step for step in RUNNING if step.startswith("fedquilt ")] == list(MAY)
    assert "fedquilt.report.comparison" in imported["fedquilt report"]
    assert "fedquilt.experiment.check" in imported["fedquilt check, model unread"]
    assert "transformers" in imported["fedquilt check"]
    assert "fedquilt.engine.local" in imported["fedquilt run"]
    assert "matplotlib" in imported["fedquilt plot"]
    assert {"altair", "vl_convert"} <= imported["fedquilt report --html"]


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
