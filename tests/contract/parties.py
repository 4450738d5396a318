"""A tiny vertical federation, for the tests of its methods."""

from __future__ import annotations

import tomllib
from typing import Any

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
