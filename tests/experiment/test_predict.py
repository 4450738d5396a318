"""Predictions of a run for the rows of a file are those that its last evaluation made."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parties import BY_COLUMNS

from fedquilt.config.groups import party_parts
from fedquilt.config.load import parse
from fedquilt.core.errors import DataError, FedquiltError, RunError
from fedquilt.core.rng import Rng
from fedquilt.data.cells import Cells
from fedquilt.data.loaders import load_table
from fedquilt.experiment import run
from fedquilt.experiment.predict import predict
from fedquilt.experiment.vertical import dealing_of, rows_of
from fedquilt.experiment.vertical_predict import files_of
from fedquilt.models.features import saved_features
from fedquilt.record import Record, read_partition, read_rounds

COMMON: dict[str, Any] = {
    "rounds": 2,
    "threads": 1,
    "device": "cpu",
    "partition": {"num_clients": 2, "test_fraction": 0.0},
    "clients": {"shares": "1", "budgets": [1]},
    "training": {"steps": 3, "batch_size": 8, "learning_rate": 0.01},
    "evaluation": {"last": 1, "batch_size": 16},
    "method": {"name": "fedit"},
}
VIT = {"name": "tiny:vit?layers=2&width=16&image=8&patch=4", "task": "image-classification"}
BERT = {"name": "tiny:bert?layers=2&width=16", "task": "sequence-classification", "max_length": 16}
MLP = {"name": "mlp?layers=1&width=16", "task": "tabular-classification"}
LLAMA = {"name": "tiny:llama?layers=2&width=16", "task": "causal-lm", "max_length": 24}


def images(path: Path) -> Path:
    """Digits with their labels, as an npz file."""
    table = load_table("sklearn:digits", limit=60)
    assert table.labels is not None
    np.savez(path, image=np.asarray(table.inputs), label=table.labels.numpy())
    return path


def words(path: Path) -> Path:
    lines = [f"{'good' if row % 3 else 'bad'} thing {row % 7}\t{'yes' if row % 3 else 'no'}" for row in range(40)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


def patients(path: Path) -> Path:
    """Rows of numbers and categories, of which two are missing."""
    lines = ["age,smokes,label"]
    for row in range(48):
        age, smokes = 20 + (17 * row) % 60, row % 2
        written = "" if row == 5 else age
        lines.append(f"{written},{'yes' if smokes else 'no'},{'ill' if age + 20 * smokes > 60 else 'well'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def accuracy(lines: Sequence[dict[str, Any]], truth: Sequence[str]) -> float:
    return float(np.mean([line["class"] == one for line, one in zip(lines, truth, strict=True)]))


def labels_of(source: str, **more: Any) -> list[str]:
    table = load_table(source, **more)
    assert table.labels is not None
    return [table.classes[label] for label in table.labels.tolist()]


FULL = {"kind": "full"}
KINDS = {
    "image": (images, "rows.npz", VIT, {}),
    "image, whole": (images, "rows.npz", VIT, FULL),
    "text": (words, "rows.tsv", BERT, {}),
    "table": (patients, "rows.csv", MLP, {}),
    "table, whole": (patients, "rows.csv", MLP, FULL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_last_evaluation(kind: str, tmp_path: Path) -> None:
    make, name, model, adapter = KINDS[kind]
    file = make(tmp_path / name)
    data = {"source": str(file), "test": str(file)}
    folder = run(parse({**COMMON, "model": model, "data": data, "adapter": adapter}), tmp_path / "run")
    found = predict(folder, [str(file)])
    lines = list(found.lines())
    cells = {} if kind.partition(",")[0] != "table" else {"cells": columns_of(folder)}
    truth = labels_of(str(file), **cells)
    recorded = read_rounds(folder)[-1]["evaluation"]["global"]
    assert accuracy(lines, truth) == pytest.approx(recorded["accuracy"], abs=1e-9)
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(len(lines)))
    chosen = found.probabilities[range(len(lines)), [found.classes.index(one) for one in truth]]
    assert float(-chosen.log().mean()) == pytest.approx(recorded["loss"], rel=1e-4)
    assert [line["row"] for line in lines] == list(range(len(truth)))


def columns_of(folder: Path) -> Any:
    features = saved_features(folder / "adapters" / "global")
    assert features is not None
    return features.wanted


def test_labels_are_not_needed_and_the_command_writes_csv_or_jsonl(command: Any, tmp_path: Path) -> None:
    file = patients(tmp_path / "rows.csv")
    raw = {**COMMON, "model": MLP, "data": {"source": str(file), "label": "label"}}
    folder = run(parse(raw), tmp_path / "run")
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(f"7,{line.rpartition(',')[0]}" for line in file.read_text().splitlines()) + "\n")
    bare.write_text(bare.read_text().replace("7,age", "other,age", 1))
    expected = list(predict(folder, [str(file)]).lines())
    assert list(predict(folder, [str(bare)]).lines()) == expected
    said = command("predict", folder, "--input", bare)
    assert said.code == 0, said.err
    written = list(csv.DictReader(said.out.splitlines()))
    assert [one["class"] for one in written] == [one["class"] for one in expected]
    assert [float(one["probability"]) for one in written] == [one["probability"] for one in expected]
    out = tmp_path / "made" / "rows.jsonl"
    assert command("predict", folder, "--input", bare, "--out", out).code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected


def test_a_client_predicts_with_its_own_model(tmp_path: Path) -> None:
    file = images(tmp_path / "rows.npz")
    partition = {"num_clients": 2, "test_fraction": 0.4}
    raw = {
        **COMMON,
        "model": VIT,
        "data": {"source": str(file)},
        "partition": partition,
        "method": {"name": "local-only"},
    }
    folder = run(parse(raw), tmp_path / "run")
    truth = labels_of(str(file))
    with pytest.raises(RunError, match="has no global model"):
        predict(folder, [str(file)])
    recorded = read_rounds(folder)[-1]["evaluation"]["clients"]
    for client in read_partition(folder)["clients"]:
        lines = [*predict(folder, [str(file)], client["id"]).lines()]
        held = [lines[row] for row in client["test"]]
        expected = recorded[str(client["id"])]["accuracy"]
        assert accuracy(held, [truth[row] for row in client["test"]]) == pytest.approx(expected)


def test_a_language_model_writes_the_texts_that_its_evaluation_judged(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [{"text": f"{row % 5} and", "answer": f" {(row + 1) % 5}"} for row in range(20)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"source": str(file), "test": str(file), "target": "answer", "answers": "exact", "new_tokens": 4}
    training = {"steps": 20, "batch_size": 8, "learning_rate": 0.02}
    raw = {**COMMON, "model": LLAMA, "data": data, "training": training, "adapter": {"targets": "all-linear"}}
    folder = run(parse(raw), tmp_path / "run")
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"text": line["text"]}) + "\n" for line in lines))
    found = list(predict(folder, [str(bare)]).lines())
    right = [one["text"].strip() == line["answer"].strip() for one, line in zip(found, lines, strict=True)]
    assert np.mean(right) == pytest.approx(read_rounds(folder)[-1]["evaluation"]["global"]["accuracy"])


def test_rows_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    file = patients(tmp_path / "rows.csv")
    folder = run(parse({**COMMON, "model": MLP, "data": {"source": str(file)}}), tmp_path / "run")
    short = tmp_path / "short.csv"
    short.write_text("age,label\n30,ill\n40,well\n")
    with pytest.raises(DataError, match=r"the column 'smokes' is not there.*short\.csv"):
        predict(folder, [str(short)])
    with pytest.raises(DataError, match=r"--input '.*nowhere\.csv'"):
        predict(folder, [str(tmp_path / "nowhere.csv")])
    with pytest.raises(RunError, match="--input: 2 are given"):
        predict(folder, [str(file), str(file)])
    with pytest.raises(RunError, match=r"--without bank: .* is no vertical run"):
        predict(folder, [str(file)], without=["bank"])
    with pytest.raises(RunError, match="--client 7"):
        predict(folder, [str(file)], 7)


# Vertical runs --------------------------------------------------------------------------------------------------------


def vertical(method: str = "proto-evfl", **more: Any) -> dict[str, Any]:
    return {**tomllib.loads(BY_COLUMNS), "method": {"name": method, "minibatches": 2}, **more}


def rows_tested(raw: dict[str, Any], folder: Path) -> tuple[Path, list[str]]:
    """A file of the rows that a vertical run was tested on, and their classes."""
    config = parse(raw)
    rows = rows_of(config, party_parts(config), dealing_of(config), Rng(config.seed))
    columns: dict[str, Any] = {}
    for table in rows.tables:
        assert isinstance(table.inputs, Cells)
        columns |= table.inputs.columns
    chosen = rows.dealt.test
    lines = [",".join(columns), *(",".join(str(own[row]) for own in columns.values()) for row in chosen)]
    file = folder / "tested.csv"
    file.write_text("\n".join(lines) + "\n")
    return file, [rows.classes[label] for label in rows.labels[chosen]]


@pytest.mark.parametrize("method", ["proto-evfl", "vfl-split", "vfl-local", "vfl-ensemble"])
def test_parties_predict_what_their_last_evaluation_did(method: str, tmp_path: Path) -> None:
    raw = vertical(method)
    folder = run(parse(raw), tmp_path / "run")
    file, truth = rows_tested(raw, tmp_path)
    last = read_rounds(folder)[-1]
    whole = predict(folder, [str(file)])
    assert accuracy([*whole.lines()], truth) == pytest.approx(last["evaluation"]["global"]["accuracy"], abs=1e-6)
    for party in ("left", "right"):
        less = [*predict(folder, [str(file)], without=[party]).lines()]
        recorded = last["state"].get(f"without {party}", last["evaluation"]["global"]["accuracy"])
        assert accuracy(less, truth) == pytest.approx(recorded, abs=1e-6)


def test_each_party_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    raw = vertical()
    folder = run(parse(raw), tmp_path / "run")
    file, _ = rows_tested(raw, tmp_path)
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    given = []
    for label, ends in (("left", "0123"), ("right", "45"), ("rest", "67")):
        own = tmp_path / f"{label}.csv"
        names = [name for name in rows[0] if name[-1] in ends]
        own.write_text("\n".join([",".join(names), *(",".join(row[name] for name in names) for row in rows)]) + "\n")
        given.append(f"{label}={own}")
    whole = predict(folder, [str(file)])
    assert [*predict(folder, given).lines()] == [*whole.lines()]
    assert [*predict(folder, given[1:], without=["left"]).lines()] == [
        *predict(folder, [str(file)], without=["left"]).lines()
    ]
    short = tmp_path / "left.csv"
    short.write_text("\n".join(short.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match="must be the same ones in one order, and 'left' has 59"):
        predict(folder, given)
    with pytest.raises(RunError, match="all parties predict together"):
        predict(folder, given, 0)


def test_an_encoder_that_stays_on_its_site_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = vertical()
    folder = run(parse(raw), tmp_path / "run")
    file, _ = rows_tested(raw, tmp_path)
    loaded = Record.load_checkpoint

    def of_server(self: Record, next_round: int | None = None) -> Any:
        number, state, memories = loaded(self, next_round)
        return number, state, {id: own for id, own in memories.items() if id != 1}

    monkeypatch.setattr(Record, "load_checkpoint", of_server)
    with pytest.raises(RunError, match="the encoder of party 'right' stays on its own site"):
        predict(folder, [str(file)])
    assert len([*predict(folder, [str(file)], without=["right"]).lines()]) == 60


@pytest.mark.parametrize(
    ("inputs", "without", "words"),
    [
        (["a.csv"], ["middle"], "--without middle: there is no such party; the parties are left, right"),
        (["a.csv"], ["right"], "--without right: is the active party"),
        (["a.csv", "b.csv"], [], "--input b.csv: give one file with the columns of all parties"),
        (["left=a.csv"], [], "party 'right' has no file"),
        (["left=a.csv", "left=b.csv"], [], "party 'left' has the file a.csv already"),
        (["left=a.csv", "b.csv"], [], "--input b.csv: give one file"),
    ],
)
def test_what_is_said_of_parties_must_fit(inputs: list[str], without: list[str], words: str) -> None:
    with pytest.raises(FedquiltError, match=words):
        files_of(("left", "right"), inputs, without)


def test_files_of_parties_are_told_from_paths_with_an_equals_sign() -> None:
    assert files_of(("left", "right"), ["a=b.csv"], []) == {"left": "a=b.csv", "right": "a=b.csv"}
    assert files_of(("left", "right"), ["right=a=b.csv"], ["left"]) == {"right": "a=b.csv"}
