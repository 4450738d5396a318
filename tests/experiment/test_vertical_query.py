"""Predictions that the active party asks of sites: the bits of one process, parties that are missing or hostile."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parties import BY_COLUMNS, new_customers, of_files, write_files

pytest.importorskip("flwr")

from flwr.app import Message
from in_process_grid import FIRST_NODE, InProcessGrid
from wire_audit import content_of, leaks

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.disclosure import Disclosure
from fedquilt.core.errors import DataError, RoundError, RunError
from fedquilt.engine.flower.client import client_app, memory_folder
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.engine.flower.packing import packed, unpacked
from fedquilt.experiment import flower, flower_site, run
from fedquilt.experiment.flower_query import answered
from fedquilt.experiment.predict import predict
from fedquilt.experiment.predictions import Predictions, lines_of, write_lines
from fedquilt.experiment.vertical_predict import predicted_together
from fedquilt.privacy.account import gaussian_epsilon
from fedquilt.privacy.answers import all_answers
from fedquilt.record import read_environment

Meddle = Callable[[Message, Message], Message | None]
SOON = 0.5
"""Seconds: in this process an answer is there as soon as it is asked for, or never comes."""


def digests(folder: Path) -> dict[str, str]:
    """What stands in every file of a folder, but for a site's account of its answers."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "answers" not in path.relative_to(folder).parts
    }


class Sites:
    """A run over Flower, whose sites each have a file of new rows."""

    def __init__(self, settings: Config, folder: Path, node: Callable[[int], dict[str, Any]]) -> None:
        self.folder, self.node, self.allowed = folder / "flower", node, dict[str, Any]()
        self.sites, join = folder / "sites", flower_site.joined(settings)
        self.app = client_app(lambda id, _: join(id, self.node(id)), self.sites)
        self.count = settings.partition.num_clients
        run(settings, self.folder, connect=flower.over(self.grid(), settings, name="in-process", poll=0.05))

    def grid(self, meddle: Meddle | None = None) -> InProcessGrid:
        grid = InProcessGrid(self.app, self.count, meddle)
        for context in grid.contexts.values():
            context.node_config.update(self.allowed)
        return grid

    def ask(self, file: Path, meddle: Meddle | None = None, without: tuple[str, ...] = ()) -> Predictions:
        return answered(self.grid(meddle), self.folder, str(file), without, name="in-process", poll=0.05)


