"""Peak memory of one local step of a LLaMA-shaped model, each case in a fresh process.

Cases: full fine-tuning; LoRA on query and value; mixtures of adapters (DeMA) after attention and feed-forward of every
block; and of the top half of the blocks, where the backward pass stops half-way. The model has random weights in
float32; the step is forward, backward and one AdamW step on one batch of token ids. On the CPU the peak is that of the
process's resident memory from its start (VmHWM, so on Linux); with ``--device cuda`` it is PyTorch's peak allocation on
the device.

Then LoRA on a float32 base, on a bfloat16 base, and with gradient checkpointing, with four times as many rows. Weights
are the memory that the process gains when the model is made; activations are the growth from before the forward pass to
the peak.

Targets: mixtures take at most half of full fine-tuning's peak, bfloat16 weights at most 0.55 of float32's, activations
with checkpointing at most 0.4 of those without. Exits with 1 if one is missed. ``--bytes-per-weight 2`` holds the
frozen base, and for full fine-tuning weights and gradients, in bfloat16; AdamW's state is then in bfloat16 too, so the
baseline is as small as possible.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fedquilt.adapters.lora.inject import initial, inject, layout, load, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.mixture.inject import initial_mixture, inject_mixture, mixture_layout
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.client.recompute import recomputed
from fedquilt.core.rng import Rng
from fedquilt.models.hf_files import config_from, model_from
from fedquilt.models.layers import find_blocks
from fedquilt.models.shapes import published

TARGET = 0.5
WEIGHTS, ACTIVATIONS = 0.55, 0.4
WAYS = {
    "imports": "the program and its libraries alone",
    "full": "full fine-tuning",
    "lora": "LoRA, query and value",
    "dema": "DeMA, all blocks",
    "dema-top": "DeMA, top half of the blocks",
}
BASES = {
    "base-32": "LoRA, float32 base",
    "base-16": "LoRA, bfloat16 base",
    "checkpointing": "LoRA, float32 base, checkpointing",
}
"""Cases with four times as many rows, so that activations show."""
MEGABYTE = 2**20

SMALL = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 20,
    "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 4096, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip
"""337 million weights, in the proportions of the 1B model of LLaMA 3.2."""


def measured(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one step of one case in this process: peak bytes, trained parameters and seconds."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if way == "imports":
        return {"peak_bytes": peak(device)}
    config = config_from(SMALL if options.shape == "small" else published(options.shape))
    empty = held(device)
    short = way == "base-16" or (options.bytes_per_weight == 2 and way not in BASES)
    torch.set_default_dtype(torch.bfloat16 if short else torch.float32)
    with Rng(1).scope(), device:
        model = model_from(config, "causal-lm")
    torch.set_default_dtype(torch.float32)
    weight_bytes = held(device) - empty
    model.config.use_cache = False
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    trained = prepared(model, way, options)
    rows = options.rows * (4 if way in BASES else 1)
    ids = torch.randint(config.vocab_size, (rows, options.tokens), generator=Rng(2).torch()).to(device)
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    began = time.perf_counter()
    before = held(device)
    again = model.get_submodule(find_blocks(model).path).children() if way == "checkpointing" else ()
    with recomputed(again, lambda _: nullcontext()):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
    step_bytes = peak(device) - before
    optimizer.step()
    seconds = time.perf_counter() - began
    num_trained = sum(parameter.numel() for parameter in trained)
    moments = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    if moments != 2 * num_trained:
        raise SystemExit(f"{way}: the optimiser holds {moments} numbers for {num_trained} trained ones; twice is right")
    return {
        "peak_bytes": peak(device),
        "weights": num_weights,
        "weight_bytes": weight_bytes,
        "step_bytes": step_bytes,
        "trained": num_trained,
        "seconds": seconds,
        "loss": float(loss.detach()),
    }


def prepared(model: Any, way: str, options: argparse.Namespace) -> list[torch.nn.Parameter]:
    """Inject adapters and return the parameters that this case trains."""
    if way == "full":
        return list(model.requires_grad_(True).parameters())
    blocks = find_blocks(model)
    if way == "lora" or way in BASES:
        inject(model, blocks, LoraSettings(options.rank, float(options.rank), targets=("q_proj", "v_proj")))
        where = layout(model, blocks, "llama")
        start = initial(where, model)(Rng(3))
    else:
        settings = MixtureSettings(options.rank, float(options.rank), branches=3, num_slots=blocks.num_layers)
        layers = range(blocks.num_layers // 2, blocks.num_layers) if way == "dema-top" else None
        inject_mixture(model, blocks, settings, layers)
        where = mixture_layout(model, blocks, "llama")
        start = initial_mixture(where, model, settings)(Rng(3))
    found = trainable(model, where)
    load(found, start)
    return [parameter.requires_grad_(True) for parameter in found.values()]


def peak(device: torch.device) -> int:
    """Return the peak memory so far in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # not getrusage, whose peak a process takes over from the one that started it
    return resident("VmHWM")


