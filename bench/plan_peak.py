"""Measured peak memory of a client's local step / the peak that ``fedquilt plan`` states, each case in a fresh process.

Cases: each model in float32 and bfloat16, with and without gradient checkpointing; LoRA on all blocks. A step is
forward, backward and an AdamW step on rows of full length; the second of two steps counts as well, in which the
optimiser has its state. On the CPU the measure is the growth of the process's resident memory from before the model is
loaded, after all imports, to the peak of the steps (VmHWM, reset before them, so on Linux), less the measured memory of
the tokenizer; with ``--device cuda`` it is PyTorch's peak allocation. The peak of loading is shown beside it.

Target: every case is within 15 % of the plan. Exits with 1 if one is not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fedquilt.client.client import Client
from fedquilt.config.load import load
from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.first_round import first_orders
from fedquilt.experiment.models import num_layers
from fedquilt.experiment.plan import plan
from fedquilt.models.hf_files import read_tokenizer
from fedquilt.models.locate import find_source

TARGET = 0.15
MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "google/gemma-3-270m",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "sentence-transformers/all-mpnet-base-v2",
)
DTYPES = ("float32", "bfloat16")
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "TOKENIZERS_PARALLELISM": "false"}
"""With it glibc returns freed tensors to the system at once; by default it keeps up to some 100 MB of them."""
SHARED = ("quantization", "device", "rows", "tokens", "threads")
RUN = """
seed = 1
rounds = 1
threads = {threads}
device = "{device}"

[model]
name = "{model}"
task = "{task}"
max_length = {tokens}
dtype = "{dtype}"
quantization = "{quantization}"

[data]
source = "{source}"

[partition]
scheme = "iid"
num_clients = 1

[clients]
shares = "1"
budgets = [1]

[adapter]
rank = 8

[training]
steps = 2
batch_size = {rows}
precision = "fp32"
gradient_checkpointing = {checkpointing}

[method]
name = "fedit"
"""


def config_of(case: argparse.Namespace, model: str, folder: Path) -> Config:
    """The config of this case for a model; all of its blocks are trained."""
    file, rows = folder / "case.toml", folder / "rows.tsv"
    rows.write_text("text\tlabel\n" + "".join(f"row {n}\t{'yes' if n % 2 else 'no'}\n" for n in range(16)))
    values = vars(case) | {"model": model, "source": rows, "checkpointing": str(case.checkpointing).lower()}
    file.write_text(RUN.format_map(values))
    return load(file, [f"clients.budgets=[{num_layers(load(file, [])[0])}]"])[0]


def full_rows(experiment: Experiment, case: argparse.Namespace) -> Client:
    """The only client, with rows of full length for two steps."""
    client = experiment.clients[0]
    shape, generator = (2 * case.rows, case.tokens), Rng(2).torch()
    ids = torch.randint(5, experiment.loaded.model.config.vocab_size, shape, generator=generator)
    labels = ids if client.train["labels"].dim() > 1 else torch.arange(2 * case.rows) % 2
    columns = {name: torch.zeros(shape, dtype=torch.int32) for name in client.train}
    return replace(client, train=columns | {"input_ids": ids, "attention_mask": torch.ones(shape), "labels": labels})


def step(experiment: Experiment, case: argparse.Namespace) -> None:
    """The first exchange of the method with the client."""
    order = first_orders(experiment.method, experiment.federation.profiles, experiment.rng)[0]
    experiment.method.exchanges[0].work(full_rows(experiment, case), order, {})


def measured(case: argparse.Namespace) -> dict[str, Any]:
    """Measure a case in this process: planned, measured and loading peak in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = "tiny:llama" if case.task == "causal-lm" else "tiny:bert"
        step(build(config_of(case, small, folder)), case)  # loads the libraries' code into memory
        config = config_of(case, case.model, folder)
        (planned,) = plan(config)
        beside = tokenizer_bytes(config)
        before = resident("VmRSS") + beside if case.device == "cpu" else 0
        forget_peak(case.device)
        experiment = build(config)
        loading = peak(case.device) - before
        gc.collect()
        forget_peak(case.device)
        began = time.perf_counter()
        step(experiment, case)
        seconds = time.perf_counter() - began
    found = {"planned": planned.peak_bytes, "measured": peak(case.device) - before, "loading": loading}
    return found | {"ratio": found["measured"] / found["planned"], "seconds": seconds, "parts": asdict(planned)}


HELD: list[Any] = []
"""Objects whose memory must not be used again."""


def tokenizer_bytes(config: Config) -> int:
    """Resident memory of the model's tokenizer, which a plan does not count."""
    if config.model.name.startswith("tiny:"):
        return 0
    before = resident("VmRSS")
    source = find_source(config.model.name, meta=True, max_length=config.model.max_length)
    HELD.append(read_tokenizer(source, None, {}))
    gc.collect()
    return resident("VmRSS") - before


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is the resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def forget_peak(device: str) -> None:
    """Start a new peak from what is in memory now."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int:
    """The peak memory since ``forget_peak``, in bytes."""
    return resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def compared(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every case in its own process."""
    found = []
    for model in options.models:
        for dtype in options.dtypes:
            for checkpointing in (False, True):
                case = {"model": model, "dtype": dtype, "checkpointing": checkpointing}
                case |= {key: getattr(options, key) for key in SHARED}
                command = [sys.executable, __file__, "--case", json.dumps(case)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
                if run.returncode:
                    raise SystemExit(f"{case}: ended with status {run.returncode}, perhaps for want of memory")
                found.append(case | json.loads(run.stdout.splitlines()[-1]))
                if not options.json:
                    print(line(found[-1]), flush=True)
    return found


def line(one: dict[str, Any]) -> str:
    """A row of the table."""
    how = "checkpointing" if one["checkpointing"] else ""
    sizes = "".join(f"{one[key] / 1e6:>10.0f}" for key in ("planned", "measured", "loading"))
    return f"{one['model']:<42}{one['dtype']:<10}{how:<15}{sizes}{one['ratio']:>8.3f}{one['seconds']:>8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of models, as in a run file")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=4, help="of language models; of encoders four times as many")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", type=json.loads, help="measure only this case (JSON), in this process")
    options = parser.parse_args()
    if options.case:
        encoder = "sentence-transformers/" in options.case["model"] or "bert" in options.case["model"]
        task = "sequence-classification" if encoder else "causal-lm"
        case = options.case | {"task": task, "rows": options.case["rows"] * (4 if encoder else 1)}
        print(json.dumps(measured(argparse.Namespace(**case))))
        return
    if not options.json:
        heads = "".join(f"{name:>10}" for name in ("plan, MB", "peak, MB", "loading"))
        print(f"{'model':<42}{'dtype':<10}{'':<15}{heads}{'ratio':>8}{'s':>8}")
    found = compared(options)
    if options.json:
        print(json.dumps(found, indent=2))
    if missed := [one for one in found if abs(one["ratio"] - 1) > TARGET]:
        sys.exit(f"{len(missed)} of {len(found)} cases are more than {TARGET:.0%} from the plan")


if __name__ == "__main__":
    main()
