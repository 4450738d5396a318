"""What a large population costs: start-up, a round, memory and checkpoint, with ten clients a round.

Every measurement is a fresh process that runs ``fedquilt.run`` on the same synthetic images, drawn from a seed, which
are divided among more and more clients. Populations take turns; ratios are to the smallest population of the same
turn. Exits with 1 if a round, memory or the checkpoint grows by more than a tenth, or start-up takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

POPULATIONS = (100, 1_000, 10_000, 100_000)
COHORT, ROUNDS, ROWS, SIZE = 10, 12, 200_000, 8
FLAT, START = 1.1, 30.0
FIGURES = {
    "start": "CPU s to the first round",
    "round": "CPU s of a round",
    "memory": "peak memory, MB",
    "checkpoint": "checkpoint, bytes",
    "partition": "partition.json, bytes",
}


def one(population: int) -> dict[str, float]:
    """The figures of a run with this many clients, in this process."""
    import numpy as np

    import fedquilt

    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (ROWS, SIZE, SIZE), dtype=np.uint8)
    rows = {"image": images, "label": draws.integers(0, 10, ROWS)}
    marks: list[float] = []

    class Watched:
        def started(self, name: str, first: int, rounds: int) -> None:
            marks.append(time.process_time())

        def round(self, line: Mapping[str, Any]) -> None:
            marks.append(time.process_time())

    config = {
        "seed": 1,
        "threads": 1,
        "rounds": ROUNDS + 1,
        "model": {"name": f"tiny:vit?layers=3&width=32&image={SIZE}&patch=4", "task": "image-classification"},
        "partition": {"scheme": "iid", "num_clients": population},
        "clients": {"cohort": COHORT, "shares": "1", "budgets": [3]},
        "training": {"steps": 10, "batch_size": 4},
        "evaluation": {"every": ROUNDS + 1, "last": 1, "limit": 64, "clients": False},
        "method": {"name": "fedit"},
    }
    with tempfile.TemporaryDirectory() as place:
        fedquilt.run(config, data=rows, folder=Path(place) / "run", progress=Watched())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        saved = [Path(place) / "run" / "checkpoint.json", *(Path(place) / "run" / "checkpoint").iterdir()]
        partition = (Path(place) / "run" / "partition.json").stat().st_size
        checkpoint = sum(path.stat().st_size for path in saved)
    # the first round warms up, the last is evaluated
    took = [end - begin for begin, end in pairwise(marks[1:-1])]
    figures = (marks[0], median(took), peak, checkpoint, partition)
    return dict(zip(FIGURES, map(float, figures), strict=True))


def measured(populations: list[int], repeats: int) -> dict[int, list[dict[str, float]]]:
    """The figures of every population in each turn."""
    found: dict[int, list[dict[str, float]]] = {population: [] for population in populations}
    for _ in range(repeats):
        for population in populations:
            line = [sys.executable, __file__, "--one", str(population)]
            said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
            found[population].append(json.loads(said.splitlines()[-1]))
    return found


def spread(values: list[float]) -> str:
    """The median with minimum and maximum, in as many digits as the figure needs."""
    digits = 0 if median(values) >= 100 else 3 if median(values) < 2 else 1
    low, high = min(values), max(values)
    text = f"{median(values):,.{digits}f}"
    return text if low == high else f"{text} ({low:,.{digits}f} to {high:,.{digits}f})"


def main() -> int:
    """Measure, print the table, and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--populations", type=int, nargs="+", default=list(POPULATIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.one)))
        return 0
    found = measured(options.populations, options.repeats)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"| clients | {' | '.join(FIGURES.values())} |\n|---|{'---|' * len(FIGURES)}")
    for population, runs in found.items():
        print(f"| {population:,} | {' | '.join(spread([run[name] for run in runs]) for name in FIGURES)} |")
    first, last = (found[population] for population in (options.populations[0], options.populations[-1]))
    growth = {
        name: [big[name] / small[name] for small, big in zip(first, last, strict=True)]
        for name in ("round", "memory", "checkpoint")
    }
    print(f"\nlargest / smallest: {', '.join(f'{name} {spread(ratios)}' for name, ratios in growth.items())}")
    late = median(run["start"] for run in last) > START
    return int(late or any(median(ratios) > FLAT for ratios in growth.values()))


if __name__ == "__main__":
    sys.exit(main())
