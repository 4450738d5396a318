"""A client answers each request once, within its allowance, and only its owner can read its ledger."""

import json
import math
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedquilt.core.errors import RunError
from fedquilt.core.loop import perform
from fedquilt.core.method import Exchange, Method, Release
from fedquilt.core.rng import Rng
from fedquilt.core.types import Failure, Order, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.privacy.account import accountant, composed_epsilon, gaussian_epsilon
from fedquilt.privacy.ledger import Ledger, answered, ledger_folder, ledgers
from fedquilt.privacy.ledger_book import KEPT_ROUNDS, Allowance, Asked
from fedquilt.privacy.noise import with_local_dp

DELTA = 1e-5
START = {"a": torch.zeros(30)}


def exchange_of(epsilon=None, noise=2.0, work=None) -> Exchange:
    def counted(client, order, memory):
        params = {"a": order.params["a"] + 1}
        return Reply(client, params, 7.0, {"loss": 0.25}), {"visits": memory.get("visits", 0) + 1}

    method = Method("toy", dict, (Exchange("fit", dict, work or counted, max),), max)
    return with_local_dp(method, clip_norm=1.0, noise_multiplier=noise, epsilon=epsilon, delta=DELTA).exchanges[0]


def asked(ledger, exchange, number=0, run="ab12", params=None, memory=None):
    order = Order(params or START, {}, number, Rng(3))
    return answered(ledger, run, exchange, 4, 4, order, lambda: memory or {})


def same(one, other) -> bool:
    (left, left_memory), (right, right_memory) = one, other
    assert left.params.keys() == right.params.keys()
    alike = all(torch.equal(left.params[name], right.params[name]) for name in left.params)
    return alike and (left.weight, left.metrics, left.round, left_memory) == (
        right.weight,
        right.metrics,
        right.round,
        right_memory,
    )


@pytest.fixture(params=["disk", "process"])
def fresh(request, tmp_path):
    """``fresh(own)``: the same ledger, as a new process finds it; in one process it is the one there is."""
    made: list[Ledger] = []

    def make(own=None):
        if request.param == "process" and made:
            made[0].own = own
            return made[0]
        made.append(Ledger(tmp_path / "c" if request.param == "disk" else None, own))
        return made[-1]

    return make


def test_what_is_asked_again_is_answered_by_the_same_bytes_and_counts_once(fresh):
    exchange = exchange_of()
    first = asked(fresh(), exchange)
    for params in (START, {"a": torch.ones(30)}, {"a": torch.full((30,), 1e6)}):
        assert same(asked(fresh(), exchange, params=params, memory={"visits": 9}), first)
    assert first[0].weight == 1.0
    assert first[0].metrics == {}
    assert first[1] == {"visits": 1}
    summary = fresh().summary()
    assert (summary["releases"], summary["runs"]) == (1, 1)
    assert summary["spent"] == pytest.approx(gaussian_epsilon(2.0, 1, DELTA))


def test_another_run_round_or_exchange_is_another_release(fresh):
    exchange = exchange_of()
    first, *others = (
        asked(fresh(), exchange),
        asked(fresh(), exchange, run="cd34"),
        asked(fresh(), exchange, number=1),
        asked(fresh(), exchange._replace(name="other")),
    )
    assert all(not torch.equal(first[0].params["a"], other[0].params["a"]) for other in others)
    assert fresh().summary()["releases"] == 4
    assert fresh().summary()["runs"] == 2


def test_a_client_refuses_what_would_exceed_its_allowance_whatever_the_order_says(fresh):
    exchange, own = exchange_of(), Allowance(gaussian_epsilon(2.0, 3, DELTA), DELTA)
    for number in range(3):
        assert isinstance(asked(fresh(own), exchange, number)[0], Reply)
    for run, number, other in (
        ("ab12", 3, exchange),
        ("ffff", 0, exchange),
        ("ab12", 10**30, exchange),
        ("ab12", 4, exchange_of(epsilon=1e9)),  # a run file that allows more
        ("ab12", 5, exchange_of(noise=1e3)),
        ("ab12", 6, exchange_of(noise=0.0)),
    ):
        reply, memory = asked(fresh(own), other, number, run)
        if other.release.noise_multiplier == 1e3:
            assert "one more would make it" in reply.reason
            continue
        assert isinstance(reply, Failure)
        assert memory is None
        assert reply.reason.startswith("this client's privacy allowance is spent: 3 releases have cost epsilon 8.385 ")
        assert "only its site can raise the allowance" in reply.reason
    assert isinstance(asked(fresh(own), exchange, 2)[0], Reply), "what was released may be sent again"
    assert fresh(own).summary()["releases"] == 3
    more = Allowance(100.0, DELTA)
    assert isinstance(asked(fresh(more), exchange, 3)[0], Reply)
    assert fresh(more).summary() | {"spent": 0} == {
        **{"releases": 4, "runs": 1, "spent": 0, "epsilon": 100.0, "delta": DELTA, "by": "site"}
    }


