"""A tiny vertical federation, for the tests of its methods."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import torch
from promises import Setup

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, PROTOTYPES
from fedquilt.experiment import build
from fedquilt.methods import traits_of

FILE = """
rounds = 3
threads = 1
device = "cpu"
model = { name = "tiny:vit?layers=2&width=16&image=8&patch=4", task = "image-classification" }
data = { source = "sklearn:digits", limit = 200 }
partition = { scheme = "vertical", aligned = 16, unaligned = 20, width = 8 }
adapter = { rank = 2 }
training = { steps = 1, batch_size = 8, learning_rate = 0.01 }
evaluation = { every = 2, last = 1 }

[[parties]]
label = "left"
view = ["left"]

[[parties]]
label = "right"
view = ["right"]
labelled = false

[[parties]]
label = "top"
view = ["top"]
model = { name = "tiny:vit?layers=1&width=24&image=8&patch=4", task = "image-classification" }

[[parties]]
label = "bottom"
view = ["bottom"]
"""


BY_COLUMNS = """
rounds = 2
threads = 1
device = "cpu"
model = { name = "mlp?layers=1&width=16", task = "tabular-classification" }
data = { source = "sklearn:digits", limit = 300 }
partition = { scheme = "vertical", aligned = 24, unaligned = 40, width = 8 }
adapter = { kind = "full" }
training = { steps = 4, batch_size = 8, learning_rate = 0.01 }
evaluation = { every = 2, last = 1 }
method = { name = "proto-evfl", minibatches = 2 }

[[parties]]
label = "left"
columns = ["image_?_[0-3]"]

[[parties]]
label = "right"
columns = ["image_?_[45]"]
model = { name = "mlp?layers=2&width=24", task = "tabular-classification" }

[[parties]]
label = "rest"
columns = ["image_?_[67]"]
"""
"""Three parties with columns of a table, one of which has another encoder."""


def parties_config(name: str, **method: Any) -> Config:
    """The run file with this method."""
    return parse({**tomllib.loads(FILE), "method": {"name": name, **method}})


def noises_of(name: str, **more: Any) -> dict[str, Any]:
    """A table [disclosure] with noise on all that leaves a party with this method, from a key for tests."""
    noises = {EMBEDDINGS: "embedding_noise", PROTOTYPES: "prototype_noise", COUNTS: "count_noise"}
    table: dict[str, Any] = {noises[kind]: 0.3 for kind in traits_of(name).discloses if kind in noises}
    table |= {"count_noise": 2.0} if "count_noise" in table else {}
    return {**table, "gradient_clip": 0.5, "gradient_noise": 0.3, "test_key": 11, **more}


def noised_config(name: str, **more: Any) -> Config:
    """The run file with this method, and with noise on all that leaves a party."""
    return parse({**tomllib.loads(FILE), "method": {"name": name}, "disclosure": noises_of(name, **more)})


def noised_by_columns(name: str) -> Setup:
    """The federation with this method, and with noise on all that leaves a party."""
    made = build(noised_config(name))
    return Setup(made.method, made.federation.profiles, made.clients)


def apart_by_columns(name: str, **method: Any) -> Setup:
    """The federation with this method."""
    made = build(parties_config(name, **method))
    return Setup(made.method, made.federation.profiles, made.clients)


FILES = """
rounds = 2
threads = 1
device = "cpu"
model = { name = "mlp?layers=1&width=16", task = "tabular-classification" }
data = { source = "FOLDER/{party}.csv", classes = ["no", "yes"] }
partition = { scheme = "vertical", id = "customer", alignment = "keyed-hash", key_file = "FOLDER/key", width = 4 }
adapter = { kind = "full" }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
method = { name = "METHOD", minibatches = 2 }
parties = [{ label = "shop" }, { label = "insurer", columns = ["claims", "car"] }, { label = "bank" }]
"""
"""Three parties with files of their own."""


def write_files(folder: Path) -> Path:
    """Write the files of three parties, which hold other columns of overlapping customers in other orders."""
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(200, generator=rng)
    held = {"shop": range(0, 100), "insurer": range(60, 160), "bank": range(0, 160)}
    order = {name: torch.randperm(len(rows), generator=rng).tolist() for name, rows in held.items()}
    noise = torch.randn(3, 200, generator=rng) * 0.1
    columns = {
        "shop": lambda row: f"{hidden[row] + noise[0, row]:.4f},{row % 5}",
        "insurer": lambda row: f"{hidden[row] + noise[1, row]:.4f},{'red' if row % 3 else 'blue'},7",
        "bank": lambda row: f"{hidden[row] + noise[2, row]:.4f},{'yes' if hidden[row] > 0 else 'no'}",
    }
    heads = {"shop": "visits,day", "insurer": "claims,car,idle", "bank": "income,label"}
    for name, rows in held.items():
        lines = [f"C{row:04d},{columns[name](row)}" for row in (rows[place] for place in order[name])]
        (folder / f"{name}.csv").write_text("\n".join([f"customer,{heads[name]}", *lines]) + "\n")
    (folder / "key").write_text("a key that all three parties have been given by hand")
    return folder


def new_customers(folder: Path) -> Path:
    """Write the files ``new-PARTY.csv``, where the bank has customers that the shop or the insurer does not have."""
    for name, rows in (("shop", range(100)), ("insurer", range(60, 160)), ("bank", range(30, 160))):
        head, *lines = (folder / f"{name}.csv").read_text().splitlines()
        chosen = [line for line in lines if int(line[1:5]) in rows and int(line[1:5]) % 3 != 1]
        if name == "bank":  # nobody knows their labels
            head, *chosen = (line.rpartition(",")[0] for line in (head, *chosen))
        (folder / f"new-{name}.csv").write_text("\n".join([head, *chosen]) + "\n")
    return folder


def of_files(folder: Path, method: str = "proto-evfl", **changes: Any) -> Config:
    raw = tomllib.loads(FILES.replace("FOLDER", str(folder)).replace("METHOD", method))
    return parse({**raw, **changes})
