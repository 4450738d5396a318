"""What several processes gain: seconds of a round with one process, and with --processes that share the clients.

Both are runs of the same federation, in fresh processes that take turns; the first round, in which processes are forked
and caches filled, is left out. Losses of both must be the same to the bit, or no result is printed. There are two
federations of ten clients: a ViT of 12 blocks of width 64 with ten steps of 4 rows, and a BERT of 6 blocks of width
384 with three steps of 8 sentences of unlike lengths: MiniLM and SST-2 where FEDQUILT_MODELS and FEDQUILT_DATA have
them, otherwise with random weights. Other rows are drawn from a seed. Run it where --processes processor
cores are idle; exits with 1 if a round is not --target times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from real import text_model, text_rows

ROUNDS, CLIENTS = 4, 10
SETTINGS = ("images", "texts")


def federation(setting: str, processes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run file's keys and the rows."""
    import numpy as np

    draws = np.random.default_rng(1)
    labels = draws.integers(0, 10, 1_000)
    keys: dict[str, Any] = {
        "seed": 1,
        "threads": 1,
        "rounds": ROUNDS,
        "engine": {"processes": processes},
        "partition": {"scheme": "iid", "num_clients": CLIENTS, "test_fraction": 0.0},
        "clients": {"cohort": CLIENTS, "shares": "1"},
        "method": {"name": "fedit"},
        "evaluation": {"every": 1000, "last": 1, "clients": False},
    }
    if setting == "images":
        model = "tiny:vit?layers=12&width=64&image=28&patch=7"
        keys |= {
            "model": {"name": model, "task": "image-classification"},
            "training": {"steps": 10, "batch_size": 4},
        }
        keys["clients"] |= {"budgets": [12]}
        return keys, {"image": draws.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8), "label": labels}
    keys |= {"model": {"name": text_model(), "task": "sequence-classification", "max_length": 128}}
    keys |= {"training": {"steps": 3, "batch_size": 8}}
    keys["clients"] |= {"budgets": [6]}
    return keys, dict(text_rows(len(labels)))


def one(setting: str, processes: int) -> dict[str, Any]:
    """Run it in this process."""
    import fedquilt
    from fedquilt.record import read_rounds

    keys, rows = federation(setting, processes)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        fedquilt.run(keys, data=rows, folder=Path(folder) / "run", progress=None)
        lines = read_rounds(Path(folder) / "run")
    losses = [sent["metrics"]["loss"] for line in lines for sent in line["exchanges"][0]["clients"].values()]
    return {"seconds": median(line["seconds"] for line in lines[1:]), "losses": losses}


def measured(setting: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one federation with one process and with several, alternately."""

    def fresh(processes: int) -> dict[str, Any]:
        given = [sys.executable, __file__, "--setting", setting, "--one", str(processes)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(given, check=True, capture_output=True, text=True, env=env)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    alone, shared = [], []
    for _ in range(options.repeats):
        alone.append(fresh(1))
        shared.append(fresh(options.processes))
    if any(run["losses"] != alone[0]["losses"] for run in (*alone, *shared)):
        raise SystemExit(f"{setting}: the losses differ")
    ratios = sorted(before["seconds"] / after["seconds"] for before, after in zip(alone, shared, strict=True))
    return {
        "one": median(run["seconds"] for run in alone),
        "several": median(run["seconds"] for run in shared),
        "ratio": median(ratios),
        "least": ratios[0],
        "greatest": ratios[-1],
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--processes", type=int, default=2)
    add("--repeats", type=int, default=5)
    add("--target", type=float, default=1.6)
    add("--setting", choices=SETTINGS, help="only this federation")
    add("--one", type=int, help="with --setting: run it once in this process with so many processes, and print JSON")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.one:
        print(json.dumps(one(options.setting, options.one)))
        return 0
    found = {name: measured(name, options) for name in SETTINGS if options.setting in (None, name)}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{'federation':<12}{'1 process, s':>14}{f'{options.processes}, s':>8}{'times as fast':>28}")
        for name, one_of in found.items():
            ratio = f"{one_of['ratio']:.2f} ({one_of['least']:.2f} to {one_of['greatest']:.2f})"
            print(f"{name:<12}{one_of['one']:>14.2f}{one_of['several']:>8.2f}{ratio:>28}")
    return 0 if all(one_of["ratio"] >= options.target for one_of in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
