"""The low-rank family in whole runs: unlike ranks, changed bases, any layers; resumed, exported, on Flower."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.models.hf import load_model
from fedquilt.record import Record, read_rounds

RANKS = ("adapter.rank=4", "clients.ranks=[2, 4, 3]")
CASES = {
    "flexlora": ("method.name=flexlora", *RANKS),
    "hetlora": ("method.name=hetlora", "method.gamma=0.5", *RANKS),
    "flora": ("method.name=flora", *RANKS),
    "fedex-lora": ("method.name=fedex-lora",),
    "lora-fair": ("method.name=lora-fair",),
    "fedrot-lora": ("method.name=fedrot-lora",),
    "fed-hello-florg": ("aggregation.rule=florg",),
    "fedrpca": ("method.name=fedrpca",),
    "fed-hello-fedex": ("aggregation.rule=fedex-lora", "aggregation.residual_rank=1"),
    "fed-hello-flora": ("aggregation.rule=flora", *RANKS),
    "fedra-flexlora": ("method.name=fedra", "aggregation.rule=flexlora", *RANKS),
    "straggler-hetlora": ("method.name=straggler", "aggregation.rule=hetlora", *RANKS),
}


@pytest.fixture(scope="module")
def wanted(finished, tmp_path_factory):
    """``wanted(name, change, ...)``: the tiny federation with the case's changes."""
    text, file = (finished.parent / "tiny.toml").read_text(), tmp_path_factory.mktemp("wanted") / "tiny.toml"

    def make(name, *more):
        changes = [*CASES.get(name, ()), *more]
        named = any(change.startswith("method.name") for change in changes)
        file.write_text(text.replace('allocation = "rgd"\n', "") if named else text)
        return load(file, changes)[0]

    return make


@pytest.fixture(scope="module")
def whole(wanted, tmp_path_factory, copying):
    """``whole(name)``: the folder of the case's embedded run, which nothing disturbed. Not to be changed.

    Beside it lies ``parts``, a copy of it as it was after two rounds.
    """

    @cache
    def of(name):
        folder = tmp_path_factory.mktemp("whole") / name
        return run(wanted(name), folder, copying(folder, folder.parent / "parts", 2))

    return of


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(wanted, whole, fingerprint, name):
    assert check(wanted(name)) == []
    parts = whole(name).parent / "parts"
    assert len(read_rounds(parts)) == 2
    assert fingerprint(resume(parts)) == fingerprint(whole(name))
    lines = read_rounds(whole(name))
    assert all(0 <= line["evaluation"]["global"]["accuracy"] <= 1 for line in lines if line["evaluation"])
    assert lines[-1]["evaluation"]["clients"]


@pytest.mark.parametrize("name", CASES)
def test_peft_gives_our_logits_of_the_global_model_and_of_a_client(wanted, whole, tmp_path, name):
    peft = pytest.importorskip("peft")
    settings, folder = wanted(name), whole(name)
    experiment = build(settings)
    _, state, memories = Record.open(folder).load_checkpoint()
    for who, client in ((None, experiment.server), (0, experiment.clients[0])):
        out = export(folder, tmp_path / f"adapter-{who}", client=who)
        view = experiment.method.view(state, client.profile)
        client.bench.load(client.params(view, memories.get(who)))
        batch = experiment.clients[4].train
        model = settings.model
        base = load_model(model.name, model.task, num_classes=10, rng=experiment.rng.child("model"))
        theirs = peft.PeftModel.from_pretrained(base.model, out).eval()
        with torch.no_grad():
            client.bench.model.eval()
            ours, _ = client.bench.forward(batch)
            inputs = base.prepare({key: value for key, value in batch.items() if key != "labels"})
            logits = theirs(**inputs).logits
        torch.testing.assert_close(logits, ours, rtol=0, atol=2e-5)
        assert ours.std() > 0


@pytest.mark.parametrize("name", ["flexlora", "hetlora"])
def test_a_client_of_a_lower_rank_exports_at_its_rank(wanted, tmp_path, name):
    from fedquilt.adapters.lora.peft_files import load_peft

    settings = wanted(name, "rounds=1", *(["method.gamma=1.0"] if name == "hetlora" else []))
    folder = run(settings, tmp_path / "run")
    ranks = {p.id: p.budget.rank for p in build(settings).federation.profiles}
    assert set(ranks.values()) == {2, 3, 4}
    for client, rank in ranks.items():
        params, told = load_peft(export(folder, tmp_path / f"client-{client}", client=client))
        assert {len(t) for n, t in params.items() if n.endswith("lora_A")} == {rank}
        assert told.rank == 4
        assert told.alpha == 4.0


