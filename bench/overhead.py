"""Time and memory of local training, as ratios measured in one process and one run.

1. Overhead: a round of ``fedquilt run`` (the embedded engine with its record and checkpoint, without evaluation)
   against a plain PyTorch loop that makes the same optimiser steps on the same batches of rows from the same start.
   Target: 1.05.
2. Depth: a client that trains the top third of the layers against the same client, same steps, all layers.
   Target: 0.75 of the seconds; peak memory of both is reported.

Compared measurements alternate (round by round, client by client), each ratio is of adjacent measurements, and the
target is on the median of the ratios. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedquilt.client.client import Client
from fedquilt.client.fit import batches
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import run
from fedquilt.models.hf import load_model

OVERHEAD_TARGET, DEPTH_TARGET = 1.05, 0.75
Params = dict[str, Tensor]
Step = tuple[dict[str, Tensor], Tensor]  # the model's inputs and the labels of one batch


def config_of(options: argparse.Namespace, folder: Path) -> Config:
    """All clients take part in every round, all of them train all layers, and only the last round is evaluated."""
    if options.task == "image-classification":
        data = {"source": "sklearn:digits"}
    else:
        data = {"source": str(_sentences(folder / "sentences.jsonl")), "text": "text", "label": "label"}
    return parse(
        {
            "seed": 1,
            "threads": options.threads,
            "device": "cpu",
            "rounds": options.rounds + 2,  # the first is warm-up, the last is evaluated; neither is counted
            "model": {"name": options.model, "task": options.task, "max_length": 32},
            "data": data,
            "partition": {"scheme": "iid", "num_clients": options.clients},
            "clients": {"shares": "1", "budgets": [1]},
            "adapter": {"rank": 8, "alpha": 16},
            "training": {"steps": options.steps, "batch_size": options.batch_size, "learning_rate": 1e-3},
            "evaluation": {"every": options.rounds + 2, "last": 1, "limit": 64, "clients": False},
            "method": {"name": "full"},
        }
    )


def _sentences(path: Path, rows: int = 1200) -> Path:
    """A file of made-up sentences: what they say is no matter, their lengths are like those of short reviews."""
    words, draw = ("the", "film", "plot", "was", "never", "dull", "and", "bright", "but", "slow"), random.Random(1)
    lines = [
        {"text": " ".join(draw.choices(words, k=draw.randint(4, 9))), "label": number % 2} for number in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Loop:
    """A hand-written PyTorch loop with its own copy of the model and nothing but the training steps."""

    def __init__(self, name: str, model: nn.Module, tensors: Mapping[str, nn.Parameter], learning_rate: float) -> None:
        self.name, self.model, self.tensors, self.learning_rate = name, model.train(), dict(tensors), learning_rate
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)

    def client(self, start: Params, steps: Iterable[Step]) -> tuple[Params, list[float]]:
        """The tensors after the client's steps, and the mean loss of each step."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(start[name])
        optimizer = torch.optim.AdamW(self.tensors.values(), lr=self.learning_rate, weight_decay=0.0)
        losses = []
        for inputs, labels in steps:
            optimizer.zero_grad()
            logits = self.model(**inputs).logits
            if labels.dim() > 1:
                logits, labels = logits[:, :-1], labels[:, 1:]
            loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}, losses


def loops(config: Config, experiment: Experiment, with_peft: bool) -> list[Loop]:
    """The loop on the same modules that fedquilt trains, and if wanted one on PEFT's."""
    rate, bench = config.training.learning_rate, experiment.clients[0].bench
    found = [Loop("PyTorch loop", bench.model, bench.parameters, rate)]
    if with_peft:
        import peft

        loaded, lora = _loaded(config, experiment), experiment.only.put.settings
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=list(lora.targets))
        model = peft.get_peft_model(loaded.model, settings)
        parameters = dict(model.named_parameters())
        tensors = {
            name: parameters[f"base_model.model.{name}{'' if name in loaded.head else '.default.weight'}"]
            for name in bench.parameters
        }
        found.append(Loop("PyTorch loop on PEFT", model, tensors, rate))
    return found


