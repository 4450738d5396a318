"""The plan of a vertical run is what then travels and is trained."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from parties import BY_COLUMNS

import fedquilt
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.experiment import build, run
from fedquilt.experiment.memory import afforded
from fedquilt.experiment.plan import whole_plan
from fedquilt.record import Record, read_rounds

METHODS = ("proto-evfl", "vfl-split", "vfl-local", "vfl-ensemble", "vfl-central")


def config(method: str = "proto-evfl") -> Config:
    return parse({**tomllib.loads(BY_COLUMNS), "method": {"name": method, "minibatches": 2}})


@pytest.mark.parametrize("method", METHODS)
def test_what_is_planned_is_what_then_travels(method: str, tmp_path: Path) -> None:
    planned, active = whole_plan(config(method))
    folder = run(config(method), tmp_path / "run")
    *learned, predict = read_rounds(folder)[-1]["exchanges"]
    assert [one.group for one in planned] == ["left", "right"]
    for one in planned:
        moved = [exchange["clients"].get(str(one.client)) for exchange in learned]
        down, up = (sum(own[way] for own in moved if own) for way in ("bytes_down", "bytes_up"))
        assert (one.bytes_down, one.bytes_up) == (down, up)
        tested = predict["clients"][str(one.client)]
        assert (one.evaluation_down, one.evaluation_up) == (tested["bytes_down"], tested["bytes_up"])
    _, state, memories = Record.open(folder).load_checkpoint()
    for one in planned:
        memory = memories.get(one.client, {})
        trained = [*memory.get("params", {}).values(), *([memory["prototypes"]] if memory else [])]
        assert one.trained_parameters == sum(tensor.numel() for tensor in trained)
        assert one.gradient_bytes == 4 * one.trained_parameters
        assert one.optimizer_bytes == 2 * one.gradient_bytes
    own, joint = state["own"], state["joint"]
    assert active is not None
    assert active.trained_parameters == sum(
        tensor.numel() for tensor in (*own["params"].values(), own["prototypes"], *joint.values())
    )
    assert active.peak_bytes > 0


def test_a_plan_loads_no_weights_and_shows_parties(command, tmp_path: Path) -> None:
    file = tmp_path / "vertical.toml"
    file.write_text(BY_COLUMNS)
    said = command("plan", str(file))
    assert said.code == 0
    assert all(word in said.out for word in ("left", "right", "rest (active)", "evaluation up"))
    assert "What leaves a party" not in said.out
    noised = command("plan", str(file), "disclosure.embedding_noise=0.5").out
    assert "What leaves a party: embeddings noised (0.5 times their bound); exact: gradients, prototypes" in noised
    rows = json.loads(command("plan", str(file), "--json").out)
    tested = len(build(config()).federation.vertical.test_labels)
    assert [row["evaluation_up"] for row in rows["plans"]] == [4 * 8 * tested] * 2
    assert [row["client"] for row in fedquilt.plan(file)] == [0, 1, "server"]


def test_layers_of_parties_are_not_chosen_by_memory() -> None:
    with pytest.raises(ConfigError, match="parties of a vertical federation train whole encoders"):
        afforded(config(), [1, 2])
