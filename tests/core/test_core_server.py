"""What a state keeps of the server's own model: draws and rates follow the round, and nothing is changed in place."""

import pytest
import torch

from fedquilt.core.errors import DivergedError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.server import (
    SERVER,
    ServerModel,
    ServerState,
    after_round,
    fit_told,
    server_fit,
    server_next,
    server_order,
    server_start,
)
from fedquilt.core.types import Layout
from fedquilt.core.worker import Fitted

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


class Training:
    """A worker whose training ends with this outcome."""

    def __init__(self, outcome):
        self.outcome = outcome

    def fit(self, order, memory, layers):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_a_training_at_the_server_that_diverges_changes_nothing_and_is_told():
    own = ServerState(params={"head.weight": torch.ones(2)}, memory={}, seed=3, round=4)
    order = server_order(own, "learn")
    done = Fitted({"head.weight": torch.zeros(2)}, 8, {"loss": 0.25, "steps": 2.0})
    assert server_fit(Training(done), order, {}, range(2)) is done
    assert fit_told("server", done) == {"server_loss": 0.25}
    failed = server_fit(Training(DivergedError("loss is nan at step 1")), order, {}, range(2))
    assert after_round(own, failed.params) == {**own, "round": 5}
    assert fit_told("server", failed) == {"server_diverged": 1.0}
    with pytest.raises(TrainingError, match="no training rows"):  # a mistake of the run file, not of a client
        server_fit(Training(TrainingError("the client has no training rows")), order, {}, range(2))
