"""Whole runs, from the start of the process: fedquilt, a bare loop, Flower's simulation, apple's pfl, a released way.

Every arm is a process of its own that trains the same clients from the same tensors with the same steps, without
evaluation; arms take turns. Measured are the seconds until round 1 has ended, and of a later round, by the clock and in
processor time, that of all processes that an arm has started. Losses and last tensors are compared, and nothing is
printed if they differ.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
CLIENTS, STEPS, LAYERS, WIDTH, SIZE = 10, 10, 12, 64, 28
PFL = ("pfl[pytorch]==0.6.0",)
OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
ARMS: dict[str, tuple[str, ...]] = {
    "fedquilt, side by side": ("fedquilt_run", "side_by_side", '{"batch_clients": 10}'),
    "fedquilt, side by side in two processes": ("fedquilt_run", "both", '{"processes": 2, "batch_clients": 5}'),
    "fedquilt, in turn": ("fedquilt_run", "in_turn", '{"batch_clients": "off"}'),
    "bare loop on PEFT": ("bare_loop",),
    "Flower on Ray": ("flower_ray",),
    "pfl": ("apple_pfl",),
    "Fed-HeLLo's released way": ("released",),
}
FIGURES = ("first wall", "first cpu", "wall", "cpu")


def prepare(folder: Path, batch_size: int, rounds: int) -> None:
    """Write the task: model, rows, start, steps, and the run file's keys."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from fedquilt.client.fit import batches
    from fedquilt.config.load import parse
    from fedquilt.core.types import Turn
    from fedquilt.experiment.build import build

    new_model(folder / "model")
    np.savez(folder / "data.npz", **images(CLIENTS * STEPS * batch_size))
    keys: dict[str, Any] = {
        "seed": 1,
        "threads": 1,
        "device": "cpu",
        "rounds": rounds,
        "model": {"name": str(folder / "model"), "task": "image-classification"},
        "data": {"source": str(folder / "data.npz")},
        "partition": {"scheme": "iid", "num_clients": CLIENTS, "test_fraction": 0.0},
        "clients": {"cohort": CLIENTS, "shares": "1", "budgets": [LAYERS]},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {"steps": STEPS, "batch_size": batch_size, "learning_rate": 1e-3},
        "evaluation": {"every": 1000, "last": 1, "clients": False, "limit": 16},
        "method": {"name": "full"},
    }
    (folder / "fedquilt.json").write_text(json.dumps(keys))
    experiment = build(parse(keys))
    params = experiment.method.init(experiment.rng.child("init"))["params"]
    exchange = experiment.method.exchanges[-1]
    rows: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for client in range(CLIENTS):
        train = experiment.clients[client].train
        rows |= {f"pixels-{client}": train["pixel_values"][..., 0].numpy(), f"labels-{client}": train["labels"].numpy()}
    for number in range(rounds):
        turn = Turn(number, experiment.federation.profiles, experiment.rng.child("round", number))
        for client in exchange.ask({"params": params}, turn):
            own, rng = (
                experiment.clients[client],
                turn.rng.child("client", client, exchange.name).sealed().child("batches"),
            )
            drawn = batches(len(own.train["labels"]), own.training, rng)
            steps[f"{number}-{client}"] = torch.stack([next(drawn) for _ in range(STEPS)]).numpy()
    np.savez(folder / "rows.npz", **rows)
    np.savez(folder / "steps.npz", **steps)
    named = {f"base_model.model.{name}{'.weight' if 'lora' in name else ''}": value for name, value in params.items()}
    save_file(named, folder / "start.safetensors")
    settings = {"clients": CLIENTS, "rounds": rounds, "batch_size": batch_size, "learning_rate": 1e-3}
    settings |= {"rank": 8, "alpha": 16, "targets": sorted({name.split(".")[-2] for name in params if "lora" in name})}
    (folder / "task.json").write_text(json.dumps(settings))


