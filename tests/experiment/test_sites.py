"""Every client with a source of its own: the server reads none of them, a client only its own, and the bits agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, DataError, RunError
from fedquilt.data.table import digest
from fedquilt.experiment import flower, flower_site
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.same_inputs import all_rows
from fedquilt.record import Record, read_partition, read_rounds


@pytest.fixture
def rows(tmp_path):
    """Three files of unlike size; the second has only two of the classes."""
    digits = load_digits()
    images, labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    held = [np.arange(40), np.flatnonzero(labels < 2)[30:60], np.arange(500, 625)]
    for site, chosen in enumerate(held):
        np.savez(tmp_path / f"site-{site}.npz", images=images[chosen], labels=labels[chosen])
    np.savez(tmp_path / "common.npz", images=images[1000:1050], labels=labels[1000:1050])
    return tmp_path


def settings_of(tiny: Path, source: str, *changes: str, test: str | None = None):
    classes = json.dumps([str(label) for label in range(10)])
    separate = f', test="{test}"' if test else ""
    text = tiny.read_text()
    start, end = text.index("[data]"), text.index("[clients]")
    file = tiny.with_name("sites.toml")
    file.write_text(
        f'{text[:start]}[data]\nsource = "{source}"\nclasses = {classes}\n\n[partition]\nscheme = "sites"\n'
        f"num_clients = 3\ntest_fraction = 0.2\n\n{text[end:]}".replace("cohort = 4\n", "")
    )
    if separate:
        changes = (*changes, f'data.test="{test}"')
    return load(file, changes)[0]


def grid_of(settings, folder: Path, rows: Path):
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app

    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 3)
    for context in grid.contexts.values():
        partition = context.node_config["partition-id"]
        context.node_config["data"] = str(rows / f"site-{partition}.npz")
    return grid


def over(grid, settings):
    return flower.over(grid, settings, name="in-process", poll=0.05)


def test_sites_that_nobody_else_reads_end_in_the_bits_of_one_process(rows, tiny, tmp_path):
    here = settings_of(tiny, "./site-{client}.npz", test="common.npz")
    whole = run(here, tmp_path / "embedded")
    apart = settings_of(tiny, "node", test="common.npz")
    folder = tmp_path / "apart"
    grid = grid_of(apart, folder, rows)
    run(apart, folder, connect=over(grid, apart))
    ours, theirs = (Record.open(path).load_checkpoint()[1]["params"] for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert [line["evaluation"]["global"] for line in read_rounds(folder)] == [
        line["evaluation"]["global"] for line in read_rounds(whole)
    ]
    clients = read_partition(folder)["clients"]
    assert [client["examples"] for client in clients] == [32, 24, 100]
    assert all("train" not in client and "labels" not in client for client in clients)
    assert [client["examples"] for client in read_partition(whole)["clients"]] == [32, 24, 100]


def test_without_common_test_rows_the_clients_scores_are_all_there_is(rows, tiny, tmp_path):
    settings = settings_of(tiny, "node", "rounds=2")
    run(settings, tmp_path / "run", connect=over(grid_of(settings, tmp_path, rows), settings))
    for line in read_rounds(tmp_path / "run"):
        assert line["evaluation"]["global"] is None
        received = {c: sent["metrics"] for c, sent in line["exchanges"][0]["clients"].items()}
        assert {c: metrics["received_examples"] for c, metrics in received.items()} == {"0": 8, "1": 6, "2": 25}


def test_the_server_and_a_site_read_only_what_is_theirs(rows, tiny):
    (rows / "site-1.npz").write_bytes(b"not for others")
    settings = settings_of(tiny, "./site-{client}.npz")
    assert build(settings, ()).clients == {}
    assert [*build(settings, (2,)).clients] == [2]
    with pytest.raises(DataError, match=r"site-1\.npz"):
        build(settings)


def test_a_run_of_sites_goes_on_only_with_the_rows_it_began_with(rows, tiny, tmp_path):
    settings, folder = settings_of(tiny, "node"), tmp_path / "run"
    grid = grid_of(settings, folder, rows)
    run(settings, folder, connect=over(grid, settings))
    (folder / "result.json").unlink()
    assert resume(folder, connect=over(grid_of(settings, folder, rows), settings)) == folder
    assert read_rounds(folder)[-1]["round"] == 2
    (folder / "result.json").unlink()
    digits = np.load(rows / "site-0.npz")
    np.savez(rows / "site-0.npz", images=digits["images"][:20], labels=digits["labels"][:20])
    flower_site._alone.cache_clear()  # a real node's next message starts a new process
    with pytest.raises(RunError, match="is not partitioned as when the run began"):
        resume(folder, connect=over(grid_of(settings, folder, rows), settings))


class Stopped(Exception):
    pass


class AfterOneRound(Silent):
    def round(self, line):
        raise Stopped


def one_pixel_other(path):
    digits = dict(np.load(path))
    name = next(name for name in digits if digits[name].ndim == 3)
    digits[name] = digits[name].copy()
    digits[name][0, 0, 0] ^= 1
    np.savez(path, **digits)


def test_a_run_that_recorded_the_earlier_digest_of_its_rows_is_resumed(rows, tiny, tmp_path, monkeypatch):
    settings, folder = settings_of(tiny, "./site-{client}.npz"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[run.__module__], "all_rows", lambda experiment: all_rows(experiment, digest))
        with pytest.raises(Stopped):
            run(settings, folder, AfterOneRound())
    before = (rows / "site-1.npz").read_bytes()
    one_pixel_other(rows / "site-1.npz")
    with pytest.raises(RunError, match="has other rows than when the run began"):
        resume(folder)
    (rows / "site-1.npz").write_bytes(before)
    assert resume(folder) == folder


def test_rows_that_changed_in_number_and_class_alone_do_not_pass_for_the_same(rows, tiny, tmp_path):
    settings, folder = settings_of(tiny, "./site-{client}.npz"), tmp_path / "run"
    with pytest.raises(Stopped):
        run(settings, folder, AfterOneRound())
    before = (rows / "site-1.npz").read_bytes()
    one_pixel_other(rows / "site-1.npz")
    with pytest.raises(RunError, match="has other rows than when the run began; bring back what the run began with"):
        resume(folder)
    (rows / "site-1.npz").write_bytes(before)
    assert resume(folder) == folder


def test_a_site_whose_rows_changed_says_so_and_is_left_out(rows, tiny, tmp_path):
    settings, folder = settings_of(tiny, "node"), tmp_path / "run"
    with pytest.raises(Stopped):
        run(settings, folder, AfterOneRound(), over(grid_of(settings, folder, rows), settings))
    one_pixel_other(rows / "site-1.npz")
    flower_site._alone.cache_clear()  # a real node's next message starts a new process
    resume(folder, connect=over(grid_of(settings, folder, rows), settings))
    first, *others = read_rounds(folder)
    assert first["exchanges"][0]["dropped"] == {}
    assert others
    for line in others:
        assert "this client's rows are not those that it began the run with" in line["exchanges"][0]["dropped"]["1"]


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ("site-0.npz", (), "needs a source for each client: a path with '{client}' in it"),
        ("node", (), "data.source = 'node': each client's rows are on its node"),
        ("./site-{client}.npz", ("data.proxy=5",), "data.proxy = 5: with partition.scheme = 'sites' the server has no"),
        ("./site-{client}.npz", ('data.classes=["0","1"]',), "has classes that data.classes does not name ('2', '3'"),
        ("./site-{client}.npz", ("partition.scheme=iid",), "and partition.scheme = 'iid' partitions one source"),
        ("node", ("partition.scheme=iid",), "and partition.scheme = 'iid' partitions one source"),
    ],
)
def test_what_cannot_be_is_told_by_key(rows, tiny, source, changes, said):
    with pytest.raises((ConfigError, DataError)) as caught:
        build(settings_of(tiny, source, *changes))
    assert said in str(caught.value)


def test_classes_must_be_named_and_check_needs_no_site(rows, tiny):
    settings = settings_of(tiny, "node")
    assert check(settings) == []
    nameless = settings.model_copy(update={"data": settings.data.model_copy(update={"classes": None})})
    assert any("data.classes: missing; with partition.scheme = 'sites'" in problem for problem in check(nameless))


def test_a_site_checks_its_own_rows_alone(rows, tiny, command):
    settings_of(tiny, "node")
    said = command("check", "sites.toml", "data.source=site-1.npz", "--partition", "1")
    assert (said.code, said.out) == (0, "sites.toml: no problem found\n")
    said = command("check", "sites.toml", "data.source=site-9.npz", "--partition", "1")
    assert said.code == 1
    assert "data.source = 'site-9.npz': there is no file" in said.err


def test_pictures_of_sites_may_differ_in_size_and_colour(rows, tiny):
    shades = np.full((12, 9, 9, 3), 40, dtype=np.uint8)
    np.savez(rows / "site-2.npz", images=shades, labels=np.arange(12) % 10)
    built = build(settings_of(tiny, "./site-{client}.npz"))
    wanted = built.only.bench.prepare(built.clients[2].train)["pixel_values"]
    assert wanted.shape[-1] == built.loaded.model.config.image_size
    assert wanted.unique().numel() == 1
    assert built.clients[0].train["pixel_values"].shape[1:3] == built.clients[2].train["pixel_values"].shape[1:3]


def test_classes_number_the_outputs_of_any_scheme(config):
    iid = ("partition.scheme=iid", "partition.test_fraction=0", "data.proxy=0")
    names = [str(label) for label in reversed(range(10))]
    ordinary, named = build(config(*iid)), build(config(*iid, f"data.classes={json.dumps(names)}"))
    left, right = (experiment.clients[0].train["labels"] for experiment in (ordinary, named))
    assert (left + right).unique().tolist() == [9]


def test_a_site_has_at_most_half_of_the_weights_unless_more_is_allowed(rows, tiny, tmp_path):
    common = ("./site-{client}.npz", "rounds=1", "method.name=full")
    (moved,) = read_rounds(run(settings_of(tiny, *common), tmp_path / "held"))[0]["exchanges"]
    assert moved["bounded"] == {"2": {"sent_weight": 100.0}}
    shares = {client: sent["share"] for client, sent in moved["clients"].items()}
    assert shares == pytest.approx({"0": 32 / 112, "1": 24 / 112, "2": 0.5})
    free = settings_of(tiny, *common, "defence.max_weight_share=1.0")
    (moved,) = read_rounds(run(free, tmp_path / "free"))[0]["exchanges"]
    assert moved["bounded"] == {}
    assert moved["clients"]["2"]["share"] == pytest.approx(100 / 156)
