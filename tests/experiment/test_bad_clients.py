"""Clients that send rubbish: refused with the reason, and the honest ones end as if the bad ones were silent."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Message
from in_process_grid import InProcessGrid

from fedquilt.config.load import load
from fedquilt.engine.flower.client import client_app
from fedquilt.engine.flower.packing import packed, unpacked
from fedquilt.experiment import flower, flower_site
from fedquilt.experiment.run import run
from fedquilt.record import Record, read_rounds
from fedquilt.report.caveats import notes
from fedquilt.report.runs import group_runs, read_run

BAD = 2
CHANGES = ("clients.cohort=6", "defence.max_update_norm=10.0", "evaluation.clients=false")


def changed(change):
    """A fault that changes the tensors of a reply; what it says of itself stays true."""

    def fault(order, reply, old):
        head, params = unpacked(reply.content, "a client")
        return Message(packed(head, change(params)), reply_to=order)

    return fault


def replayed(order, reply, old):
    return Message(old[0], reply_to=order)


def one(params):
    return next(name for name in params if "lora_B" in name)


FAULTS = {
    "nan": (changed(lambda p: {**p, one(p): p[one(p)] * float("nan")}), "is not finite"),
    "shape": (changed(lambda p: {**p, one(p): p[one(p)].T.contiguous()}), "as float32 (2, 16); it is float32 (16, 2)"),
    "dtype": (changed(lambda p: {**p, one(p): p[one(p)].double()}), "as float64 (16, 2); it is float32 (16, 2)"),
    "missing": (changed(lambda p: {k: v for k, v in p.items() if k != one(p)}), "is missing"),
    "norm": (changed(lambda p: {**p, one(p): p[one(p)] + 1e6}), "the update's norm is 5.6"),
    "junk": (changed(lambda p: {**p, "junk": torch.zeros(5_000_000)}), "sent tensor 'junk', which nobody asked for"),
    "replay": (replayed, "sent round 0 where "),
    "nothing": (changed(lambda p: {}), "is missing"),
}


def played(settings, folder, fault=None):
    """A run in which client 2 behaves in round 0 and then is bad, or silent."""
    old = []

    def meddle(order, reply):
        index = json.loads(order.content["index"]["json"])
        if index.get("client") != BAD:
            return reply
        if index["round"] == 0:
            old.append(reply.content)
            return reply
        return None if fault is None else fault(order, reply, old)

    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 6, meddle)
    quick = settings.model_copy(update={"network": settings.network.model_copy(update={"timeout": 0.3})})
    return run(settings, folder, connect=flower.over(grid, quick, name="in-process", poll=0.02))


@pytest.fixture(scope="module")
def silent(finished, tmp_path_factory):
    """The folder of a run in which client 2 is silent. Not to be changed."""
    return played(load(finished.parent / "tiny.toml", CHANGES)[0], tmp_path_factory.mktemp("bad") / "silent")


def final(folder):
    return Record.open(folder).load_checkpoint()[1]["params"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_refused_with_its_reason_and_the_others_end_in_the_same_bits(name, config, tmp_path, silent):
    fault, reason = FAULTS[name]
    folder = played(config(*CHANGES), tmp_path / "bad", fault)
    first, *later = (line["exchanges"][0] for line in read_rounds(folder))
    assert first["dropped"] == {}
    for exchange in later:
        assert [*exchange["dropped"]] == [str(BAD)]
        assert reason in exchange["dropped"][str(BAD)]
        assert len(exchange["clients"]) == 5
    ours, theirs = final(folder), final(silent)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    words = " ".join(notes(group_runs([read_run(folder)])))
    assert f"client {BAD} dropped in round" in words
    assert reason in words


def test_the_report_says_in_which_rounds_a_client_was_silent(silent):
    assert "fed-hello, seed 3: client 2 dropped in rounds 2-3: no reply within 0.3 s." in notes(
        group_runs([read_run(silent)])
    )
