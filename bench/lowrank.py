"""Time of truncating the mean of many adapters to one rank, against a dense SVD, in one process and one run.

Ten clients of different rank (160 in all) hold an adapter of a d x d weight. The dense way forms the mean of products
and takes ``torch.linalg.svd`` of it, in float32 as the released code does; ours stacks the factors and decomposes the
160 x 160 core, in float64. Both end with the best factors of rank 16. Targets: 10 times faster at d = 768, 50 times at
d = 4096.

At 768 both alternate, and the target is on the median of the ratios of adjacent runs. At 4096 the dense way is run once
(a minute or more) and ours several times around it. If the two results disagree, no ratio is reported. Exits with 1 if
a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import norm as product_norm
from fedquilt.aggregate.lowrank.kernel import product_distance, redistributed, stacked, svd
from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng

TARGETS = {768: 10.0, 4096: 50.0}
RANKS = (64, 32, 16, 16, 8, 8, 4, 4, 4, 4)  # the ranks of FLoRA's experiment; 160 in all
KEPT = 16
AGREE = 1e-4
"""Relative distance of the two results beyond which one must be wrong; the dense way is in single precision."""


def clients_of(size: int, ranks: tuple[int, ...] = RANKS) -> list[Factors]:
    """Return adapters as after some training: a common direction and noise; alpha 16, different weights."""
    generator = Rng(1, ("bench", size)).torch()
    shared_b, shared_a = (
        torch.randn(size, max(ranks), generator=generator),
        torch.randn(max(ranks), size, generator=generator),
    )
    falling = 0.9 ** torch.arange(max(ranks))  # so that the singular values are told apart
    made = []
    for place, rank in enumerate(ranks):
        b = (shared_b * falling)[:, :rank] + 0.1 * torch.randn(size, rank, generator=generator)
        a = shared_a[:rank] + 0.1 * torch.randn(rank, size, generator=generator)
        made.append(Factors(b / size**0.5, a / size**0.5, 16 / rank, 100 + 10 * place))
    return made


def ours(clients: list[Factors]) -> Product:
    """Return the best factors of rank ``KEPT`` by the low-rank kernel."""
    return redistributed(svd(stacked(clients, keep_wide=True), KEPT), KEPT).to(torch.float32)


def by_dense_svd(clients: list[Factors]) -> Product:
    """Return the same by an SVD of the d x d matrix."""
    total = sum(client.weight for client in clients)
    mean: Tensor = sum(c.weight * c.scale / total * (c.B @ c.A) for c in clients)  # type: ignore[assignment]
    u, s, vh = torch.linalg.svd(mean, full_matrices=False)
    return Product(u[:, :KEPT] * s[:KEPT], vh[:KEPT])


def seconds_of(work: Callable[[list[Factors]], Product], clients: list[Factors]) -> tuple[float, Product]:
    began = time.perf_counter()
    product = work(clients)
    return time.perf_counter() - began, product


def compared(size: int, repeats: int, dense_repeats: int) -> dict[str, Any]:
    """Measure both ways at one size: seconds, ratios and the distance of the results."""
    clients = clients_of(size)
    ours(clients)  # warm-up
    fast, slow, results = [], [], {}
    for number in range(dense_repeats):
        for name in ("ours", "dense") if number % 2 else ("dense", "ours"):
            if name == "dense":
                took, results[name] = seconds_of(by_dense_svd, clients)
                slow.append(took)
            else:
                took = [seconds_of(ours, clients) for _ in range(repeats)]
                results[name] = took[-1][1]
                fast.append(median(seconds for seconds, _ in took))
    error = product_distance(results["ours"], results["dense"]) / product_norm(results["dense"])
    if not error < AGREE:
        raise SystemExit(f"d = {size}: the two ways differ by {error:.2g} of the result; one of them is wrong")
    ratios = [dense / own for dense, own in zip(slow, fast, strict=True)]
    return {
        "seconds": {"ours": median(fast), "dense": median(slow)},
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "relative_distance": error,
        "runs": {"ours": repeats * dense_repeats, "dense": dense_repeats},
    }


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a table."""
    lines = [
        f"{len(RANKS)} adapters, stacked rank {sum(RANKS)}, to rank {KEPT}; {result['settings']['threads']} thread(s)",
        "",
        f"{'d':>6}{'ours, s':>10}{'dense, s':>10}{'dense / ours':>14}{'min':>8}{'max':>8}{'target':>8}{'distance':>11}",
    ]
    for size, found in result["sizes"].items():
        seconds, ratio, target = found["seconds"], found["ratio"], TARGETS.get(int(size))
        line = f"{size:>6}{seconds['ours']:>10.4f}{seconds['dense']:>10.3f}{ratio['median']:>14.1f}"
        line += f"{ratio['min']:>8.1f}{ratio['max']:>8.1f}{target or '':>8}{found['relative_distance']:>11.1e}"
        lines.append(line + ("  MISSED" if target and ratio["median"] < target else ""))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--sizes", type=int, nargs="+", default=list(TARGETS), help="values of d")
    add("--repeats", type=int, default=5, help="runs of ours per run of the dense way; their median counts")
    add("--dense-repeats", type=int, default=7, help="runs of the dense way below d = 2048; one run from there on")
    add("--threads", type=int, default=1, help="number of torch threads")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    sizes = {
        str(size): compared(size, options.repeats, 1 if size >= 2048 else options.dense_repeats)
        for size in options.sizes
    }
    settings = {"threads": options.threads, "torch": torch.__version__, "processors": os.cpu_count()}
    kept = all(found["ratio"]["median"] >= TARGETS.get(int(size), 0) for size, found in sizes.items())
    result = {"settings": settings, "sizes": sizes, "targets_met": kept}
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
