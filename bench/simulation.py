"""A round of local training in one process: fedquilt in turn and side by side, a bare loop, and other people's ways.

All arms make the same optimiser steps on the same batches from the same start. They take turns in one process, and each
ratio is of one turn, because other programs use the processors too. Losses of all arms that train the same tensors are
compared; nothing is printed if they differ.

- ``in turn``, ``side by side``, ``auto``: fedquilt's embedded engine, ``send`` and the server's merge.
- ``prefix cache``: fedquilt in turn with ``engine.prefix_cache``, where clients train several epochs.
- ``bare loop``: PyTorch without checks, counts and averages, on the same modules.
- ``Flower``: the same loop in a ClientApp of Flower that keeps its model, called in this process, with its messages but
  without Ray: less than a simulation does. Skipped where Flower is not installed.
- ``released``: as Fed-HeLLo's released code does it: a deep copy of the model for each client, gradients of all
  adapters with learning rate 0 where nothing is to be learned, and the whole state dict as the result.

With ``--whole`` every arm is a run of its own, from the start of its process, see ``arms/whole.py``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from arms.whole import ARMS
from arms.whole import measured as whole_runs
from arms.whole import table as whole_table
from overhead import Clock, spread
from real import text_model, text_rows
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedquilt.client.client import Client
from fedquilt.client.fit import batches
from fedquilt.config.load import parse
from fedquilt.core.types import ClientId, Order, Turn
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.side_by_side import chosen

GOALS = {4: 2.3, 16: 1.5}
"""How many times as fast as the bare loop side by side is to be, by batch size, for the ViT with equal clients."""

Params = dict[str, Tensor]
Arm = Callable[[Mapping[ClientId, Order]], dict[ClientId, float]]
"""Trains all clients of a round; returns their mean losses."""

VIT = "tiny:vit?layers=12&width=64&image=28&patch=7"
SETTINGS: dict[str, dict[str, Any]] = {
    "equal": {"training": {"steps": 10}},
    "unequal": {
        "clients": {"budgets": [6, 9, 12]},
        "partition": {"scheme": "dirichlet", "alpha": 1.0},
        "training": {"epochs": 3},
        "data": {"limit": 600},
        "method": {"name": "fed-hello", "allocation": "gd"},
    },
    "upper": {
        "clients": {"budgets": [3, 6], "shares": "1-1"},
        "training": {"epochs": 3},
        "data": {"limit": 600},
        "method": {"name": "fed-hello", "allocation": "gd", "shape": "inverted-triangle"},
    },
    "text": {
        "model": {"task": "sequence-classification", "max_length": 64},
        "clients": {"budgets": [6]},
        "training": {"steps": 4},
    },
}


def experiment_of(setting: str, batch_size: int, folder: Path) -> Experiment:
    """Ten clients, all in every round; rows are the bundled digits, or sentences of unlike lengths."""
    keys: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "rounds": 100,
        "model": {"name": VIT, "task": "image-classification"},
        "data": {"source": "sklearn:digits"},
        "partition": {"scheme": "iid", "num_clients": 10},
        "clients": {"shares": "1", "budgets": [12]},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {"batch_size": batch_size, "learning_rate": 1e-3},
        "method": {"name": "full"},
        "engine": {"batch_clients": "auto"},
    }
    for section, own in SETTINGS[setting].items():
        keys[section] = {**keys[section], **own}
    if setting == "unequal":
        del keys["clients"]["shares"]
    if setting == "text":
        keys["model"] = {**keys["model"], "name": text_model()}
        keys["data"] = {"source": str(folder / "sentences.jsonl"), "text": "text", "label": "label"}
        rows = text_rows(600)
        lines = (json.dumps({"text": text, "label": label}) for text, label in zip(*rows.values(), strict=True))
        (folder / "sentences.jsonl").write_text("".join(line + "\n" for line in lines))
    return build(parse(keys))


class Round:
    """What all arms share: the experiment, its first state, and the orders of a round."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.method = experiment, experiment.method
        self.state = self.method.init(experiment.rng.child("init"))
        self.exchange = self.method.exchanges[-1]

    def orders(self, number: int) -> dict[ClientId, Order]:
        turn = Turn(number, self.experiment.federation.profiles, self.experiment.rng.child("round", number))
        asked = self.exchange.ask(self.state, turn)
        return {id: replace(order, rng=turn.rng.child("client", id)) for id, order in asked.items()}

    def fedquilt(self, width: int, prefix_bytes: int = 0) -> Arm:
        engine, (group, *_) = LocalEngine(self.experiment.clients), self.experiment.groups
        engine.width = width

        def arm(orders: Mapping[ClientId, Order]) -> dict[ClientId, float]:
            group.bench.prefix_bytes = prefix_bytes
            replies = [*engine.send(self.exchange, orders)]
            self.exchange.merge(self.state, replies)
            assert not engine.in_turn, engine.in_turn
            return {reply.client: reply.metrics["loss"] for reply in replies}

        return arm


