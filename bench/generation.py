"""Time of generating answers in an evaluation, against one prompt at a time without a cache of keys and values.

The same model answers the same prompts in three ways, each by greedy decoding: one prompt at a time, with every token
computed anew from the whole text; one prompt at a time with a cache; and as fedquilt evaluates, with a cache and in
batches of similar lengths. If any two ways write different tokens, no ratio is reported. Target: 4 times faster than
without a cache. Exits with 1 if it is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from fedquilt.client.generation import written
from fedquilt.client.workbench import Workbench
from fedquilt.config.load import parse
from fedquilt.core.tasks import IGNORED
from fedquilt.experiment.build import build

TARGET = 4.0
Ids = list[list[int]]


def prompts_of(model: str, count: int, new_tokens: int) -> tuple[Workbench, list[Tensor]]:
    """Return a workbench with the model and its untrained adapter, and the prompts of the first test rows."""
    config = parse(
        {
            "threads": 1,
            "model": {"name": model, "task": "causal-lm", "max_length": 96},
            "data": {
                "source": f"arithmetic:program?train=40&test={count}",
                "answers": "program",
                "new_tokens": new_tokens,
            },
            "clients": {"budgets": [1, 1, 1]},
            "method": {"name": "fedit"},
            "partition": {"scheme": "iid", "num_clients": 3, "test_fraction": 0},
        }
    )
    group = build(config).only
    rows = group.server.splits["test"]
    starts = (rows["labels"] != IGNORED).int().argmax(1)
    group.bench.load(group.server.initial)
    return group.bench, [ids[:start] for ids, start in zip(rows["input_ids"], starts, strict=True)]


def alone(bench: Workbench, prompt: Tensor, new_tokens: int, *, cache: bool) -> list[int]:
    """Return the tokens that transformers generates after one prompt."""
    model: Any = bench.model
    ids = prompt.long()[None]
    with torch.no_grad():
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, use_cache=cache
        )
    return whole[0, len(prompt) :].tolist()


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the three ways: seconds by the clock and of the processor, and ratios of the latter."""
    bench, prompts = prompts_of(options.model, options.prompts, options.new_tokens)
    ways: dict[str, Callable[[], Ids]] = {
        "one prompt, no cache": lambda: [alone(bench, one, options.new_tokens, cache=False) for one in prompts],
        "one prompt, cache": lambda: [alone(bench, one, options.new_tokens, cache=True) for one in prompts],
        "batches, cache": lambda: written(bench, prompts, options.new_tokens, options.batch_size),
    }
    written(bench, prompts[:2], 2)  # warm-up
    found, made = {}, {}
    for name, work in ways.items():
        wall, cpu = time.perf_counter(), time.process_time()
        made[name] = work()
        found[name] = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    first = made["one prompt, no cache"]
    for name, ids in made.items():
        if different := sum(a != b for a, b in zip(first, ids, strict=True)):
            raise SystemExit(f"{name}: {different} of {len(first)} answers differ; there is no ratio to report")
    base = found["one prompt, no cache"]["cpu_seconds"]
    return {
        "ways": {name: {**one, "ratio": base / one["cpu_seconds"]} for name, one in found.items()},
        "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
        "mean_answer_tokens": sum(map(len, first)) / len(first),
    }


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a table."""
    shortest, longest = result["prompt_tokens"]
    lines = [
        f"prompts of {shortest} to {longest} tokens, answers of {result['mean_answer_tokens']:.1f} on average",
        "",
        f"{'':<24}{'wall, s':>10}{'cpu, s':>10}{'ratio':>10}",
    ]
    for name, one in result["ways"].items():
        lines.append(f"{name:<24}{one['seconds']:>10.2f}{one['cpu_seconds']:>10.2f}{one['ratio']:>10.1f}")
    return "\n".join(lines + ([] if result["target_met"] else [f"MISSED: the target is {TARGET}"]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="arith-qwen", help="a causal language model")
    add("--prompts", type=int, default=128, help="number of prompts")
    add("--new-tokens", type=int, default=48, help="largest number of tokens of an answer")
    add("--batch-size", type=int, default=32, help="prompts of a batch")
    add("--threads", type=int, default=1, help="number of torch threads")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    result = compared(options)
    result["target_met"] = result["ways"]["batches, cache"]["ratio"] >= TARGET
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