def test_without_a_word_of_the_site_the_first_run_file_fixes_the_allowance_for_good(fresh):
    first = exchange_of(epsilon=gaussian_epsilon(2.0, 2, DELTA))
    for number in range(2):
        assert isinstance(asked(fresh(), first, number)[0], Reply)
    assert isinstance(asked(fresh(), first, 2)[0], Failure)
    generous = exchange_of(epsilon=1e6)
    assert isinstance(asked(fresh(), generous, 0, "beef")[0], Failure)
    assert isinstance(asked(fresh(), exchange_of(epsilon=None), 0, "beef")[0], Failure)
    assert fresh().summary()["by"] == "run file"
    assert fresh().summary()["epsilon"] == pytest.approx(gaussian_epsilon(2.0, 2, DELTA))


def test_a_reply_without_noise_is_beyond_every_allowance(fresh):
    assert isinstance(asked(fresh(Allowance(1e9, DELTA)), exchange_of(noise=0.0))[0], Failure)
    # where the run file itself promises nothing, clipping alone can be tried out, and the ledger says what it is worth
    assert isinstance(asked(fresh(), exchange_of(noise=0.0))[0], Reply)
    assert fresh().summary() == {
        **{"releases": 1, "runs": 1, "spent": None, "epsilon": None, "delta": DELTA, "by": "run file"}
    }
    assert isinstance(asked(fresh(Allowance(1e9, DELTA)), exchange_of(), 1)[0], Failure)


def test_a_failed_client_has_released_nothing(fresh):
    def broken(client, order, memory):
        return Reply(client, {"a": order.params["a"] * math.nan}, 1.0), {"visits": 5}

    reply, memory = asked(fresh(), exchange_of(work=broken), memory={"visits": 2})
    assert isinstance(reply, Failure)
    assert memory == {"visits": 2}
    assert fresh().summary()["releases"] == 0
    assert isinstance(asked(fresh(), exchange_of())[0], Reply)


def test_rounds_long_past_are_not_answered_again(fresh):
    exchange = exchange_of()
    replies = [asked(fresh(), exchange, number) for number in range(KEPT_ROUNDS + 2)]
    for number, before in enumerate(replies):
        again = asked(fresh(), exchange, number)
        if number < 2:
            assert f"round {number + 1} was answered before, and its reply is no longer kept" in again[0].reason
        else:
            assert same(again, before)
    assert fresh().summary()["releases"] == KEPT_ROUNDS + 2


def test_releases_of_different_noise_add_up_as_the_accountant_says():
    """Its losses of composed Gaussians are worked out numerically, ours by the formula of one."""
    dp = accountant()
    noises = [4.0, 9.0, 9.0, 30.0]
    exact = composed_epsilon(noises, DELTA)
    events = dp.ComposedDpEvent([dp.GaussianDpEvent(noise / 2) for noise in noises])
    losses = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    losses.compose(events)
    assert exact == pytest.approx(losses.get_epsilon(DELTA), rel=1e-3)
    assert exact == composed_epsilon(reversed(noises), DELTA)
    assert composed_epsilon([], DELTA) == 0.0
    assert composed_epsilon([3.0, 0.0], DELTA) == math.inf


# On the disk ------------------------------------------------------------


