"""Time and memory of the server's rules with 100 clients of a 1B-class adapter.

The adapter is LoRA on the query and value projections of LLaMA 3.2 1B's shape, of rank 16 (--blocks: of fewer blocks).
Replies are drawn one after another, as they would arrive; drawing them is not part of the measured time. Each rule runs
in a fresh process (Linux). ``peak`` is the growth of the peak resident memory (VmHWM) from before the first reply to
the end, in adapter sets, without the reply that arrives and the server's own set; the allocator is told to give back
what is freed. ``of a copy`` is the speed, in bytes of replies a second of processor time, relative to copying the same
replies in the same process; median of --repeats.

Targets: 2.5 sets for rules that read replies one by one, and for those that sort, 1.2 times the cohort's sets at a
tenth of a copy's speed. Exits with 1 if one is missed. FlexLoRA is also measured with --many clients: its seconds a
client should not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.rules import RULES as FACTOR_RULES
from fedquilt.aggregate.lowrank.rules import merged
from fedquilt.aggregate.robust import aggregate_rule
from fedquilt.aggregate.settings import LowRankRule, RuleSettings, TensorRule
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params, Reply
from fedquilt.models.shapes import published

SHAPE = "llama-3.2-1b"
RANK = 16
STREAMING = ("mean", "clipped-mean")
SORTING = ("median", "trimmed-mean")
STREAMING_SETS, SORTING_COHORTS, SORTING_SPEED = 2.5, 1.2, 0.1
GIVING = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
RULES = (*get_args(TensorRule), *get_args(LowRankRule))


def adapter(blocks: int, rng: Rng) -> Params:
    """Return one adapter set: A and B of q and v in every block."""
    shape = published(SHAPE)
    width = int(shape["hidden_size"])
    heads = int(shape["num_attention_heads"]), int(shape["num_key_value_heads"])
    generator = rng.torch()
    found: dict[str, Tensor] = {}
    for block in range(blocks):
        for site, d_out in (("q_proj", width), ("v_proj", width * heads[1] // heads[0])):
            found[f"layers.{block}.{site}.lora_A"] = torch.randn(RANK, width, generator=generator)
            found[f"layers.{block}.{site}.lora_B"] = torch.randn(d_out, RANK, generator=generator)
    return found


class Arriving:
    """Replies that are drawn one after another, with the processor time that drawing took."""

    def __init__(self, clients: int, blocks: int) -> None:
        self.clients, self.blocks, self.spent = clients, blocks, 0.0

    def __iter__(self) -> Iterator[Reply]:
        for client in range(self.clients):
            began = time.process_time()
            params = adapter(self.blocks, Rng(1, ("bench",)).child(client))
            self.spent += time.process_time() - began
            yield Reply(client, params, 1.0 + client % 3)
            del params


def measured(rule: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one rule in this process."""
    torch.set_num_threads(1)
    base = adapter(options.blocks, Rng(2))
    size = sum(tensor.nbytes for tensor in base.values())
    settings = RuleSettings(rule)  # type: ignore[arg-type]
    combine: Callable[..., Any]
    if rule in get_args(TensorRule):
        combine = partial(aggregate_rule(settings), base, weighting="examples")
    else:
        combine = lambda replies: merged(FACTOR_RULES[rule](), base, replies, "examples", lambda module, rank: 2.0)  # noqa: E731
    if options.peak:
        combine(Arriving(2, options.blocks))  # loads what is loaded late
        held = kilobytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        combine(Arriving(options.clients, options.blocks))
        return {"peak_sets": (kilobytes("VmHWM") - held) * 1024 / size - 1}  # without the reply that arrives
    seconds, copies = [], []
    for _ in range(options.repeats):
        copies.append(copied(options))
        replies, began = Arriving(options.clients, options.blocks), time.process_time()
        combine(replies)
        seconds.append(time.process_time() - began - replies.spent)
    return {
        "seconds": statistics.median(seconds),
        "of_a_copy": statistics.median(c / s for c, s in zip(copies, seconds, strict=True)),
        "gigabytes_a_second": options.clients * size / statistics.median(seconds) / 1e9,
    }


def copied(options: argparse.Namespace) -> float:
    """Return the seconds that copying all replies takes once all are there."""
    replies = list(Arriving(options.clients, options.blocks))
    began = time.process_time()
    copies = [{name: tensor.clone() for name, tensor in reply.params.items()} for reply in replies]
    assert len(copies) == options.clients
    return time.process_time() - began


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def missed(rule: str, found: dict[str, Any], clients: int) -> bool:
    """Whether the rule misses its target."""
    if rule in STREAMING:
        return bool(found["peak_sets"] > STREAMING_SETS)
    limits = found["peak_sets"] > SORTING_COHORTS * clients or found["of_a_copy"] < SORTING_SPEED
    return rule in SORTING and bool(limits)


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a table."""
    told = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    lines = [f"{SHAPE}, q and v, rank {RANK}: {told}", ""]
    lines.append(f"{'rule':<16}{'seconds':>10}{'GB/s':>8}{'of a copy':>11}{'peak, sets':>12}")
    for rule, found in result["rules"].items():
        speed = f"{found['gigabytes_a_second']:>8.2f}{found['of_a_copy']:>11.3f}"
        line = f"{rule:<16}{found['seconds']:>10.2f}{speed}{found['peak_sets']:>12.1f}"
        lines.append(line + ("  MISSED" if found["missed"] else ""))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--clients", type=int, default=100)
    add("--many", type=int, default=400, help="clients of a second measurement of FlexLoRA; 0 for none")
    add("--blocks", type=int, default=2, help="transformer blocks, of 16")
    add("--repeats", type=int, default=5)
    add("--rules", nargs="*", choices=RULES, default=list(RULES))
    add("--rule", choices=RULES, help="measure one rule in this process and print JSON")
    add("--peak", action="store_true", help="with --rule: measure memory instead of time")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.rule:
        print(json.dumps(measured(options.rule, options)))
        return 0

    def fresh(rule: str, clients: int) -> dict[str, Any]:
        sizes = ("--clients", str(clients), "--blocks", str(options.blocks), "--repeats", str(options.repeats))
        given = [sys.executable, __file__, "--rule", rule, *sizes]
        told: dict[str, Any] = {}
        for more, env in (((), dict(os.environ)), (("--peak",), GIVING)):
            done = subprocess.run([*given, *more], check=True, capture_output=True, text=True, env=env)
            told |= json.loads(done.stdout)
        return {**told, "missed": missed(rule, told, clients)}

    found = {rule: fresh(rule, options.clients) for rule in options.rules}
    if options.many and "flexlora" in found:
        found[f"flexlora, {options.many}"] = fresh("flexlora", options.many)
    settings = {key: getattr(options, key) for key in ("clients", "blocks", "repeats")}
    result = {"settings": settings | {"torch": torch.__version__}, "rules": found}
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 1 if any(one["missed"] for one in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