def held(device: torch.device) -> int:
    """Return the memory in use in bytes."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident("VmRSS")


def resident(key: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case in its own process, with its peak relative to full fine-tuning."""
    found = {}
    for way in (*WAYS, *BASES):
        run = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, text=True, check=False
        )
        if run.returncode:
            raise SystemExit(f"{(WAYS | BASES)[way]}: ended with status {run.returncode}, perhaps for want of memory")
        found[way] = json.loads(run.stdout.splitlines()[-1])
    whole, idle = found["full"]["peak_bytes"], found["imports"]["peak_bytes"]
    for one in found.values():
        one["ratio"] = one["peak_bytes"] / whole
        one["ratio_without_imports"] = (one["peak_bytes"] - idle) / (whole - idle)
    return found


def table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Format the measurements as a table."""
    weights = f"{found['full']['weights'] / 1e6:.0f} million weights of {options.bytes_per_weight} bytes"
    lines = [
        f"{options.shape}: {weights}; {options.rows} x {options.tokens} tokens, rank {options.rank}, {options.device}",
        "",
        f"{'':<38}{'trained, M':>11}{'peak, MB':>10}{'of full':>9}{'less imports':>14}{'step, s':>9}",
    ]
    for way, one in found.items():
        trained = f"{one['trained'] / 1e6:.2f}" if "trained" in one else ""
        seconds = f"{one['seconds']:.1f}" if "seconds" in one else ""
        lines.append(
            f"{(WAYS | BASES)[way]:<38}{trained:>11}{one['peak_bytes'] / MEGABYTE:>10.0f}{one['ratio']:>9.3f}"
            f"{one['ratio_without_imports']:>14.3f}{seconds:>9}"
        )
    lines += ["", f"bfloat16 weights / float32's: {weights_ratio(found):.3f}"]
    lines += [f"activations with checkpointing / without: {activations_ratio(found):.3f}"]
    return "\n".join(lines)


def weights_ratio(found: dict[str, Any]) -> float:
    """Return the memory of bfloat16 weights over that of float32 weights."""
    return float(found["base-16"]["weight_bytes"] / found["base-32"]["weight_bytes"])


def activations_ratio(found: dict[str, Any]) -> float:
    """Return the growth in a step with checkpointing over that without."""
    return float(found["checkpointing"]["step_bytes"] / found["base-32"]["step_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", help="'small', or a published shape such as llama-3.2-1b")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bytes-per-weight", type=int, default=4, choices=(2, 4))
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=(*WAYS, *BASES), help="measure only this case, in this process")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options)))
        return
    found = compared(options)
    print(json.dumps(found, indent=2) if options.json else table(found, options))
    missed = [
        f"{what} is {ratio:.3f}; the target is {target}"
        for what, ratio, target in (
            ("DeMA's memory / full fine-tuning's", found["dema"]["ratio"], TARGET),
            ("bfloat16 weights / float32's", weights_ratio(found), WEIGHTS),
            ("activations with checkpointing / without", activations_ratio(found), ACTIVATIONS),
        )
        if ratio > target
    ]
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
