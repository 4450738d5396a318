"""What a large population costs: start-up, a round, memory and checkpoint, with ten clients a round.

Every measurement is a fresh process that runs ``fedquilt.run`` on the same synthetic images, drawn from a seed, which
are divided among more and more clients. Populations take turns; ratios are to the smallest population of the same
turn. Exits with 1 if a round, memory or the checkpoint grows by more than a tenth, or start-up takes half a minute.

With ``--checkpoints`` it measures the checkpoint of a round alone, in a population of which all have taken part before
and keep a memory of 4 KB each: the time to save it, its manifest, its files, and the disk space per byte of memory.
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
OF_CHECKPOINTS = {
    "wall": "a checkpoint, ms",
    "cpu": "CPU ms",
    "manifest": "manifest, bytes",
    "files": "files",
    "disk": "disk / memories",
}
CHECKPOINTS = 50


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


def checkpoints(population: int) -> dict[str, float]:
    """The figures of a checkpoint after all of this many clients have taken part, in this process."""
    import random

    import torch

    from fedquilt.record import Record

    def memory() -> dict[str, Any]:
        return {"params": {"A": torch.rand(8, 64), "B": torch.rand(64, 8)}}

    draws, memories, took = random.Random(1), dict[int, dict[str, Any]](), []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".overhead-") as place:
        record = Record.create(Path(place) / "run", {}, {"versions": {}}, {"digest": "", "clients": []})
        first = max(1, population // 100)
        for number in range(100 + CHECKPOINTS):
            cohort = range(number * first, (number + 1) * first)
            if number >= 100:
                cohort = draws.sample(range(100 * first), COHORT)
            memories.update({client: memory() for client in cohort})
            begin, cpu = time.perf_counter(), time.process_time()
            record.save_checkpoint(number + 1, {"round": number}, memories)
            took.append((1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu)))
        manifest = (Path(place) / "run" / "checkpoint.json").stat().st_size
        files = [path.stat().st_size for path in (Path(place) / "run" / "checkpoint").iterdir()]
    wall, cpu = (median(values) for values in zip(*took[100:], strict=True))
    live = 2 * 8 * 64 * 4 * len(memories)
    return dict(zip(OF_CHECKPOINTS, (wall, cpu, float(manifest), float(len(files)), sum(files) / live), strict=True))


def measured(populations: list[int], repeats: int, *more: str) -> dict[int, list[dict[str, float]]]:
    """The figures of every population in each turn; ``more`` are further arguments of the processes."""
    found: dict[int, list[dict[str, float]]] = {population: [] for population in populations}
    for _ in range(repeats):
        for population in populations:
            line = [sys.executable, __file__, "--one", str(population), *more]
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
    parser.add_argument("--checkpoints", action="store_true", help="measure the checkpoint of a round alone")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps((checkpoints if options.checkpoints else one)(options.one)))
        return 0
    figures = OF_CHECKPOINTS if options.checkpoints else FIGURES
    found = measured(options.populations, options.repeats, *(["--checkpoints"] if options.checkpoints else []))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"| clients | {' | '.join(figures.values())} |\n|---|{'---|' * len(figures)}")
    for population, runs in found.items():
        print(f"| {population:,} | {' | '.join(spread([run[name] for run in runs]) for name in figures)} |")
    if options.checkpoints:
        return 0
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