def names_of(client: Client, order: Order) -> set[str]:
    """The tensors that a client trains."""
    return {*client.bench.layout.names(order.settings["layers"]), *client.bench.layout.head}


def steps_of(client: Client, order: Order) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The model's inputs and the labels of each step, as fedquilt draws them."""
    for rows in batches(len(client.train["labels"]), client.training, order.rng.child("batches")):
        batch = {name: column[rows] for name, column in client.train.items()}
        yield client.bench.prepare(batch), batch["labels"]


def trained(model: nn.Module, groups: list[dict[str, Any]], client: Client, order: Order) -> float:
    """Make a client's steps on a model, and return the mean loss."""
    optimizer, loss_sum, seen = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0), 0.0, 0
    model.train()
    with order.rng.child("dropout").scope():
        for inputs, labels in steps_of(client, order):
            optimizer.zero_grad()
            loss = cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum, seen = loss_sum + loss.item() * len(labels), seen + len(labels)
    model.eval()
    return loss_sum / seen


def put(tensors: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], names: set[str]) -> list[nn.Parameter]:
    """Set the tensors, and let only the named ones have gradients."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
            tensor.requires_grad_(name in names)
            tensor.grad = None
    return [tensor for name, tensor in tensors.items() if name in names]


def bare(experiment: Experiment) -> Arm:
    """The loop on a copy of the model."""
    model, tensors = copied(experiment)

    def arm(orders: Mapping[ClientId, Order]) -> dict[ClientId, float]:
        told = {}
        for id, order in orders.items():
            client = experiment.clients[id]
            own = put(tensors, order.params, names_of(client, order))
            told[id] = trained(model, [{"params": own}], client, order)
            _ = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return told

    return arm


def released(experiment: Experiment) -> Arm:
    """Fed-HeLLo's released way."""
    model, _ = copied(experiment)

    def arm(orders: Mapping[ClientId, Order]) -> dict[ClientId, float]:
        told = {}
        for id, order in orders.items():
            client, own = experiment.clients[id], copy.deepcopy(model)
            tensors = {name: own.get_parameter(name) for name in client.bench.parameters}
            put(tensors, order.params, {*tensors})
            names = names_of(client, order)
            groups = [{"params": [tensor], "lr": 1e-3 if name in names else 0.0} for name, tensor in tensors.items()]
            told[id] = trained(own, groups, client, order)
            _ = copy.deepcopy(own.state_dict())
        return told

    return arm


def flower(experiment: Experiment) -> Arm:
    """The loop in a ClientApp of Flower, called with its messages in this process."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as in a process of a run
    model, tensors = copied(experiment)
    app, now = ClientApp(), dict[ClientId, Order]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        id = int(context.node_config["partition-id"])
        client, order = experiment.clients[id], now[id]
        own = put(tensors, message.content["arrays"].to_torch_state_dict(), names_of(client, order))
        loss = trained(model, [{"params": own}], client, order)
        found = {name: tensor.detach() for name, tensor in tensors.items()}
        metrics = MetricRecord({"loss": loss, "num-examples": len(client.train["labels"])})
        return Message(RecordDict({"arrays": ArrayRecord(found), "metrics": metrics}), reply_to=message)

    def arm(orders: Mapping[ClientId, Order]) -> dict[ClientId, float]:
        now.update(orders)
        told = {}
        for id, order in orders.items():
            sent = RecordDict({"arrays": ArrayRecord(dict(order.params))})
            message = Message(sent, dst_node_id=id + 1, message_type="train")
            context = Context(1, id + 1, {"partition-id": id}, RecordDict(), {})
            reply = app(message, context)
            _ = reply.content["arrays"].to_torch_state_dict()
            told[id] = float(reply.content["metrics"]["loss"])
        return told

    return arm


def copied(experiment: Experiment) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy of the model, and its trainable parameters."""
    bench = experiment.clients[0].bench
    model = copy.deepcopy(bench.model)
    return model, {name: model.get_parameter(name) for name in bench.parameters}


