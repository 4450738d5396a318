"""Accuracy of two runs' models together: the mean of their logits on the test rows that both were evaluated on.

FEDQUILT_DATA=/path/to/data python experiments/axes/both.py experiments/axes/mnist.toml \
    "skewed: group-only" "skewed: common, slow cores" 1 2 3 4 5

For each seed and each group (in runs without global models: each client) it prints the accuracy of the one model, of
the other, and of both: the class with the largest mean of their logits. The runs must be finished. The output is
JSON, a line a seed.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.config.load import parse
from fedquilt.core.types import Memory, Order
from fedquilt.experiment import build
from fedquilt.experiment.compare import jobs
from fedquilt.experiment.export import is_whole
from fedquilt.record import Record, read_config

BATCH = 100


def models(run: Path) -> Iterator[tuple[str, Client, Order, Memory]]:
    """The global model of each group of a finished run; or of each client, where there is none."""
    experiment = build(parse(read_config(run)))
    _, state, memories = Record.open(run).load_checkpoint()
    view = experiment.method.view
    for group in experiment.groups:
        order = view(state, group.server.profile)
        if is_whole(group, order) and experiment.config.evaluation.clients is not True:
            yield group.label, group.server, order, {}
            continue
        for id in group.ids:
            client = experiment.clients[id]
            yield f"{group.label} {id}", client, view(state, client.profile), memories.get(id, {})


def logits(client: Client, order: Order, memory: Memory) -> tuple[Tensor, Tensor]:
    """Logits and labels of the test rows."""
    rows, bench = client.splits["test"], client.bench
    bench.load(client.params(order, memory))
    bench.model.eval()
    with torch.no_grad():
        parts = [
            bench.forward({name: column[first : first + BATCH] for name, column in rows.items()})
            for first in range(0, len(rows["labels"]), BATCH)
        ]
    return torch.cat([own.float() for own, _ in parts]), torch.cat([labels for _, labels in parts])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of rows, in per cent, whose label has the largest score."""
    return 100 * float((scores.argmax(-1) == labels).float().mean())


def main(file: str, label: str, other: str, *seeds: str) -> None:
    """Print a line for each seed."""
    folders = {(job.label, job.seed): job.folder for job in jobs(Path(file))}
    for seed in map(int, seeds):
        one, two = ({name: logits(*model) for name, *model in models(folders[each, seed])} for each in (label, other))
        line = {"label": label, "other": other, "seed": seed, "one": {}, "two": {}, "both": {}}
        for name, (scores, labels) in one.items():
            others, same = two[name]
            assert torch.equal(labels, same), "the runs have other test rows"
            line["one"][name], line["two"][name] = accuracy(scores, labels), accuracy(others, labels)
            line["both"][name] = accuracy(scores + others, labels)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
