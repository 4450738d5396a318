"""Accuracy of two runs' models together: the mean of their logits on the test rows that both were evaluated on.

FEDQUILT_DATA=/path/to/data python experiments/axes/both.py experiments/axes/mnist.toml \
    "skewed: group-only" "skewed: common, slow cores" 1 2 3 4 5

For each seed and each group (in runs without global models: each client) it prints the accuracy of the one model, of
the other, and of both: the class with the largest mean of their logits. The runs must be finished. The output is
JSON, a line a seed.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.config.load import parse
from fedquilt.experiment import build
from fedquilt.experiment.compare import jobs
from fedquilt.experiment.trained_model import trained_model
from fedquilt.record import read_config

BATCH = 100


def rows_of(run: Path) -> Iterator[tuple[str, dict[str, Any], Callable[..., Any], dict[str, Tensor]]]:
    """Name, place in a run, preparation and test rows: of each group's global model, or of each client without one."""
    experiment = build(parse(read_config(run)))
    for group in experiment.groups:
        prepare = group.bench.prepare
        if experiment.config.evaluation.clients is not True:
            yield group.label, {"group": group.label}, prepare, dict(group.server.splits["test"])
            continue
        for id in group.ids:
            yield f"{group.label} {id}", {"client": id}, prepare, dict(experiment.clients[id].splits["test"])


def logits(model: nn.Module, prepare: Callable[..., Any], rows: dict[str, Tensor]) -> Tensor:
    """The model's logits of all rows."""
    with torch.no_grad():
        batches = [{k: v[i : i + BATCH] for k, v in rows.items()} for i in range(0, len(rows["labels"]), BATCH)]
        return torch.cat([model(**prepare(batch)).logits.float() for batch in batches])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of rows, in per cent, whose label has the largest score."""
    return round(100 * float((scores.argmax(-1) == labels).float().mean()), 2)


def main(file: str, label: str, other: str, *seeds: str) -> None:
    """Print a line for each seed; ``label`` is that of the cheaper run to build, as its test rows are taken."""
    folders = {(job.label, job.seed): job.folder for job in jobs(Path(file))}
    for seed in map(int, seeds):
        runs = [folders[each, seed] for each in (label, other)]
        line: dict[str, Any] = {"label": label, "other": other, "seed": seed, "one": {}, "two": {}, "both": {}}
        for name, place, prepare, rows in rows_of(runs[0]):
            one, two = (logits(trained_model(run, **place).eval(), prepare, rows) for run in runs)
            for key, scores in {"one": one, "two": two, "both": one + two}.items():
                line[key][name] = accuracy(scores, rows["labels"])
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
