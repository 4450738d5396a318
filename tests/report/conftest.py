"""Small run folders, written by hand as the record writes them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedquilt.report.runs import Run, read_run

CLASSES = ["zero", "one", "two", "three", "four"]
BUDGETS = [6, 9, 12]


def partition(num_clients: int, digest: str) -> dict:
    clients = []
    for client in range(num_clients):
        first, second = CLASSES[client % 5], CLASSES[(client + 2) % 5]
        train = list(range(40 * client, 40 * client + 30 + client))
        clients.append(
            {
                "id": client,
                "architecture": "vit-12x64",
                "budget": BUDGETS[client % 3],
                "task": "image-classification",
                "train": train,
                "validation": [],
                "test": [],
                "labels": {first: 20, second: 10 + client},
            }
        )
    return {"digest": digest, "classes": CLASSES, "clients": clients, "proxy": []}


def line(index: int, accuracy: float | None, clients: dict[int, float] | None = None, **more) -> dict:
    """One round in which clients 0 and 1 trained; ``accuracy`` None with no ``clients``: not evaluated."""
    evaluation = None
    if accuracy is not None or clients is not None:
        scores = None if accuracy is None else {"accuracy": accuracy, "loss": 2 - accuracy, "examples": 100}
        own = {str(c): {"accuracy": a, "loss": 2 - a, "examples": 10 * (c + 1)} for c, a in (clients or {}).items()}
        evaluation = {"global": scores, "clients": own}
    sent = {
        "0": {"bytes_down": 1000, "bytes_up": 600, "settings": {"layers": [0, 11]}, "metrics": {"loss": 2.1}},
        "1": {"bytes_down": 2000, "bytes_up": 900, "settings": {"layers": [11]}, "metrics": {"loss": 1.9}},
    }
    written = {
        "round": index,
        "seconds": 1.5,
        "learning_rate": 0.001,
        "num_layers": 12,
        "notes": [],
        "exchanges": [{"exchange": "fit", "clients": sent, "dropped": {}}],
        "evaluation": evaluation,
        "state": {},
    }
    return written | more


@pytest.fixture
def round_line():
    return line


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder and gives its path."""

    def make(
        lines: list[dict],
        *,
        folder: str = "run",
        method: str = "fed-hello",
        seed: int = 1,
        finished: bool = True,
        num_clients: int = 6,
        digest: str = "d1",
        label: str | None = None,
        **config,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        settings = {"name": "glyphs", "seed": seed, "rounds": len(lines), "method": {"name": method}} | config
        (path / "config.json").write_text(json.dumps(settings))
        around = {"python": "3.12.1", "device": "cpu", "seed": seed} | ({} if label is None else {"label": label})
        (path / "environment.json").write_text(json.dumps(around))
        (path / "partition.json").write_text(json.dumps(partition(num_clients, digest)))
        (path / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        if finished:
            result = {"rounds": len(lines), "seconds": 1.5 * len(lines), "status": "finished"}
            (path / "result.json").write_text(json.dumps(result))
        return path

    return make


@pytest.fixture
def learning_run(make_run):
    """A run that looks like a real one: a rising curve with noise, drawn layers, some dropped replies."""

    def make(method: str, seed: int, level: float, *, num_rounds: int = 20, num_clients: int = 12, **more) -> Path:
        noise = np.random.default_rng([seed, *method.encode()])
        lines = []
        for index in range(num_rounds):
            sent, lost = {}, {}
            for client in sorted(noise.choice(num_clients, size=num_clients // 2, replace=False).tolist()):
                layers = sorted(noise.choice(12, size=BUDGETS[client % 3], replace=False).tolist())
                size = 8_192 * len(layers)
                if noise.random() < 0.05:
                    lost[str(client)] = "loss is nan at step 3"
                else:
                    settings = {"layers": layers}
                    sent[str(client)] = {"bytes_down": 120_000, "bytes_up": size, "settings": settings, "metrics": {}}
            reached = level * (1 - np.exp(-(index + 1) / 6)) + 0.015 * noise.standard_normal()
            own = {c: float(np.clip(reached + 0.08 * noise.standard_normal(), 0, 1)) for c in range(num_clients)}
            evaluated = index % 2 == 1 or index == num_rounds - 1
            odds = noise.dirichlet(np.ones(12)).tolist()
            lines.append(
                line(
                    index,
                    float(reached) if evaluated else None,
                    own if evaluated else None,
                    exchanges=[{"exchange": "fit", "clients": sent, "dropped": lost}],
                    state={"probabilities": odds},
                )
            )
        folder = f"{method}-{seed}".replace(" ", "-")
        return make_run(
            lines, folder=folder, method=method, seed=seed, num_clients=num_clients, digest=f"s{seed}", **more
        )

    return make


@pytest.fixture
def made(make_run, round_line):
    """A run of the given global accuracies, every client at the same value."""

    def make(method, seed, values, **more):
        lines = [round_line(at, value, {0: value, 1: value}) for at, value in enumerate(values)]
        return read_run(make_run(lines, folder=f"{method}-{seed}", method=method, seed=seed, **more))

    return make


@pytest.fixture
def groups(made):
    return {
        "fedit": [made("fedit", seed, [0.1, value]) for seed, value in ((1, 0.50), (2, 0.60), (3, 0.55))],
        "ours": [made("ours", seed, [0.1, value]) for seed, value in ((1, 0.53), (2, 0.64), (3, 0.60))],
        "noisy": [made("noisy", seed, [0.1, value]) for seed, value in ((1, 0.60), (2, 0.50), (3, 0.58))],
        "short": [made("short", seed, [0.1, value]) for seed, value in ((1, 0.90), (2, 0.95))],
    }


def scores(accuracy):
    return None if accuracy is None else {"accuracy": accuracy, "loss": 1 - accuracy, "examples": 10}


def run_of_groups(tmp_path, seed, rounds, labels=("vit", "bert")):
    """A run of two clients a group; each round gives, by group, the global accuracy and those of its clients."""
    clients = [{"id": 2 * at + k, "group": label, "train": []} for at, label in enumerate(labels) for k in range(2)]
    lines = []
    for number, groups in enumerate(rounds):
        own = {str(2 * at + k): scores(groups[label][1 + k]) for at, label in enumerate(labels) for k in range(2)}
        evaluation = {
            "global": None,
            "groups": {label: scores(groups[label][0]) for label in labels},
            "clients": {id: one for id, one in own.items() if one},
        }
        lines.append({"round": number, "seconds": 1.0, "exchanges": [], "evaluation": evaluation, "state": {}})
    config = {"seed": seed, "method": {"name": "fedit"}, "groups": [{"label": label} for label in labels]}
    return Run(tmp_path / str(seed), config, {}, {"clients": clients, "digest": "d"}, tuple(lines), {})


@pytest.fixture
def grouped(tmp_path):
    """``grouped(seed, rounds)``: a run of groups, see ``run_of_groups``."""
    return partial(run_of_groups, tmp_path)