def new_model(folder: Path) -> None:
    """A ViT with random weights, as transformers saves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(1)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 4 * WIDTH}
    images = {"image_size": SIZE, "patch_size": 7, "num_channels": 3, "num_labels": 10}
    config = ViTConfig(**shape, **images, num_attention_heads=4)
    ViTForImageClassification(config).save_pretrained(folder)
    normal = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))


def images(count: int) -> dict[str, Any]:
    """Rows of MNIST, if FEDQUILT_DATA has it; otherwise images of that size, drawn from a seed."""
    import numpy as np

    draws = np.random.default_rng(1)
    known = Path(os.environ.get("FEDQUILT_DATA", "")) / "mnist" / "mnist.npz"
    if "FEDQUILT_DATA" in os.environ and known.exists():
        with np.load(known) as found:
            chosen = draws.permutation(len(found["labels"]))[:count]  # they are not in a random order there
            return {name: found[name][chosen] for name in ("images", "labels")}
    return {"images": draws.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8), "labels": np.arange(count) % 10}


def environment_of_pfl(place: Path) -> str:
    """Python of an environment with pfl, which is made if it is not there.

    The packages of the environment that runs this are seen in it, so that all arms have the same torch; those of which
    pfl wants other versions are installed beside it.
    """
    import site

    python = place / "bin" / "python"
    if not (place / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        (own,) = place.glob("lib/python*/site-packages")
        (own / "same.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PFL], check=True)
        (place / "ready").touch()
    return str(python)


def once(folder: Path, name: str, python: str) -> dict[str, float]:
    """The figures of one arm in a new process."""
    script, *arguments = ARMS[name]
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    line = [python, str(HERE / f"{script}.py"), str(folder), *arguments]
    begin = time.time()
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **OFF, "PYTHONPATH": paths})
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    ends = json.loads((folder / f"{stem(name)}.json").read_text())["ends"]
    later = {kind: median(b[kind] - a[kind] for a, b in pairwise(ends)) for kind in ("wall", "cpu")}
    return {"first wall": ends[0]["wall"] - begin, "first cpu": ends[0]["cpu"], **later}


def stem(name: str) -> str:
    """The name of the files that an arm writes."""
    return ARMS[name][1] if len(ARMS[name]) > 1 else ARMS[name][0]


def differences(folder: Path, names: list[str]) -> dict[str, tuple[float, float]]:
    """By arm, against the first: the largest difference of a client's mean loss, and that of the last tensors.

    The latter is relative to the way from the start.
    """
    import torch
    from safetensors.torch import load_file

    start = load_file(folder / "start.safetensors")
    found = {name: load_file(folder / f"{stem(name)}.safetensors") for name in names}
    told = {name: json.loads((folder / f"{stem(name)}.json").read_text())["losses"] for name in names}
    first, apart = found[names[0]], {}
    way = torch.cat([(first[key] - start[key]).flatten() for key in start]).norm()
    for name in names:
        tensors = torch.cat([(first[key] - found[name][key]).flatten() for key in start]).norm() / way
        both = zip(told[names[0]], told[name], strict=True)
        losses = max(abs(one[client] - other[client]) for one, other in both for client in one)
        apart[name] = losses, float(tensors)
    return apart


def measured(batch_size: int, repeats: int, rounds: int, names: list[str], place: Path) -> dict[str, Any]:
    """The figures of every arm in each turn, and how far the arms differ."""
    pythons = dict.fromkeys(names, sys.executable)
    if "pfl" in names:
        pythons["pfl"] = environment_of_pfl(place)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".overhead-") as made:
        folder = Path(made)
        prepare(folder, batch_size, rounds)
        for number in range(repeats):
            for name in names[:: 1 if number % 2 else -1]:
                shutil.rmtree(folder / f"run-{stem(name)}", ignore_errors=True)
                found[name].append(once(folder, name, pythons[name]))
        apart = differences(folder, names)
    losses, tensors = (max(values) for values in zip(*apart.values(), strict=True))
    if losses > 1e-3 or tensors > 1e-2:
        raise SystemExit(f"the arms do not make the same steps; losses and tensors differ by {apart}")
    return {"batch_size": batch_size, "runs": found, "losses": losses, "tensors": tensors}


def table(result: dict[str, Any]) -> str:
    """What was measured, as tables of Markdown: seconds, and ratios to fedquilt's fast arms in the same turn."""

    def cell(values: list[float]) -> str:
        return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    def row(name: str, values: dict[str, list[float]]) -> str:
        return f"| {name} | {' | '.join(cell(values[key]) for key in FIGURES)} |"

    runs: dict[str, list[dict[str, float]]] = result["runs"]
    titles = ("round 1 ends, s", "CPU s", "a later round, s", "CPU s")
    head = f"{' | '.join(titles)} |\n|---|---|---|---|---|"
    lines = [f"| batch {result['batch_size']} | {head}"]
    lines += [row(name, {key: [run[key] for run in own] for key in FIGURES}) for name, own in runs.items()]
    for first in [name for name in runs if name.startswith("fedquilt, side by side")] or [*runs][:1]:
        lines += ["", f"| / {first} | {head}"]
        for name, own in runs.items():
            pairs = [*zip(own, runs[first], strict=True)]
            lines.append(row(name, {key: [run[key] / ours[key] for run, ours in pairs] for key in FIGURES}))
    apart = f"losses differ by {result['losses']:.1e} at most, the last tensors by {result['tensors']:.1e} of their way"
    return "\n".join([*lines, "", apart])