def _loaded(config: Config, experiment: Experiment) -> Any:
    model = config.model
    classes = len(experiment.partition["classes"]) or None
    rng = experiment.rng.child("model")
    return load_model(model.name, model.task, num_classes=classes, rng=rng, max_length=model.max_length)


def steps_of(client: Client, round: int, rng: Rng) -> Iterator[Step]:
    """The batches that fedquilt draws for this client in this round, from its rows to the model's inputs."""
    stream = rng.child("round", round).child("client", client.id, "fit").sealed().child("batches")
    for rows in batches(len(client.train["labels"]), client.training, stream):
        batch = {name: column[rows] for name, column in client.train.items()}
        inputs, labels = client.bench.prepare(batch), batch["labels"]
        yield inputs, labels[:, : inputs["input_ids"].shape[1]] if labels.dim() > 1 else labels


class Clock:
    """Wall and processor seconds since ``start``."""

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


class Alternating(Silent):
    """Runs every loop's round after each round of fedquilt; keeps the seconds, and checks that the losses agree."""

    def __init__(self, experiment: Experiment, peers: list[Loop], rounds: int, ready: bool) -> None:
        self.experiment, self.peers, self.rounds, self.ready = experiment, peers, rounds, ready
        self.seconds: list[dict[str, dict[str, float]]] = []
        self.params: Params = experiment.method.init(experiment.rng.child("init"))["params"]
        self.largest_difference = 0.0
        self.clock = Clock()

    def started(self, name: str, first: int, rounds: int) -> None:
        self.clock.start()

    def round(self, line: Mapping[str, Any]) -> None:
        """Called when round ``line["round"]`` is in the record and its checkpoint on the disk."""
        took = {"fedquilt": self.clock.stop()}
        took["fedquilt"]["record"] = took["fedquilt"]["wall"] - line["seconds"] - line["evaluation_seconds"]
        made = {id: list(steps) for id, steps in self._work(line["round"])}
        for loop in self.peers if line["round"] % 2 else self.peers[::-1]:
            self.clock.start()
            work = made.items() if self.ready else self._work(line["round"])
            done = {id: loop.client(self.params, steps) for id, steps in work}
            took[loop.name] = self.clock.stop()
            told = line["exchanges"][0]["clients"]
            for id, (_, losses) in done.items():
                counts = [self.experiment.clients[id].bench.scoring.num_labels(labels) for _, labels in made[id]]
                loss = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
                off = abs(loss - told[str(id)]["metrics"]["loss"])
                self.largest_difference = max(self.largest_difference, off)
        if 0 < line["round"] <= self.rounds:
            self.seconds.append(took)
        self.params = self._mean({id: params for id, (params, _) in done.items()})
        self.clock.start()

    @property
    def clients(self) -> dict[int, Client]:
        return self.experiment.clients

    def _work(self, round: int) -> Iterator[tuple[int, Iterable[Step]]]:
        for id, client in self.clients.items():
            yield id, steps_of(client, round, self.experiment.rng)

    def _mean(self, params: dict[int, Params]) -> Params:
        weights = {id: self.clients[id].profile.num_examples for id in params}
        total = sum(weights.values())
        return {
            name: torch.stack([weights[id] / total * own[name].double() for id, own in params.items()]).sum(0).float()
            for name in self.params
        }