def equal(one: Predictions, other: Predictions) -> bool:
    """Whether both are the same to the bit."""
    assert one.probabilities is not None
    assert other.probabilities is not None
    return torch.equal(one.probabilities, other.probabilities) and (one.ids, one.classes) == (other.ids, other.classes)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The files of three parties, and of new customers."""
    return new_customers(write_files(tmp_path))


NAMES = ("shop", "insurer")


def aligned_sites(folder: Path, **changes: Any) -> tuple[Config, Sites]:
    settings = of_files(folder, network={"timeout": SOON, "wait": SOON}, **changes)
    return settings, Sites(settings, folder, lambda id: {"query": str(folder / f"new-{NAMES[id]}.csv")})


@pytest.mark.parametrize("alignment", ["keyed-hash", "psi"])
def test_rows_that_sites_find_by_id_are_predicted_with_the_bits_of_one_process(new: Path, alignment: str) -> None:
    changes: dict[str, Any] = {}
    if alignment == "psi":
        pytest.importorskip("private_set_intersection")
        changes["partition"] = {"scheme": "vertical", "id": "customer", "alignment": "psi", "width": 4}
    settings, sites = aligned_sites(new, **changes)
    whole = run(settings, new / "embedded")
    given = [f"{name}={new / f'new-{name}.csv'}" for name in ("shop", "insurer", "bank")]
    expected = predicted_together(whole, settings, given, (), "customer")
    before, memory = digests(sites.folder), digests(sites.sites)
    messages: list[bytes] = []

    def listening(message: Message, reply: Message) -> Message:
        messages.extend([content_of(message), content_of(reply)])
        return reply

    found = sites.ask(new / "new-bank.csv", listening)
    assert equal(found, expected)
    assert not found.missing
    assert (digests(sites.folder), digests(sites.sites)) == (before, memory)
    assert equal(sites.ask(new / "new-bank.csv"), expected), "a query does not change the next one"
    assert equal(sites.ask(new / "new-bank.csv", without=("shop",)), predicted_without(whole, settings, given, "shop"))
    for label, account in zip(NAMES, all_answers(sites.sites).values(), strict=True):
        held = {line.split(",")[0] for line in (new / f"new-{label}.csv").read_text().splitlines()[1:]}
        # the same query again gives the same answer
        assert (account["answers"], account["answers_about_a_row"]) == (1, 1)
        assert account["rows"] == len(held & {*found.ids})
        assert account["epsilon_of_a_row"] is None
    ids = [line.split(",")[0] for line in (new / "bank.csv").read_text().splitlines()[1:]]
    assert [line["id"] for line in found.lines()] == [
        one for one in ids if int(one[1:]) >= 30 and int(one[1:]) % 3 != 1
    ]
    # ids as short as these stand in bytes by chance, so that only whole lines are looked for
    assert not [one for message in messages for one in ids if one.encode() + b"," in message]
    assert len(messages) == 2 * 2 * (1 + 4)


def predicted_without(run: Path, settings: Config, given: list[str], label: str) -> Predictions:
    return predicted_together(run, settings, [one for one in given if not one.startswith(label)], (label,), "customer")


def test_no_id_of_a_query_is_on_the_wire(new: Path) -> None:
    for name in ("shop", "insurer", "bank", "new-shop", "new-insurer", "new-bank"):
        text = (new / f"{name}.csv").read_text()
        (new / f"{name}.csv").write_text(text.replace("\nC", "\ncustomer-number-"))
    messages: list[bytes] = []

    def listening(message: Message, reply: Message) -> Message:
        messages.extend([content_of(message), content_of(reply)])
        return reply

    _, sites = aligned_sites(new)
    sites.ask(new / "new-bank.csv", listening)
    ids = [line.split(",")[0] for line in (new / "bank.csv").read_text().splitlines()[1:]]
    assert leaks(messages, ids, points=False) == []


@pytest.fixture
def by_place(tmp_path: Path) -> tuple[Config, Path, list[str]]:
    """A run whose rows were dealt, and the files of the same new rows at each party."""
    settings = parse({**tomllib.loads(BY_COLUMNS), "network": {"timeout": SOON, "wait": SOON}})
    rows = torch.randint(0, 17, (21, 64), generator=torch.Generator().manual_seed(2)).tolist()
    names = [f"image_{row}_{column}" for row in range(8) for column in range(8)]
    given = []
    for label, ends in (("left", "0123"), ("right", "45"), ("rest", "67")):
        places = [place for place, name in enumerate(names) if name[-1] in ends]
        lines = [",".join(names[place] for place in places)]
        lines += [",".join(str(row[place]) for place in places) for row in rows]
        (tmp_path / f"{label}.csv").write_text("\n".join(lines) + "\n")
        given.append(f"{label}={tmp_path / f'{label}.csv'}")
    return settings, tmp_path, given


def test_rows_in_one_order_are_predicted_with_the_bits_of_one_process(by_place: tuple[Config, Path, list[str]]) -> None:
    settings, folder, given = by_place
    whole = run(settings, folder / "embedded")
    sites = Sites(settings, folder, lambda id: {"query": given[id].partition("=")[2]})
    found = sites.ask(folder / "rest.csv")
    assert equal(found, predict(whole, given))
    out = folder / "predictions.jsonl"
    write_lines(found.lines(), out)
    assert lines_of(out) == [*predict(whole, given).lines()]
    with pytest.raises(RunError, match="ask the sites with --superlink, or leave it out with --without 'left'"):
        predict(sites.folder, given)
    short = folder / "left.csv"
    short.write_text("\n".join(short.read_text().splitlines()[:-1]) + "\n")
    less = sites.ask(folder / "rest.csv")
    assert less.missing == {
        "left": "this party's file of the query has 20 rows, and the active party's has 21; both must have the same "
        "rows in one order"
    }
    assert equal(less._replace(missing={}), predict(whole, given[1:], without=["left"]))


def test_a_query_is_answered_with_noise_and_with_the_same_when_asked_again(
    by_place: tuple[Config, Path, list[str]],
) -> None:
    settings, folder, given = by_place
    noised = settings.model_copy(update={"disclosure": Disclosure(embedding_noise=0.5, test_key=3)})
    whole = run(noised, folder / "embedded")
    sites = Sites(noised, folder, lambda id: {"query": given[id].partition("=")[2]})
    found, again = sites.ask(folder / "rest.csv"), sites.ask(folder / "rest.csv")
    assert equal(found, again)
    assert equal(found, predict(whole, given))
    assert not equal(found, predicted_together(whole, settings, given, ()))
    account = all_answers(sites.sites)["client-000"]
    assert (account["answers"], account["rows"]) == (1, 21)
    assert account["epsilon_of_a_row"] == pytest.approx(gaussian_epsilon(0.5, 1, 1e-5))


def test_a_site_that_has_answered_as_often_as_it_allows_is_missing(by_place: tuple[Config, Path, list[str]]) -> None:
    settings, folder, given = by_place
    sites = Sites(settings, folder, lambda id: {"query": given[id].partition("=")[2]})
    sites.allowed = {"max_queries": 1}
    found = sites.ask(folder / "rest.csv")
    assert not found.missing
    assert equal(sites.ask(folder / "rest.csv"), found), "the same answer is none that counts"
    for own in given:
        path = Path(own.partition("=")[2])
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(RoundError, match="left: this site has answered 1 queries, and max_queries=1 in its node's"):
        sites.ask(folder / "rest.csv")
    assert all_answers(sites.sites)["client-001"]["answers"] == 1
    sites.allowed = {"max_queries": 2}
    assert len([*sites.ask(folder / "rest.csv").lines()]) == 20
    sites.allowed = {"max_queries": "ten"}
    with pytest.raises(RoundError, match="has max_queries='ten' in its --node-config; give a whole number"):
        sites.ask(folder / "rest.csv")


def test_an_active_party_that_predicts_alone_asks_nobody(by_place: tuple[Config, Path, list[str]]) -> None:
    _, folder, given = by_place
    alone = parse({**tomllib.loads(BY_COLUMNS), "method": {"name": "vfl-local"}, "network": {"wait": SOON}})
    whole = run(alone, folder / "embedded")
    sites, asked = Sites(alone, folder, lambda id: {}), list[str]()

    def listening(message: Message, reply: Message) -> Message:
        asked.append(kind(message))
        return reply

    found = sites.ask(folder / "rest.csv", listening)
    assert equal(found, predict(whole, given))
    assert set(asked) == {"query.hello"}
    assert not found.missing


def test_a_run_of_the_simulation_predicts_with_the_memories_in_its_folder(
    by_place: tuple[Config, Path, list[str]],
) -> None:
    settings, folder, given = by_place
    whole, simulated = run(settings, folder / "embedded"), folder / "simulated"
    grid = InProcessGrid(client_app(flower_site.joined(settings), simulated / "sites"), settings.partition.num_clients)
    run(settings, simulated, connect=flower.over(grid, settings, name="flower-sim", poll=0.05))
    assert equal(predict(simulated, given), predict(whole, given))


def test_parties_that_are_away_or_answer_about_nothing_are_missing(by_place: tuple[Config, Path, list[str]]) -> None:
    settings, folder, given = by_place
    settings = settings.model_copy(update={"quorum": 1.0})  # which is that of rounds
    whole = run(settings, folder / "embedded")
    sites = Sites(settings, folder, lambda id: {"query": given[id].partition("=")[2]})
    expected = predict(whole, given[1:], without=["left"])

    def silent(message: Message, reply: Message) -> Message | None:
        return None if message.metadata.dst_node_id == FIRST_NODE + 1 and "answer" in kind(message) else reply

    quick = sites.grid(silent)
    found = answered(quick, sites.folder, str(folder / "rest.csv"), name="in-process", poll=0.05)
    assert equal(found, expected)
    assert [*found.missing] == ["left"]
    sites.node = lambda id: {} if id == 0 else {"query": given[id].partition("=")[2]}
    found = sites.ask(folder / "rest.csv")
    assert equal(found, expected)
    assert "this site answers no queries; start its node with the file" in found.missing["left"]

    def away(message: Message, reply: Message) -> Message | None:
        return None if message.metadata.dst_node_id == FIRST_NODE + 1 else reply

    found = answered(sites.grid(away), sites.folder, str(folder / "rest.csv"), name="in-process", poll=0.05)
    assert equal(found, expected)
    assert [*found.missing] == ["left"]
    sites.node = lambda id: {}
    with pytest.raises(RoundError, match="no party answered: left: this site answers no queries"):
        sites.ask(folder / "rest.csv")
    with pytest.raises(RunError, match="its parties were all in one process"):
        answered(sites.grid(), whole, str(folder / "rest.csv"), name="in-process")


def kind(message: Message) -> str:
    return message.metadata.message_type


@pytest.mark.parametrize("fault", ["nan", "shape", "large", "name"])
def test_a_hostile_answer_is_refused_and_its_party_named(by_place: tuple[Config, Path, list[str]], fault: str) -> None:
    settings, folder, given = by_place
    sites = Sites(settings, folder, lambda id: {"query": given[id].partition("=")[2]})
    whole = run(settings, folder / "embedded")

    def hostile(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id != FIRST_NODE or "answer" not in kind(message):
            return reply
        head, params = unpacked(reply.content, "a test", None)
        sent = params["embeddings"].clone()
        if fault == "nan":
            sent[3, 2] = float("nan")
        elif fault == "large":
            sent[3, 2] = 40.0
        elif fault == "shape":
            sent = sent[:-1]
        made = {"embeddings" if fault != "name" else "labels": sent}
        return Message(packed(head, made), reply_to=message)

    found = sites.ask(folder / "rest.csv", hostile)
    words = {"nan": "is not finite", "large": "holds 40", "shape": "(20, 8)", "name": "labels"}[fault]
    assert [*found.missing] == ["right"]
    assert words in found.missing["right"]
    assert equal(found, predict(whole, [given[0], given[2]], without=["right"])._replace(missing=found.missing))


def test_a_site_answers_from_the_last_finished_round_and_forgets_the_query(new: Path) -> None:
    _, sites = aligned_sites(new)
    key = read_environment(sites.folder)["run_key"]
    stores = [MemoryStore(memory_folder(sites.sites, key, id)) for id in (0, 1)]
    kept = [store.newest for store in stores]

    def lost(message: Message, reply: Message) -> Message | None:
        return None if kind(message) == "query.align_ids" else reply

    with pytest.raises(RoundError, match="no party answered: shop: "):
        sites.ask(new / "new-bank.csv", lost)
    left = [path.name for store in stores for path in store.folder.glob("query-*")]
    assert len(left) == 2
    assert len(sites.ask(new / "new-bank.csv").ids) > 50
    assert not [path for store in stores for path in store.folder.glob("query-*")]
    assert all(
        torch.equal(one["aligned"], other["aligned"])
        for one, other in zip(kept, (store.newest for store in stores), strict=True)
    )
    # nothing but what the run has learned is used: without it there is no answer
    (stores[0].folder / "memory.json").unlink()
    found = sites.ask(new / "new-bank.csv")
    assert "this site has no memory of the run" in found.missing["shop"]


def test_rows_of_files_are_found_by_id_in_any_order(new: Path) -> None:
    settings = of_files(new)
    folder = run(settings, new / "run")
    given = [f"{name}={new / f'new-{name}.csv'}" for name in ("shop", "insurer", "bank")]
    found = predicted_together(folder, settings, given, (), "customer")
    head, *lines = (new / "new-shop.csv").read_text().splitlines()
    (new / "new-shop.csv").write_text("\n".join([head, *lines[::-1]]) + "\n")
    again = predicted_together(folder, settings, given, (), "customer")
    assert found.probabilities is not None
    assert again.probabilities is not None
    assert torch.allclose(found.probabilities, again.probabilities, atol=1e-6)
    # a row that the shop lacks is predicted as without the shop
    less = predicted_together(folder, settings, given[1:], ("shop",), "customer")
    assert less.probabilities is not None
    held = {line.split(",")[0] for line in lines}
    both = torch.tensor([one in held for one in found.ids])
    assert 10 < int(both.sum()) < len(both) - 10
    assert torch.allclose(found.probabilities[~both], less.probabilities[~both], atol=1e-5)
    assert not torch.allclose(found.probabilities[both], less.probabilities[both], atol=1e-2)
    with pytest.raises(RunError, match=r"--id customer: .* is no vertical run"):
        predict(_horizontal(new), [str(new / "new-bank.csv")], id="customer")


def test_files_that_do_not_fit_are_named_as_they_were_given(new: Path) -> None:
    settings, sites = aligned_sites(new)
    folder = run(settings, new / "run")
    given = [f"{name}={new / f'new-{name}.csv'}" for name in ("shop", "insurer", "bank")]
    with pytest.raises(DataError, match=r"^--input '.*new-shop.csv', column of ids 'custmer': the column 'custmer' is"):
        predict(folder, given, id="custmer")
    shop = new / "new-shop.csv"
    head, *lines = shop.read_text().splitlines()
    shop.write_text("\n".join([head, *lines, lines[0]]) + "\n")
    with pytest.raises(DataError, match=r"^--input '.*new-shop.csv', column of ids 'customer': .* more than once"):
        predict(folder, given, id="customer")
    missing = sites.ask(new / "new-bank.csv").missing["shop"]
    assert missing.startswith(f"query '{shop}', column of ids 'customer': ")
    shop.write_text("customer,visits\nC0001,1\n")
    with pytest.raises(DataError, match=r"^--input '.*new-shop.csv': .*the column 'day' is not there"):
        predict(folder, given, id="customer")
    shop.unlink()
    assert sites.ask(new / "new-bank.csv").missing["shop"].startswith(f"query '{shop}': ")


def _horizontal(folder: Path) -> Path:
    raw = {
        "rounds": 1,
        "device": "cpu",
        "model": {"name": "mlp?layers=1&width=8", "task": "tabular-classification"},
        "data": {"source": str(folder / "bank.csv")},
        "partition": {"scheme": "iid", "num_clients": 2},
        "clients": {"shares": "1", "budgets": [1]},
        "adapter": {"kind": "full"},
        "training": {"steps": 1},
        "method": {"name": "fedit"},
    }
    return run(parse(raw), folder / "horizontal")
