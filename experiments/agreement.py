"""Cosine similarity of clients' updates of shared tensors in one round, from the last checkpoints of runs.

    python experiments/agreement.py RUN [RUN ...]

For every pair of clients, over the entries of H2Tune's bank or of HeteroTune's branches that both hold: the cosine of
their updates, printed as mean and largest magnitude, for pairs of the same and of different architectures. Unrelated
directions have a cosine of about 1 / sqrt(numbers compared), which is printed too.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from fedquilt.adapters.mixture.inject import is_shared
from fedquilt.bank.merge import slots_in
from fedquilt.config.load import parse
from fedquilt.core.loop import rounds
from fedquilt.core.params import sub
from fedquilt.core.types import Params, Turn
from fedquilt.experiment.build import build
from fedquilt.record import Record


def changes(folder: Path) -> tuple[dict[int, Params], dict[int, str]]:
    """Return each client's update of its shared tensors in one more round, by name, and its architecture."""
    record = Record.open(folder)
    experiment = build(parse(record.config))
    torch.set_num_threads(1)
    number, state, memories = record.load_checkpoint()
    (fit,) = experiment.method.exchanges
    everybody = experiment.federation.profiles
    sent = fit.ask(state, Turn(number, everybody, experiment.rng.child("round", number)))
    made = {}

    def send(exchange, orders):
        for id, order in orders.items():
            reply, _ = exchange.work(experiment.clients[id], order, memories.get(id, {}))
            after = shared(reply.params)
            made[id] = sub(after, {name: shared(sent[id].params)[name] for name in after})
            yield reply

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


def shared(params: Params) -> Params:
    """Return the branches of mixtures by name, or the slots of a bank by site, (num_slots, r, r)."""
    bank = slots_in(params)
    if not bank:
        return {name: tensor for name, tensor in params.items() if is_shared(name)}
    width = round(next(iter(bank.values())).shape[1] ** 0.5)
    return {site: slots.unflatten(1, (width, width)) for site, slots in bank.items()}


def cosine(one: Params, other: Params) -> tuple[float, int] | None:
    """Return the cosine over common entries (of different ranks the leading rows and columns), and their number."""
    names = sorted(one.keys() & other.keys())
    if not names:
        return None
    width = min(one[names[0]].shape[-1], other[names[0]].shape[-1])

    def flat(of: Params) -> Tensor:
        return torch.cat([of[name][..., :width, :width].flatten() for name in names])

    return float(torch.cosine_similarity(flat(one), flat(other), dim=0)), len(flat(one))


def main() -> None:
    found: dict[str, list[tuple[float, int]]] = {"one architecture": [], "two architectures": []}
    for folder in map(Path, sys.argv[1:]):
        made, architectures = changes(folder)
        for a, b in combinations(sorted(made), 2):
            kind = "one architecture" if architectures[a] == architectures[b] else "two architectures"
            if pair := cosine(made[a], made[b]):
                found[kind].append(pair)
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