def overhead(options: argparse.Namespace, config: Config, folder: Path) -> dict[str, Any]:
    """Ratios of a fedquilt round to each loop's round, and where fedquilt's seconds went."""
    experiment = build(config)
    peers = loops(config, experiment, options.peft)
    seconds, difference = [], 0.0
    for repeat in range(options.repeats):
        watch = Alternating(experiment, peers, options.rounds, options.ready)
        run(config, folder / f"run-{repeat}", watch)
        seconds += watch.seconds
        difference = max(difference, watch.largest_difference)
    if difference > 1e-3:
        raise SystemExit(f"the loops do not make fedquilt's steps: a client's mean loss differs by {difference}")
    return {
        "seconds_per_round": {
            name: {kind: median(took[name][kind] for took in seconds) for kind in ("wall", "cpu")}
            for name in seconds[0]
        },
        "record_seconds": median(took["fedquilt"]["record"] for took in seconds),
        "largest_loss_difference": difference,
        "ratios": {
            loop.name: {
                kind: spread([took["fedquilt"][kind] / took[loop.name][kind] for took in seconds])
                for kind in ("wall", "cpu")
            }
            for loop in peers
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the values."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def top_third(num_layers: int) -> list[int]:
    return list(range(num_layers - max(1, num_layers // 3), num_layers))


def depth(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Ratio of training the top third of the layers to training all of them, same client and steps."""
    experiment = build(config)
    num_layers = experiment.layout.num_layers
    variants = {"full": list(range(num_layers)), "top third": top_third(num_layers)}
    order = Order(experiment.method.init(experiment.rng.child("init"))["params"])
    client, clock = experiment.clients[0], Clock()
    seconds: list[dict[str, dict[str, float]]] = []
    for number in range(2 + options.rounds * options.repeats):
        took = {}
        for name in list(variants) if number % 2 else list(variants)[::-1]:
            clock.start()
            client.fit(order, None, variants[name])
            took[name] = clock.stop()
        seconds.append(took)
    seconds = seconds[2:]  # warm-up
    return {
        "layers": {name: len(layers) for name, layers in variants.items()},
        "seconds": {
            name: {kind: median(t[name][kind] for t in seconds) for kind in ("wall", "cpu")} for name in variants
        },
        "ratios": {
            kind: spread([took["top third"][kind] / took["full"][kind] for took in seconds]) for kind in ("wall", "cpu")
        },
        "kept_bytes": {name: kept_bytes(client, order, layers) for name, layers in variants.items()},
    }


def kept_bytes(client: Client, order: Order, layers: list[int]) -> int:
    """Bytes that autograd keeps from the forward passes of a round's largest step; the model's own are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in client.bench.model.parameters()}
    kept: dict[int, int] = {}
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def count(step: int, of: int) -> None:
        nonlocal largest
        largest = max(largest, sum(kept.values()))
        kept.clear()

    told, client.bench.stepped = client.bench.stepped, count
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            client.fit(order, None, layers)
    finally:
        client.bench.stepped = told
    return largest


def resident_bytes(variant: str) -> dict[str, int] | None:
    """Peak resident memory of a process that does nothing but train one client; None where it cannot be read."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    arguments = [sys.executable, __file__, *sys.argv[1:], "--only-resident", variant]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report_resident(config: Config, variant: str) -> None:
    """The child's part: resident bytes before training, and their peak while it lasts."""
    experiment = build(config)
    num_layers = experiment.layout.num_layers
    order = Order(experiment.method.init(experiment.rng.child("init"))["params"])
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak (VmHWM) anew
    before = _status("VmRSS")
    experiment.clients[0].fit(order, None, top_third(num_layers) if variant == "top third" else range(num_layers))
    print(json.dumps({"peak": _status("VmHWM"), "growth": _status("VmHWM") - before}))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def default_task(model: str) -> str:
    name = model.lower()
    if "vit" in name:
        return "image-classification"
    return "sequence-classification" if "bert" in name or "minilm" in name else "causal-lm"


def table(result: dict[str, Any]) -> str:
    """What was measured, for people."""
    given, over, part = result["settings"], result["overhead"], result["depth"]
    work = f"{given['clients']} clients x {given['steps']} steps of {given['batch_size']} rows"
    times = f"{given['rounds']} rounds x {given['repeats']} repeats, {given['threads']} thread(s)"
    lines = [f"{given['model']}: {work}, {times}", "", f"{'seconds per round':<34}{'wall':>9}{'cpu':>9}"]
    lines += [f"  {name:<32}{t['wall']:>9.3f}{t['cpu']:>9.3f}" for name, t in over["seconds_per_round"].items()]
    lines += [f"  {'of it, record and checkpoint':<32}{over['record_seconds']:>9.3f}", ""]
    lines += [f"{'ratio':<34}{'median':>9}{'min':>9}{'max':>9}{'target':>9}"]

    def ratio(name: str, values: Mapping[str, float], target: float | None) -> str:
        wanted = f"{target:>9.2f}{'' if values['median'] <= target else '  MISSED'}" if target else ""
        return f"  {name:<32}{values['median']:>9.3f}{values['min']:>9.3f}{values['max']:>9.3f}{wanted}"

    for index, (name, kinds) in enumerate(over["ratios"].items()):
        lines.append(ratio(f"fedquilt / {name}", kinds["wall"], None if index else OVERHEAD_TARGET))
        lines.append(ratio("    cpu", kinds["cpu"], None))
    third = part["layers"]
    name = f"top {third['top third']} of {third['full']} layers / all"
    lines += [ratio(name, part["ratios"]["wall"], DEPTH_TARGET), ratio("    cpu", part["ratios"]["cpu"], None), ""]
    lines += [f"{'memory, MB':<34}{'all':>9}{'top':>9}{'ratio':>9}"]
    rows = {"kept by autograd": part["kept_bytes"]}
    if part["resident"]:
        rows["resident, growth in training"] = {name: part["resident"][name]["growth"] for name in part["resident"]}
        rows["resident, peak of the process"] = {name: part["resident"][name]["peak"] for name in part["resident"]}
    for name, pair in rows.items():
        full, top = pair["full"] / 1e6, pair["top third"] / 1e6
        lines.append(f"  {name:<32}{full:>9.1f}{top:>9.1f}{top / full:>9.3f}")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="glyph-vit", help="glyph-vit, tiny:llama?layers=12 (and the like), or a local folder")
    add("--task", help="image-classification, sequence-classification or causal-lm; by the model's name if left out")
    add("--clients", type=int, default=6, help="clients per round")
    add("--steps", type=int, default=10, help="optimiser steps per client and round")
    add("--batch-size", type=int, default=16)
    add("--rounds", type=int, default=12, help="measured rounds in each repeat")
    add("--repeats", type=int, default=4)
    add("--threads", type=int, default=1, help="number of torch threads")
    add("--folder", default=".", help="parent of the temporary run folders; use a real disk")
    add("--ready", action="store_true", help="give the loops batches that were built before the measured time")
    add("--peft", action="store_true", help="also measure a loop on PEFT's LoRA modules, without a target")
    add("--json", action="store_true", help="print JSON")
    add("--only-resident", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peft and not find_spec("peft"):
        parser.error("--peft needs the package peft, which is not installed: pip install peft")
    options.task = options.task or default_task(options.model)
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".overhead-", dir=options.folder)))
        config = config_of(options, folder)
        if options.only_resident:
            report_resident(config, options.only_resident)
            return 0
        over, part = overhead(options, config, folder), depth(options, config)
    resident = {variant: resident_bytes(variant) for variant in part["layers"]}
    part["resident"] = resident if all(resident.values()) else None
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "only_resident", "folder")}
    versions = {"torch": torch.__version__, "processors": os.cpu_count()}
    kept = over["ratios"]["PyTorch loop"]["wall"]["median"] <= OVERHEAD_TARGET
    kept &= part["ratios"]["wall"]["median"] <= DEPTH_TARGET
    result = {"settings": settings | versions, "overhead": over, "depth": part, "targets_met": kept}
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
