"""A method as a Flower Strategy in any ServerApp."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, Result, Strategy
from in_process_grid import InProcessGrid, app_of, cards_of
from promises import Setup, play, same
from small_federation import small
from toys import fedavg_setup, groups_setup

from fedquilt.core.errors import FedquiltError
from fedquilt.core.rng import Rng
from fedquilt.engine.flower.strategy import MethodStrategy
from fedquilt.methods import METHODS


def strategy_and_grid(setup: Setup, folder, **more) -> tuple[MethodStrategy, InProcessGrid]:
    grid = InProcessGrid(app_of(setup.method, setup.profiles, setup.clients, folder), len(setup.profiles))
    return MethodStrategy(setup.method, setup.profiles, cards_of(setup.method, setup.profiles), Rng(5), **more), grid


def test_it_is_a_strategy_and_start_gives_flowers_result(tmp_path):
    strategy, grid = strategy_and_grid(fedavg_setup(), tmp_path)
    seen = []

    def scored(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(number)
        return MetricRecord({"norm": float(sum((array.numpy() ** 2).sum() for array in arrays.values()))})

    result = strategy.start(grid, num_rounds=2, evaluate_fn=scored)
    embedded = play(fedavg_setup(), num_rounds=2)
    assert isinstance(strategy, Strategy)
    assert isinstance(result, Result)
    assert same(strategy.state, embedded.states[-1])
    arrays = {name: torch.from_numpy(array.numpy().copy()) for name, array in result.arrays.items()}
    assert same(arrays, embedded.states[-1]["params"])
    assert seen == [0, 1, 2]
    assert [*result.evaluate_metrics_serverapp] == [0, 1, 2]
    losses = [metrics["loss"] for metrics in embedded.traffic[1][0].metrics.values()]
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(sum(losses) / 4)
    assert strategy.engine.messages == {"query.hello": 4, "train.fit": 8}


def test_clients_with_different_tensors_run_where_flowers_own_strategies_refuse(tmp_path):
    strategy, grid = strategy_and_grid(groups_setup(), tmp_path)
    strategy.start(grid, num_rounds=2)
    assert same(strategy.state, play(groups_setup(), num_rounds=2).states[-1])


def test_a_real_method_in_someones_own_serverapp(tmp_path):
    scene = small(budgets=(1, 2), sizes=(5, 6))
    setup = Setup(METHODS["fedra"](scene.federation), scene.federation.profiles, scene.clients)
    strategy, grid = strategy_and_grid(setup, tmp_path, cohorts=lambda number: setup.profiles[:1], quorum=1.0)
    result = strategy.start(grid, num_rounds=1, timeout=5)
    assert set(result.arrays) == set(scene.layout.shapes)
    assert strategy.engine.messages["train.fit"] == 1


def test_rounds_can_start_from_a_state_that_was_kept(tmp_path):
    strategy, grid = strategy_and_grid(fedavg_setup(), tmp_path / "a", run="beef" * 4)
    whole = [done.state for done in strategy.rounds(grid, 3)]
    strategy, grid = strategy_and_grid(fedavg_setup(), tmp_path / "b", run="beef" * 4)
    (last,) = [done.state for done in strategy.rounds(grid, 3, state=whole[1], start=2)]
    assert same(last, whole[2])


@pytest.mark.parametrize(
    "more",
    [
        {"initial_arrays": ArrayRecord([torch.ones(1).numpy()])},
        {"train_config": ConfigRecord({"lr": 0.1})},
        {"evaluate_config": ConfigRecord({"lr": 0.1})},
    ],
)
def test_what_a_method_has_no_use_for_is_not_ignored(more, tmp_path):
    strategy, grid = strategy_and_grid(fedavg_setup(), tmp_path)
    with pytest.raises(FedquiltError, match=f"{next(iter(more))} is given, but the method toy-fedavg makes its own"):
        strategy.start(grid, **more)
    assert grid.calls == []


def test_a_wrapper_that_would_take_the_round_apart_is_refused(tmp_path):
    strategy, grid = strategy_and_grid(fedavg_setup(), tmp_path)
    wrapped = DifferentialPrivacyServerSideFixedClipping(strategy, 1.0, 1.0, 2)
    with pytest.raises(FedquiltError, match="configure_train was called on fedquilt's strategy"):
        wrapped.start(grid, ArrayRecord([torch.ones(1).numpy()]), num_rounds=1)
    for name, arguments in {"aggregate_train": (1, []), "aggregate_evaluate": (1, [])}.items():
        with pytest.raises(FedquiltError, match=f"{name} was called"):
            getattr(strategy, name)(*arguments)
    with pytest.raises(FedquiltError, match="configure_evaluate was called"):
        strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)
