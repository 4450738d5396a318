"""Do clients want the same of the bank? Cosines between what they change in one round, from runs' last checkpoints.

    python experiments/h2tune/agreement.py RUN [RUN ...]

For every two clients, over the entries that both have: the cosine of their changes of the bank; printed as mean and
largest magnitude, for pairs of one architecture and of two. Directions that have nothing to do with each other would
have a cosine of about 1 / sqrt(numbers compared), which is printed beside.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import torch

from fedquilt.aggregate.bank import slots_in
from fedquilt.config.load import parse
from fedquilt.core.loop import rounds
from fedquilt.core.types import Turn
from fedquilt.experiment import build
from fedquilt.record import Record


def changes(folder: Path) -> tuple[dict[int, dict[str, torch.Tensor]], dict[int, str]]:
    """By client what one more round changes of its part of the bank, (num_slots, r, r) by site; its architecture."""
    record = Record.open(folder)
    experiment = build(parse(record.config))
    torch.set_num_threads(1)
    number, state, memories = record.load_checkpoint()
    (fit,) = experiment.method.exchanges
    sent = fit.ask(state, Turn(number, experiment.federation.profiles, experiment.rng.child("round", number)))
    made = {}

    def send(exchange, orders):
        for id, order in orders.items():
            reply, _ = exchange.work(experiment.clients[id], order, memories.get(id, {}))
            after, before = slots_in(reply.params), slots_in(sent[id].params)
            width = round(next(iter(before.values())).shape[1] ** 0.5)
            made[id] = {site: (after[site] - before[site]).unflatten(1, (width, width)) for site in before}
            yield reply

    everybody = experiment.federation.profiles
    going_on = rounds(
        experiment.method,
        lambda _: everybody,
        send,
        experiment.rng,
        num_rounds=number + 1,
        state=state,
        start=number,
    )
    next(going_on)
    return made, {profile.id: profile.architecture for profile in everybody}


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The cosine over the entries that both clients have (leading rows and columns), and how many these are."""
    sites = sorted(one.keys() & other.keys())
    width = min(one[sites[0]].shape[1], other[sites[0]].shape[1])
    left, right = (torch.cat([of[site][:, :width, :width].flatten() for site in sites]) for of in (one, other))
    return float(torch.cosine_similarity(left, right, dim=0)), len(left)


def main() -> None:
    found: dict[str, list[tuple[float, int]]] = {"one architecture": [], "two architectures": []}
    for folder in map(Path, sys.argv[1:]):
        made, architectures = changes(folder)
        for a, b in combinations(sorted(made), 2):
            kind = "one architecture" if architectures[a] == architectures[b] else "two architectures"
            found[kind].append(cosine(made[a], made[b]))
    for kind, pairs in found.items():
        if pairs:
            values = torch.tensor([value for value, _ in pairs])
            chance = sum(count**-0.5 for _, count in pairs) / len(pairs)
            print(
                f"{kind}: {len(pairs)} pairs, mean {values.mean():+.3f}, largest magnitude {values.abs().max():.3f}, "
                f"unrelated {chance:.3f}"
            )


if __name__ == "__main__":
    main()
