"""A tiny vertical federation, for the tests of its methods."""

from __future__ import annotations

import tomllib
from typing import Any

from promises import Setup

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.experiment import build

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


def apart_by_columns(name: str, **method: Any) -> Setup:
    """The federation with this method."""
    made = build(parties_config(name, **method))
    return Setup(made.method, made.federation.profiles, made.clients)
