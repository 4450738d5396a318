"""The software versions and the machine of a run are recorded."""

from __future__ import annotations

import json

import torch

from fedquilt.record import environment


def test_the_environment_holds_versions_and_what_is_added():
    found = environment(seed=3)
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "fedquilt", "numpy", "safetensors"} <= found["versions"].keys()
    assert found["seed"] == 3
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found