def test_nobody_but_the_owner_reads_a_ledger(tmp_path):
    before = os.umask(0)
    try:
        asked(Ledger(ledger_folder(tmp_path / "sites", 4)), exchange_of())
    finally:
        os.umask(before)
    found = [*(tmp_path / "sites").rglob("*")]
    assert {path.name for path in found} >= {"ledger", "client-004", "ledger.json"}
    for path in [tmp_path / "sites", *found]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_damaged_ledger_or_reply_releases_nothing(tmp_path):
    ledger, exchange = Ledger(tmp_path), exchange_of()
    asked(ledger, exchange)
    good = (tmp_path / "ledger.json").read_text()
    (kept,) = tmp_path.glob("*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "damaged, its sha256 is not the one" in asked(ledger, exchange)[0].reason
    kept.unlink()
    assert "is not answered again" in asked(ledger, exchange)[0].reason
    for bad in ("", "[]", "{}", good[:-20], "[" * 100_000, good.replace("2.0", "-2.0"), good.replace("1e-05", '"x"')):
        assert bad != good
        (tmp_path / "ledger.json").write_text(bad)
        assert "so nothing is released" in asked(ledger, exchange, 1)[0].reason
        with pytest.raises(RunError, match="damaged"):
            Ledger(tmp_path).summary()
    (tmp_path / "ledger.json").write_bytes(b"\xff" + good.encode())
    assert "so nothing is released" in asked(ledger, exchange, 1)[0].reason


@pytest.mark.parametrize("step", ["release", "book"])
def test_a_crash_on_the_way_releases_nothing_or_the_same_again(tmp_path, monkeypatch, step):
    exchange = exchange_of()
    name = "write_bytes" if step == "release" else "write_book"

    def killed(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"fedquilt.privacy.ledger.{name}", killed)
        with pytest.raises(KeyboardInterrupt):
            asked(Ledger(tmp_path), exchange)
    assert Ledger(tmp_path).summary()["releases"] == 0
    first = asked(Ledger(tmp_path), exchange)
    assert same(asked(Ledger(tmp_path), exchange), first)
    assert len([*tmp_path.glob("*.safetensors")]) == 1


def test_a_disk_that_refuses_lets_nothing_out(tmp_path, monkeypatch):
    def full(path, content, **more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fedquilt.privacy.ledger.write_bytes", full)
    reply, memory = asked(Ledger(tmp_path), exchange_of())
    assert "No space left on device" in reply.reason
    assert "nothing was released" in reply.reason
    assert memory is None


def test_four_at_once_release_one_answer(tmp_path):
    """As two processes of a node may be: each has its own ledger, all the same file."""
    together = threading.Barrier(4)

    def work(client, order, memory):
        together.wait(30)  # all have found the ledger without this release
        return Reply(client, {"a": order.params["a"] + 1}, 1.0), memory

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(asked, Ledger(tmp_path / "c"), exchange_of(work=work)) for _ in range(4)]
        replies = [one.result(60) for one in waiting]
    assert all(same(reply, replies[0]) for reply in replies)
    assert Ledger(tmp_path / "c").summary()["releases"] == 1


def test_the_ledgers_of_a_site_are_listed_by_client(tmp_path):
    assert ledgers(tmp_path) == {}
    for client in (2, 0):
        asked(Ledger(ledger_folder(tmp_path, client)), exchange_of())
    assert [*ledgers(tmp_path)] == ["client-000", "client-002"]
    assert ledgers(tmp_path)["client-002"]["releases"] == 1


# In one process ------------------------------------------------------------


def test_the_embedded_engine_answers_once_too(tmp_path):
    exchange = exchange_of()
    for engine in (LocalEngine({4: 4}), LocalEngine({4: 4}, run="ab12")):
        orders = {4: Order(START, {}, 0, Rng(3))}
        first, again = (next(engine.send(exchange, orders)) for _ in range(2))
        assert torch.equal(first.params["a"], again.params["a"])
        assert engine.memories == {4: {"visits": 1}}
        assert engine.ledgers[4].summary()["releases"] == 1
    replies = []
    for _ in range(2):  # and a process that goes on with what is on the disk
        engine = LocalEngine({4: 4}, run="ab12")
        engine.keep_ledgers(tmp_path)
        replies += engine.send(exchange, {4: Order(START, {}, 0, Rng(3))})
    assert torch.equal(replies[0].params["a"], replies[1].params["a"])
    assert engine.memories == {4: {"visits": 1}}


def test_without_local_privacy_nothing_is_noted(tmp_path):
    exchange = exchange_of()._replace(release=None)
    first, second = (asked(Ledger(tmp_path / "c"), exchange) for _ in range(2))
    assert not torch.equal(first[0].params["a"], second[0].params["a"])
    assert not (tmp_path / "c").exists()
    plain = exchange_of(noise=0.0)
    assert same(asked(Ledger(), plain), perform(plain, 4, 4, Order(START), {}))


def test_an_order_cannot_name_the_file_of_another_release():
    names = {
        Asked(run, number, name) for run in ("", "a/../b", "ab") for number in (0, 10**40) for name in ("fit", "x")
    }
    ledger = Ledger()
    for one in names:
        ledger.release(one, Release(100.0, None, DELTA), Reply(0, {}, 1.0), {})
    files = [entry["file"] for entry in ledger._read()["releases"]]
    assert len({*files} - {None}) == len([file for file in files if file])
    assert all(file is None or file.removesuffix(".safetensors").isalnum() for file in files)
    json.dumps(ledger._read())
