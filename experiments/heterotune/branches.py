"""Contribution of the shared branches: each group's accuracy with other branches, from the last checkpoints of runs.

    python experiments/heterotune/branches.py RUN [RUN ...]

Nothing is trained. The trained branches are replaced by zeros, by their initial values, and by normal noise of the same
norm (mean of three draws). If all accuracies are equal, projections, gates and head carry everything that was learned.
It also prints the mean cosine, over rounds and pairs, between the architectures' updates of the branches, as the server
recorded it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from fedquilt.adapters.mixture.inject import is_shared
from fedquilt.config.load import parse
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.experiment.build import build
from fedquilt.record import Record
from fedquilt.report.conflicts import alignments
from fedquilt.report.runs import read_run

DRAWS = 3


def as_large(branches: Params, rng: Rng) -> Params:
    """Return normal noise, each tensor of the same norm as that of ``branches``."""
    drawn = {name: torch.randn(value.shape, generator=rng.child(name).torch()) for name, value in branches.items()}
    return {name: value * (branches[name].norm() / value.norm()) for name, value in drawn.items()}


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    """Return by group the accuracy with the trained branches and with each replacement."""
    record = Record.open(folder)
    experiment = build(parse(record.config))
    torch.set_num_threads(1)
    _, state, _ = record.load_checkpoint()
    first = experiment.method.init(experiment.rng.child("init"))
    found = {}
    for group in experiment.groups:
        server = group.server
        order, start = (experiment.method.view(tree, server.profile) for tree in (state, first))
        branches = {name: value for name, value in order.params.items() if is_shared(name)}

        def score(other: Params, order=order, server=server) -> float:
            return 100 * server.evaluate(replace(order, params={**order.params, **other}))["accuracy"]

        found[group.label] = {
            "trained": score(branches),
            "none": score({name: torch.zeros_like(value) for name, value in branches.items()}),
            "as at the start": score({name: start.params[name] for name in branches}),
            "noise as large": mean(score(as_large(branches, Rng(0).child(draw))) for draw in range(DRAWS)),
        }
    return found


def main() -> None:
    found = [accuracies(Path(folder)) for folder in sys.argv[1:]]
    for label in found[0]:
        told = ", ".join(f"{what} {mean(one[label][what] for one in found):.1f}" for what in found[0][label])
        print(f"{label}: {told}")
    for folder in sys.argv[1:]:
        for kept in alignments(read_run(Path(folder))).values():
            if kept.cosines is not None:
                between = kept.cosines[np.triu_indices(len(kept.cosines), 1)]
                print(f"{folder}: cosines between architectures {', '.join(f'{value:+.3f}' for value in between)}")


if __name__ == "__main__":
    main()
