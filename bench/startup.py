"""Processor time of commands that do little: what a user waits for before anything happens.

Every command runs in a fresh process. The commands take turns, and each is reported beyond an empty Python and as a
ratio to a process that only imports torch, of the same turn. Targets are on the median of the seconds beyond an empty
Python. Exits with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

EMPTY, TORCH = "empty Python", "import torch"
MODEL = "transformers' ViT class"
CODE = {
    EMPTY: "pass",
    TORCH: "import torch",
    MODEL: "import torch; from transformers import ViTForImageClassification",
    "import fedquilt": "import fedquilt",
}
COMMANDS = {
    "fedquilt --help": ("--help",),
    "fedquilt methods": ("methods",),
    "fedquilt report RUN": ("report", "run"),
    "fedquilt check, model unread": ("check", "run.toml", "model.max_length=-1"),
    "fedquilt check": ("check", "run.toml"),
    "fedquilt run, one round": ("run", "run.toml", "-q", "--folder"),
}
TARGETS = {
    "import fedquilt": 0.1,
    "fedquilt --help": 0.6,
    "fedquilt methods": 0.6,
    "fedquilt report RUN": 0.6,
    "fedquilt check, model unread": 3.0,
}
RUN_FILE = """\
seed = 1
threads = 1
rounds = 1

[model]
name = "glyph-vit"
task = "image-classification"

[data]
source = "sklearn:digits"

[partition]
scheme = "dirichlet"
num_clients = 12
alpha = 1.0

[clients]
cohort = 2

[training]
steps = 2

[evaluation]
last = 1
limit = 16
clients = false

[method]
name = "fedit"
"""


def seconds(line: list[str], folder: Path) -> float:
    """Processor seconds of a process, its own and the kernel's."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(line, cwd=folder, stdout=nowhere, stderr=nowhere)
        _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime


def measured(repeats: int) -> dict[str, list[float]]:
    """The processor seconds of every process, in each turn; the first turn is warm-up."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "run.toml").write_text(RUN_FILE)
        first = [sys.executable, "-m", "fedquilt", "run", "run.toml", "-q", "--folder", "run"]
        subprocess.run(first, cwd=folder, check=True, capture_output=True)
        for turn in range(repeats + 1):
            for name, code in CODE.items():
                found.setdefault(name, []).append(seconds([sys.executable, "-c", code], folder))
            for name, words in COMMANDS.items():
                more = [f"run-{turn}"] if words[-1] == "--folder" else []
                line = [sys.executable, "-m", "fedquilt", *words, *more]
                found.setdefault(name, []).append(seconds(line, folder))
    return {name: values[1:] for name, values in found.items()}


def spread(values: list[float], digits: int = 2) -> str:
    """The median with minimum and maximum."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> int:
    """Measure, print the table, and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures")
    options = parser.parse_args()
    found = measured(options.repeats)
    beyond = {
        name: [own - empty for own, empty in zip(values, found[EMPTY], strict=True)]
        for name, values in found.items()
        if name != EMPTY
    }
    if options.json:
        print(json.dumps(beyond, indent=1))
    else:
        print("| process | CPU s beyond an empty Python | / `import torch` | target |\n|---|---|---|---|")
        for name, values in beyond.items():
            ratios = [own / torch for own, torch in zip(values, beyond[TORCH], strict=True)]
            target = f"{TARGETS[name]:g}" if name in TARGETS else ""
            print(f"| {name} | {spread(values)} | {spread(ratios)} | {target} |")
    return int(any(median(beyond[name]) > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
