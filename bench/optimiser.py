"""Whether a fused AdamW pays: seconds of its step alone, and of the local steps of a client, against the usual one.

Both ways take turns in one process. The step alone is measured on adapters of usual sizes with gradients that are
drawn; the whole step is that of ``simulation.py``'s clients, alone and side by side. Parameters after ten steps are
compared bit by bit: if fused ones have other bits, fused AdamW would change the results of existing run files, and a
client on another machine or in another version of torch could have other bits than one beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from overhead import Clock, spread
from simulation import Round, experiment_of
from torch import Tensor

SIZES = {
    "ViT, 12 x 64, rank 8": [(8, 64), (64, 8)] * 24,
    "MiniLM, 6 x 384, rank 8": [(8, 384), (384, 8)] * 12,
    "LLaMA 1B, q and v, rank 16": [(16, 2048), (2048, 16), (16, 2048), (512, 16)] * 16,
}
STEPS = 10


@contextmanager
def fused() -> Iterator[None]:
    """Every AdamW that is made inside is fused."""
    own = torch.optim.AdamW.__init__

    def init(self: Any, *args: Any, **named: Any) -> None:
        own(self, *args, **{**named, "fused": True})

    with patch.object(torch.optim.AdamW, "__init__", init):
        yield


def alone(shapes: list[tuple[int, int]], is_fused: bool) -> tuple[dict[str, float], list[Tensor]]:
    """The time of ten steps of AdamW, and the parameters after them."""
    draws = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=draws).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=draws)
    optimizer, clock = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, fused=is_fused), Clock()
    optimizer.step()
    clock.start()
    for _ in range(STEPS):
        optimizer.step()
    return clock.stop(), params


def steps_alone(repeats: int) -> dict[str, Any]:
    found = {}
    for name, shapes in SIZES.items():
        took, last = [], []
        for _ in range(repeats):
            (usual, one), (quick, other) = alone(shapes, False), alone(shapes, True)
            took.append((usual["cpu"], quick["cpu"]))
            last.append(max(float((a - b).detach().abs().max()) for a, b in zip(one, other, strict=True)))
        found[name] = {
            "microseconds": spread([1e6 * usual / STEPS for usual, _ in took]),
            "ratio": spread([usual / quick for usual, quick in took]),
            "difference": max(last),
        }
    return found


def whole_steps(setting: str, batch_size: int, width: int, repeats: int) -> dict[str, float]:
    """How many times as fast a round is with fused AdamW."""
    with tempfile.TemporaryDirectory() as folder:
        shared, clock, ratios = Round(experiment_of(setting, batch_size, Path(folder))), Clock(), []
        arm = shared.fedquilt(width)
        for number in range(repeats + 1):
            orders, took = shared.orders(number), {}
            for is_fused in (False, True) if number % 2 else (True, False):
                clock.start()
                if is_fused:
                    with fused():
                        arm(orders)
                else:
                    arm(orders)
                took[is_fused] = clock.stop()["cpu"]
            ratios += [took[False] / took[True]] if number else []
    return spread(ratios)


def cell(values: dict[str, float], digits: int = 2) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = steps_alone(options.repeats)
    whole = {
        f"{setting}, batch {batch_size}, {'in turn' if width == 1 else 'side by side'}": whole_steps(
            setting, batch_size, width, options.repeats
        )
        for setting, batch_size, width in (("equal", 4, 1), ("equal", 16, 1), ("equal", 4, 10), ("text", 8, 1))
    }
    if options.json:
        print(json.dumps({"alone": found, "whole": whole}, indent=1))
        return 0
    print("| AdamW's step alone | usual, microseconds | times as fast fused | largest difference |\n|---|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {cell(one['microseconds'], 0)} | {cell(one['ratio'])} | {one['difference']:.1e} |")
    print("\n| a round, CPU | times as fast fused |\n|---|---|")
    for name, ratio in whole.items():
        print(f"| {name} | {cell(ratio)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
