"""What a state keeps of the server's own model: draws and rates follow the round, and nothing is changed in place."""

import torch

from fedquilt.core.rng import Rng
from fedquilt.core.server import SERVER, ServerModel, after_round, server_next, server_order, server_start
from fedquilt.core.types import Layout

LAYOUT = Layout("large", 1, {"a": 0, "b": None}, {"a": (2,), "b": (3,)})
SERVED = ServerModel(LAYOUT, lambda rng: {"a": torch.rand(2, generator=rng.torch()), "b": torch.zeros(3)}, object())


def test_the_start_follows_from_the_stream_alone():
    one, other = (server_start(SERVED, Rng(3).child("init")) for _ in range(2))
    assert torch.equal(one["params"]["a"], other["params"]["a"])
    assert (one["seed"], one["round"], one["memory"]) == (other["seed"], 0, {})
    assert server_start(SERVED, Rng(4).child("init"))["seed"] != one["seed"]
    assert SERVED.architecture == "large"
    assert SERVER == -1


def test_draws_are_of_the_round_and_the_use():
    own = server_start(SERVED, Rng(3))
    later = after_round(own, {"b": torch.ones(3)}, {"steps": 2})
    streams = [server_order(state, use).rng.integer() for state in (own, later) for use in ("fit", "write")]
    assert len(set(streams)) == 4
    assert server_order(own, "fit").rng == server_order(server_next(own, {"b": torch.ones(3)}), "fit").rng
    assert (server_order(later, "fit").round, later["round"], own["round"]) == (1, 1, 0)
    assert torch.equal(later["params"]["a"], own["params"]["a"])
    assert torch.equal(later["params"]["b"], torch.ones(3))
    assert torch.equal(own["params"]["b"], torch.zeros(3))
    assert (later["memory"], own["memory"]) == ({"steps": 2}, {})
