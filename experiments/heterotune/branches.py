"""What do the shared branches carry? Each group's accuracy with others in their place, from runs' last checkpoints.

    python experiments/heterotune/branches.py RUN [RUN ...]

Nothing is trained again. In the place of the trained branches come: none (zeros), those that training started from,
and normal numbers as large as the trained ones (mean of three draws). Where all score alike, ends, gates and head alone
carry what was learned. Beside it the mean cosine, over rounds and pairs, between what architectures wanted of the
branches, as the server recorded it.
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
    """Normal numbers, each tensor as large as that of ``branches``."""
    drawn = {name: torch.randn(value.shape, generator=rng.child(name).torch()) for name, value in branches.items()}
    return {name: value * (branches[name].norm() / value.norm()) for name, value in drawn.items()}


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    """By group: the accuracy with the branches as trained, and with what stands in their place."""
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
