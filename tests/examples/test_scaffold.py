"""Methods from outside: a package's SCAFFOLD over both engines, and a plain FedAvg with every kind of adapter."""

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import fedquilt
from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.check import check
from fedquilt.experiment.run import run
from fedquilt.methods import registry
from fedquilt.methods.layered import common_layers, everyone, layered
from fedquilt.methods.registry import METHODS
from fedquilt.record import Record

SCAFFOLD = Path(__file__).parents[2] / "examples" / "scaffold"


def offer(monkeypatch, *points):
    """Let these entry points be all that installed packages offer."""
    monkeypatch.setattr(registry, "ENTRIES", {**registry.ENTRIES})
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._offered.cache_clear()


@pytest.fixture(autouse=True)
def _forget():
    yield
    registry._offered.cache_clear()


@pytest.fixture
def scaffold(monkeypatch):
    """The package as if it were installed, by the entry point in its pyproject.toml."""
    project = tomllib.loads((SCAFFOLD / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"][registry.GROUP].items()
    monkeypatch.syspath_prepend(str(SCAFFOLD / "src"))
    offer(monkeypatch, EntryPoint(name, value, registry.GROUP))
    yield name
    sys.modules.pop("fedquilt_scaffold", None)


def test_scaffold_is_bit_identical_embedded_and_over_flower(scaffold, tmp_path):
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    config = load(SCAFFOLD / "run.toml")[0]
    assert scaffold in METHODS
    whole = run(config, tmp_path / "embedded")
    folder = tmp_path / "flower"
    grid = InProcessGrid(client_app(flower_site.joined(config), folder / "sites"), config.partition.num_clients)
    run(config, folder, connect=flower.over(grid, config, name="in-process", poll=0.05))
    _, ours, memories = Record.open(whole).load_checkpoint()
    theirs = Record.open(folder).load_checkpoint()[1]
    for part in ("params", "control"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(ours[part][name].equal(tensor) for name, tensor in theirs[part].items())
    assert any(bool(tensor.any()) for tensor in ours["control"].values())
    assert any("control" in memory for memory in memories.values()), "private, with the client"


def fedavg(federation):
    """Somebody's federated averaging."""
    return layered("mine", federation, everyone(common_layers(federation, "uniform")))


@pytest.mark.parametrize("kind", ["lora", "mixture", "full"])
def test_a_registered_fedavg_runs_with_every_kind_of_adapter(config, monkeypatch, tmp_path, kind):
    offer(monkeypatch)
    fedquilt.register("mine", fedavg)
    rank = () if kind == "full" else ("adapter.rank=2",)
    wanted = config("method={name='mine'}", f"adapter={{kind='{kind}'}}", *rank, "rounds=1")
    assert run(wanted, tmp_path / kind).is_dir()


def test_what_its_traits_do_not_allow_is_refused(scaffold, config):
    problems = check(config("method={name='scaffold'}", "aggregation.rule=median"))
    own = "method.name = 'scaffold' merges replies in its own way"
    assert problems == [f"aggregation.rule = 'median': {own}; leave aggregation.rule out"]


def test_a_name_belongs_to_one_method(monkeypatch):
    offer(monkeypatch)
    with pytest.raises(ConfigError, match="method 'fedit': there is another method of this name already"):
        fedquilt.register("fedit", fedavg)
    fedquilt.register("mine", fedavg)
    fedquilt.register("mine", fedavg)  # as a notebook does
    assert METHODS["mine"] is fedavg
    offer(monkeypatch, EntryPoint("fedit", "json:loads", registry.GROUP))
    with pytest.raises(ConfigError, match="offers a method 'fedit', and there is one of this name already"):
        list(METHODS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:method", r"offers it as 'no_such_package:method', which cannot be imported \(ModuleNotFound"),
        ("json:__name__", r"which is a str; it must be a fedquilt.methods.registry.Entry, or a method's factory"),
    ],
)
def test_a_broken_offer_is_reported_when_it_is_asked_for(monkeypatch, value, message):
    offer(monkeypatch, EntryPoint("theirs", value, registry.GROUP))
    assert "theirs" in METHODS
    assert METHODS["fedit"]
    with pytest.raises(ConfigError, match=message):
        METHODS["theirs"]