def arms_of(shared: Round, setting: str, only_ours: bool) -> tuple[dict[str, Arm], str]:
    """The arms by name, and what ``auto`` has chosen."""
    experiment, choice = shared.experiment, chosen(shared.experiment)
    arms = {"in turn": shared.fedquilt(1), "side by side": shared.fedquilt(10), "auto": shared.fedquilt(choice.width)}
    if "epochs" in SETTINGS[setting].get("training", {}):
        arms["prefix cache"] = shared.fedquilt(1, 2**30)
    if not only_ours:
        arms |= {"bare loop": bare(experiment), "released": released(experiment)}
        if find_spec("flwr"):
            arms["Flower"] = flower(experiment)
        else:
            print("Flower is not installed, so that its arm is left out", file=sys.stderr)
    return arms, choice.said


def measured(experiment: Experiment, setting: str, repeats: int, only_ours: bool) -> dict[str, Any]:
    """Seconds of a round by arm, and their ratios to the bare loop, or to fedquilt in turn without other arms."""
    shared, clock = Round(experiment), Clock()
    arms, said = arms_of(shared, setting, only_ours)
    seconds: list[dict[str, dict[str, float]]] = []
    difference = 0.0
    for number in range(repeats + 1):  # the first is warm-up
        orders, took, losses = shared.orders(number), {}, {}
        for name in [*arms][:: 1 if number % 2 else -1]:
            clock.start()
            losses[name] = arms[name](orders)
            took[name] = clock.stop()
        for told in losses.values():
            difference = max(difference, *(abs(told[id] - losses["in turn"][id]) for id in told))
        seconds += [took] if number else []
    if difference > 1e-3:
        raise SystemExit(f"the arms do not make the same steps: a client's mean loss differs by {difference}")
    against = "in turn" if only_ours else "bare loop"
    ratios = {
        name: {kind: spread([took[against][kind] / took[name][kind] for took in seconds]) for kind in ("cpu", "wall")}
        for name in arms
    }
    faster = spread([took["in turn"]["cpu"] / took["auto"]["cpu"] for took in seconds])
    times = {name: {kind: spread([t[name][kind] for t in seconds]) for kind in ("cpu", "wall")} for name in arms}
    return {"against": against, "times": times, "ratios": ratios, "auto": said, "auto_gain": faster}


def table(setting: str, batch_size: int, result: Mapping[str, Any]) -> str:
    """What was measured, as a table of Markdown."""

    def cell(values: Mapping[str, float]) -> str:
        return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"

    head = f"| {setting}, batch {batch_size} | CPU s a round | times as fast as {result['against']}, CPU | wall |"
    lines = [head, "|---|---|---|---|"]
    for name, ratios in result["ratios"].items():
        cpu = result["times"][name]["cpu"]["median"]
        lines.append(f"| {name} | {cpu:.2f} | {cell(ratios['cpu'])} | {cell(ratios['wall'])} |")
    return "\n".join([*lines, "", f"auto: {result['auto']}; in the round {cell(result['auto_gain'])} times in turn"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="equal")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-ours", action="store_true", help="leave out the arms of others")
    parser.add_argument("--whole", action="store_true", help="whole runs, among them Flower's simulation and pfl")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="with --whole: only these")
    parser.add_argument("--rounds", type=int, default=4, help="with --whole: the rounds of a run")
    parser.add_argument("--pfl", type=Path, default=Path(".overhead-pfl"), help="the environment of pfl, made if new")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.whole:
        whole = whole_runs(options.batch_size, options.repeats, options.rounds, options.arms, options.pfl)
        print(json.dumps(whole, indent=1) if options.json else whole_table(whole))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(options.setting, options.batch_size, Path(folder))
        result = measured(experiment, options.setting, options.repeats, options.only_ours)
    print(json.dumps(result, indent=1) if options.json else table(options.setting, options.batch_size, result))
    goal = GOALS.get(options.batch_size) if options.setting == "equal" and not options.only_ours else None
    return int(goal is not None and result["ratios"]["side by side"]["cpu"]["median"] < goal)


if __name__ == "__main__":
    sys.exit(main())
