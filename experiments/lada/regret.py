"""How much of the possible reward the filters of a student find, in a world where all rewards are known.

In every batch a filter sees contexts and takes half of them; then it learns the rewards of those it took. The rewards
may be each sample's own, half shared, or one mean for the whole batch. Reported is the gain over chance, 0 for random
choices and 1 for the best ones, over the second half of the batches: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.distill.registry import filter_of
from fedquilt.distill.selection import Candidates, FilterSettings

FEATURES, HIDDEN, SAMPLES = 16, 8, 32

FILTERS = {
    "learnability": FilterSettings(),
    "learnability, gradients": FilterSettings(explore_input="gradient"),
    "learnability, no exploration": FilterSettings(explore=0.0),
    "linear-ucb": FilterSettings(name="linear-ucb"),
    "random": FilterSettings(name="random"),
    "oracle": FilterSettings(name="oracle"),
}

WORLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "monotone": torch.tanh,  # a linear rule orders the samples well
    "curved": lambda values: 2 * torch.tanh(values).square() - 1,  # the sign of a direction says nothing
}


class World(NamedTuple):
    """Rewards ``sigma(1.2 f(x W / 2) w)`` of contexts x, with random W and w."""

    inner: Tensor
    outer: Tensor
    bend: Callable[[Tensor], Tensor]

    def rewards(self, contexts: Tensor) -> Tensor:
        return torch.sigmoid(1.2 * self.bend(contexts @ self.inner / 2) @ self.outer)


def world(bend: str, rng: Rng) -> World:
    generator = rng.torch()
    inner = torch.randn(FEATURES, HIDDEN, generator=generator)
    return World(inner, torch.randn(HIDDEN, generator=generator), WORLDS[bend])


def gain(settings: FilterSettings, bend: str, shared: float, batches: int, seed: int) -> float:
    """The gain over chance in the second half of the batches, as a share of the best choices' gain."""
    rng = Rng(seed)
    known, own = world(bend, rng.child("world")), filter_of(settings)
    state = own.init(FEATURES, rng.child("filter"))
    found = torch.zeros(3, dtype=torch.float64)
    for batch in range(batches):
        contexts = torch.randn(SAMPLES, FEATURES, generator=rng.child("contexts", batch).torch())
        rewards = known.rewards(contexts)
        candidates = Candidates(contexts, rewards, rewards, gain=rewards)
        chosen, state = own.choose(state, candidates, rng.child("choice", batch))
        mine = rewards[chosen]
        state = own.learn(state, chosen, (1 - shared) * mine + shared * mine.mean(), batch)
        if batch >= batches // 2:
            best = rewards.topk(len(chosen)).values
            found += torch.stack([mine.mean(), rewards.mean(), best.mean()]).double()
    return float((found[0] - found[1]) / (found[2] - found[1]))


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--seeds", type=int, default=4)
    reader.add_argument("--batches", type=int, default=60)
    reader.add_argument("--filters", nargs="+", choices=list(FILTERS), default=list(FILTERS))
    reader.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    asked = reader.parse_args()
    torch.set_num_threads(1)
    shares = (0.0, 0.5, 1.0)
    for bend in asked.worlds:
        print(f"\n| {bend} | " + " | ".join(f"shared {share:g}" for share in shares) + " |")
        print("|---|" + "---|" * len(shares))
        for name in asked.filters:
            cells = []
            for share in shares:
                gains = [gain(FILTERS[name], bend, share, asked.batches, seed) for seed in range(asked.seeds)]
                spread = torch.tensor(gains).std(unbiased=len(gains) > 1)
                cells.append(f"{sum(gains) / len(gains):.2f} ± {spread:.2f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