def test_the_record_and_the_plan_count_the_bytes_of_each_rank(wanted, tmp_path):
    settings = wanted("flexlora", "rounds=1")
    (line,) = read_rounds(run(settings, tmp_path / "run"))
    planned = {one.client: one for one in plan(settings)}
    for client, sent in line["exchanges"][0]["clients"].items():
        assert sent["bytes_down"] == planned[int(client)].bytes_down
        assert sent["bytes_up"] == planned[int(client)].bytes_up
    assert len({one.bytes_down for one in planned.values()}) == 3


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_planned(wanted, name):
    assert len(plan(wanted(name))) == 6


@pytest.mark.parametrize("name", ["hetlora", "flora", "fed-hello-fedex", "fedra-flexlora"])
def test_on_flower_a_run_ends_in_the_same_bits(wanted, whole, tmp_path, fingerprint, name):
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    settings = wanted(name)
    quick = settings.network.model_copy(update={"timeout": 20.0, "wait": 20.0})
    folder = tmp_path / "flower"
    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 6)
    connect = flower.over(grid, settings.model_copy(update={"network": quick}), name="in-process", poll=0.05)
    run(settings, folder, connect=connect)
    ours, theirs = fingerprint(folder), fingerprint(whole(name))
    assert ours["adapters/global/adapter_model.safetensors"] == theirs["adapters/global/adapter_model.safetensors"]
    for left, right in zip(read_rounds(folder), read_rounds(whole(name)), strict=True):
        assert not left["exchanges"][0]["dropped"]
        for client, sent in left["exchanges"][0]["clients"].items():
            # drawn blocks alone are nobody's model
            assert ("received_examples" in sent["metrics"]) != (settings.method.name == "fedra")
            other = right["exchanges"][0]["clients"][client]
            assert (sent["bytes_down"], sent["bytes_up"]) == (other["bytes_down"], other["bytes_up"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("method.name=flexlora", "aggregation.rule=median"),
            "'flexlora' has its own aggregation rule; leave aggregation.rule",
        ),
        (("method.name=ffa-lora", "aggregation.rule=flora"), "with method.name = 'ffa-lora' only B is sent"),
        (("method.name=rolora", "aggregation.rule=flexlora"), "'rolora' one factor is sent in each round"),
        (("method.name=fedsa-lora", "aggregation.rule=hetlora"), "'fedsa-lora' only A is sent"),
        (("method.name=local-only", "aggregation.rule=lora-fair"), "'local-only' nothing is sent"),
        (("method.name=flora", "network.dtype=int8"), "network.dtype = 'int8': 'flora' changes the base"),
        (("method.name=fedex-lora", "network.dtype=bfloat16"), "'fedex-lora' changes the base of all clients"),
        (("aggregation.rule=fedex-lora", "network.dtype=bfloat16"), "'fedex-lora' changes the base of all clients"),
        (("method.name=flora", "defence.max_update_norm=1.0"), "so the server cannot compute its update"),
        (
            ("method.name=fedex-lora", "aggregation.residual_rank=1"),
            "aggregation.residual_rank = 1: only applies to aggregation.rule = 'fedex-lora'; set method.residual_rank",
        ),
        (
            ("aggregation.split=even",),
            "aggregation.split = 'even': only applies to aggregation.rule = 'flexlora'; leave it",
        ),
        (("method.name=fedit", "clients.ranks=[1, 2, 2]"), "the mean of factors needs one rank"),
        (("aggregation.rule=median", "clients.ranks=[1, 2, 2]"), "the mean of factors needs one rank"),
        (("method.name=lora-fair", "clients.ranks=[1, 2, 2]"), "'lora-fair' needs one rank"),
        (("method.name=florg", "clients.ranks=[1, 2, 2]"), "'florg' needs one rank"),
        (("method.name=fedrot-lora", "aggregation.sparse_scale=3.0"), "only applies to aggregation.rule = 'fedrpca'"),
        (
            ("method.name=flexlora", "privacy.mode=central", "method.weighting=uniform"),
            "method.name = 'flexlora' does not use the sum of the clients' updates",
        ),
        (
            ("aggregation.rule=hetlora", "privacy.mode=central", "method.weighting=uniform"),
            "aggregation.rule = 'hetlora' has no known bound",
        ),
        (
            ("method.name=flora", "privacy.mode=local", "method.weighting=uniform"),
            "with 'flora' each client starts from its own adapter, so there is no update to clip",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(wanted, changes, message):
    with pytest.raises(ConfigError) as caught:
        build(wanted("", *changes))
    assert message in str(caught.value)
    assert any(message in problem for problem in check(wanted("", *changes)))


def test_a_bounded_residual_of_nothing_may_be_rounded(wanted):
    assert check(wanted("", "method.name=fedex-lora", "method.residual_rank=0", "network.dtype=int8")) == []


def test_local_privacy_goes_with_products(wanted, tmp_path):
    settings = wanted("hetlora", "rounds=1", "privacy.mode=local", "method.weighting=uniform", "privacy.test_key=1")
    (line,) = read_rounds(run(settings, tmp_path / "run"))
    assert not line["exchanges"][0]["dropped"]
