"""Federations whose rows are columns of numbers and categories: every way to train the MLP, and what is declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedquilt
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError, DataError, FedquiltError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.data.cells import Cells, Wanted
from fedquilt.data.loaders import load_table
from fedquilt.data.tabular import fit
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.merged_model import export_merged
from fedquilt.experiment.plan import plan
from fedquilt.models.features import saved_features
from fedquilt.models.mlp import Mlp

WINE: dict[str, Any] = {
    "model": {"name": "mlp?layers=3&width=16", "task": "tabular-classification"},
    "data": {"source": "sklearn:wine"},
    "partition": {"num_clients": 3},
    "clients": {"budgets": [1, 2, 3]},
    "training": {"steps": 5, "learning_rate": 0.02},
    "rounds": 2,
    "method": {"name": "fedit"},
}
FULL = {"adapter": {"kind": "full"}}
BRANCHES = {"adapter": {"kind": "mixture", "sites": ["feed-forward"], "rank": 4}}


def rows(folder: Path, number: int, size: int = 40) -> Path:
    """A file of patients, of whom the old and the smokers are ill; of one site's own age."""
    draw = Rng(number).numpy()
    age, smokes = draw.normal(45 + 10 * number, 12, size), draw.random(size) < 0.4
    lines = ["id,age,smokes,ward,label"]
    for row in range(size):
        ill = age[row] + 30 * smokes[row] > 65
        written = "" if row == 3 else f"{age[row]:.1f}"
        lines.append(f"{row},{written},{'yes' if smokes[row] else 'no'},{row % 3},{'ill' if ill else 'well'}")
    path = folder / f"hospital-{number}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fedit", FULL),
        ("full", FULL),
        ("fedit", {}),
        ("fed-hello", {"data": {"source": "sklearn:wine", "proxy": 20}}),
        ("heterotune", BRANCHES),
        ("h2tune", {}),
        ("local-only", {}),
    ],
)
def test_every_kind_of_method_trains_the_mlp(method: str, more: dict[str, Any], tmp_path: Path) -> None:
    run = fedquilt.run({**WINE, **more, "method": {"name": method}}, folder=tmp_path / "run")
    assert run.curve("accuracy", "clients-mean")["accuracy"][-1] > 0.6  # by chance 0.4


PUBLIC = {"axes": {"source": "sklearn:wine", "inputs": 60, "held_out": 20}}
COMMON = {"adapter": {"kind": "common", "sites": ["feed-forward"]}, **PUBLIC}


@pytest.mark.parametrize(("method", "more"), [("h2tune", {}), ("heterotune", BRANCHES), ("heterotune", COMMON)])
def test_models_of_unlike_depth_and_width_share_what_the_method_shares(
    method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    groups = [
        {"label": "small", "budget": 2, "model": {**WINE["model"], "name": "mlp?layers=2&width=16"}},
        {"label": "large", "budget": 4, "model": {**WINE["model"], "name": "mlp?layers=4&width=24"}},
    ]
    config = {key: value for key, value in WINE.items() if key != "clients"}
    run = fedquilt.run({**config, **more, "groups": groups, "method": {"name": method}}, folder=tmp_path / "run")
    assert run.curve("accuracy", "clients-mean")["accuracy"][-1] > 0.6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"adapter": {"kind": "mixture"}},
            r"attention part; .*expand, contract; set adapter\.sites = \['feed-forward'\]",
        ),
        ({"adapter": COMMON["adapter"]}, r"axes\.source: missing; fedquilt has no public rows of tables"),
    ],
)
def test_what_blocks_without_attention_need_is_said(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FedquiltError, match=said):
        fedquilt.run({**WINE, **more, "method": {"name": "heterotune"}}, folder=tmp_path / "run")


def test_columns_are_fitted_on_the_training_rows_of_all_clients_and_exported_with_the_model(tmp_path: Path) -> None:
    source = str(rows(tmp_path, 1))
    config = {**WINE, **FULL, "data": {"source": source, "categorical": ["ward"]}}
    run = fedquilt.run(config, folder=tmp_path / "run")
    cells = load_table(source, cells=Wanted(categorical=("ward",))).inputs
    assert isinstance(cells, Cells)
    partition = json.loads((tmp_path / "run" / "partition.json").read_text("utf-8"))
    trained = np.sort(np.concatenate([client["train"] for client in partition["clients"]]))
    assert len(trained) < len(cells)
    features = saved_features(run.adapter())
    assert features == fit(cells, trained)
    assert features.names == (
        *("age", "age is missing", "smokes = no", "smokes = yes", "ward = 0", "ward = 1", "ward = 2"),
    )
    with torch.no_grad():
        assert run.model()(features=features(cells)).logits.shape == (40, 2)


def test_an_exported_model_is_the_base_of_another_run_with_its_own_preprocessing(tmp_path: Path) -> None:
    first = fedquilt.run({**WINE, **FULL, "data": {"source": str(rows(tmp_path, 1))}}, folder=tmp_path / "first")
    model = {**WINE["model"], "name": str(first.adapter())}
    again = {**WINE, "model": model, "data": {"source": str(rows(tmp_path, 3))}, "rounds": 1}
    second = fedquilt.run(again, folder=tmp_path / "second")
    assert saved_features(second.adapter()) == saved_features(first.adapter())
    with pytest.raises(ConfigError, match=r"data\.ranges = .*: no effect with .*saved with its own ranges"):
        fedquilt.run({**again, "data": {**again["data"], "ranges": {"age": [0, 100]}}}, folder=tmp_path / "third")


SITES = {"scheme": "sites", "num_clients": 3, "test_fraction": 0.25}
DECLARED = {"classes": ["ill", "well"], "ranges": {"age": [0, 100]}, "categories": {"smokes": ["no", "yes"]}}


def test_hospitals_with_files_of_their_own_declare_their_columns(tmp_path: Path) -> None:
    for number in range(3):
        rows(tmp_path, number, 80)
    source = {"source": str(tmp_path / "hospital-{client}.csv")}
    config = {**WINE, **FULL, "partition": SITES, "data": {**source, **DECLARED}, "rounds": 4}
    run = fedquilt.run(config, folder=tmp_path / "run")
    assert run.curve("accuracy", "clients-mean")["accuracy"][-1] > 0.8
    features = saved_features(run.adapter())
    assert features is not None
    assert features.names == (*("age", "age is missing", "smokes = no", "smokes = yes", "smokes is another"),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ranges": {}, "categories": {}},
            r"no column is declared; with partition\.scheme = 'sites' no party sees all",
        ),
        ({"columns": ["age", "smokes", "ward"]}, "of 'ward' nothing is declared; .*ranges = {age"),
        ({"classes": None}, r"data\.classes: missing"),
    ],
)
def test_sites_must_declare_what_no_party_can_learn_alone(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    for number in range(3):
        rows(tmp_path, number)
    data = {"source": str(tmp_path / "hospital-{client}.csv"), **DECLARED, **changes}
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(ConfigError, match=said):
        fedquilt.run({**WINE, **FULL, "partition": SITES, "data": data}, folder=tmp_path / "run")
    problems = fedquilt.check({**WINE, **FULL, "partition": SITES, "data": data})
    assert any("data." in problem for problem in problems)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"label": "diagnosis"},
            r"data\.label = 'diagnosis': .* has no such column; columns: id, age, smokes, ward, label",
        ),
        ({"columns": ["ages"]}, r"data\.columns = \['ages'\]: the column 'ages' is not there \(did you mean 'age'\?\)"),
        ({"ranges": {"age": [9, 3]}}, r"data: ranges.*'age' must begin with the lower|'age' must begin with the lower"),
        ({"ranges": {"age": [0, 9]}, "categorical": ["age"]}, "ranges has 'age', which is a column of categories too"),
        ({"columns": ["age"], "ranges": {"ward": [0, 3]}}, "'ward' is declared and not among columns"),
        ({"ranges": {"smokes": [0, 1]}}, "'smokes' holds numbers, and here none"),
    ],
)
def test_mistakes_name_the_key_its_value_and_what_is_there(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    config = {**WINE, "data": {"source": str(rows(tmp_path, 1)), **data}}
    with pytest.raises(FedquiltError, match=said):
        fedquilt.run(config, folder=tmp_path / "run")


def test_a_table_without_labels_and_other_kinds_of_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("age,sex\n1,f\n2,m\n")
    with pytest.raises(DataError, match=r"has no labels, .* set data\.label .*\(columns: age, sex\)"):
        fedquilt.run({**WINE, "data": {"source": str(tmp_path / "rows.csv")}}, folder=tmp_path / "run")
    image = {"name": "tiny:vit?image=8&patch=4", "task": "image-classification"}
    with pytest.raises(DataError, match=r"rows of numbers and categories need model\.task = 'tabular-classification'"):
        fedquilt.run({**WINE, "model": image}, folder=tmp_path / "run")


def test_a_test_file_is_read_as_the_training_file_is(tmp_path: Path) -> None:
    """Its codes look like numbers, and are categories because those of the training file are."""
    (tmp_path / "train.csv").write_text(
        "code,x,label\n" + "".join(f"{'a' if n % 3 else 7},{n},{n % 2}\n" for n in range(24))
    )
    (tmp_path / "test.csv").write_text("code,x,label\n7,1,0\n7,2,1\n")
    data = {"source": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    run = fedquilt.run({**WINE, "data": data, "rounds": 1}, folder=tmp_path / "run")
    assert len(run.curve("accuracy")["accuracy"]) == 1


def test_the_server_of_sites_knows_the_model_without_any_row(tmp_path: Path) -> None:
    rows(tmp_path, 1)
    data = {"source": str(tmp_path / "hospital-{client}.csv"), **DECLARED}
    config = parse({**WINE, **FULL, "partition": SITES, "data": data})
    assert check(parse({**WINE, **FULL, "partition": SITES, "data": {**data, "source": "node"}})) == []
    server, site = build(config, ()), build(config, (1,))
    assert server.clients == {}
    assert server.layout == site.layout
    assert server.loaded.reading.features == site.loaded.reading.features


@pytest.mark.parametrize("more", [FULL, {}, BRANCHES])
def test_inputs_for_an_exported_model_come_of_any_rows_with_its_columns(more: dict[str, Any], tmp_path: Path) -> None:
    source = rows(tmp_path, 1)
    run = fedquilt.run({**WINE, **more, "data": {"source": str(source)}}, folder=tmp_path / "run")
    inputs = fedquilt.features(run.adapter(), source)
    lines = [line.split(",") for line in source.read_text().splitlines()]
    columns = {name: [line[place] for line in lines[1:]] for place, name in enumerate(lines[0])}
    assert torch.equal(fedquilt.features(run.adapter(), columns), inputs)
    assert run.model()(features=inputs).logits.shape == (40, 2)
    with pytest.raises(DataError, match="the column 'age' is not there; the columns of 'the rows' are: smokes, ward"):
        fedquilt.features(run.adapter(), {"smokes": ["yes"], "ward": [1]})
    with pytest.raises(DataError, match=r"'age' holds numbers, and here none \('old'\)"):
        fedquilt.features(run.adapter(), {"age": ["old"], "smokes": ["yes"], "ward": [1]})
    with pytest.raises(ModelError, match="holds no preprocessing of columns"):
        fedquilt.features(tmp_path, columns)


def test_an_adapter_is_exported_with_its_preprocessing_and_merged_into_a_model_that_computes_the_same(
    tmp_path: Path,
) -> None:
    run = fedquilt.run({**WINE, "adapter": {"rank": 4}}, folder=tmp_path / "run")
    export(run.folder, tmp_path / "adapter")
    assert {"adapter_model.safetensors", "preprocessor_config.json", "README.md"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()
    }
    assert "fedquilt export RUN --merged" in (tmp_path / "adapter" / "README.md").read_text("utf-8")
    export_merged(run.folder, tmp_path / "merged")
    merged = Mlp.from_pretrained(tmp_path / "merged").eval()
    inputs = fedquilt.features(tmp_path / "merged", "sklearn:wine")
    torch.testing.assert_close(merged(features=inputs).logits, run.model()(features=inputs).logits)
    assert merged.config.id2label == {0: "class_0", 1: "class_1", 2: "class_2"}


def test_a_run_that_goes_back_and_on_ends_in_the_same_bits(tmp_path: Path) -> None:
    run = fedquilt.run({**WINE, **FULL, "checkpoints": {"keep": 3}}, folder=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.adapter().iterdir()}
    run.resume(back_to=1)
    assert {path.name: path.read_bytes() for path in run.adapter().iterdir()} == before


def test_check_says_what_the_columns_were_read_as_and_plan_needs_no_weights(tmp_path: Path) -> None:
    config = parse({**WINE, "data": {"source": str(rows(tmp_path, 1))}})
    notes: list[str] = []
    assert check(config, notes=notes) == []
    assert notes == ["data: columns of numbers 2, of categories 1 ('smokes'); together 5 features"]
    assert plan(config)[0].weight_bytes > 0


def test_a_frame_in_memory_and_a_module_of_ones_own(tmp_path: Path) -> None:
    import pandas

    class Net(torch.nn.Module):
        """Two blocks behind a linear map of five features."""

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(5, 8)
            self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8)) for _ in range(2))
            self.head = torch.nn.Linear(8, 2)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self.first(features)
            for layer in self.layers:
                x = x + layer(x).tanh()
            made: torch.Tensor = self.head(x)
            return made

    frame = pandas.read_csv(rows(tmp_path, 1))
    config = {**WINE, **FULL, "model": {}, "clients": {"budgets": [1, 1, 2]}}
    own = fedquilt.run(config, model=Net(), task="tabular-classification", data=frame, folder=tmp_path / "own")
    assert own.model()(fedquilt.features(own.adapter(), frame)).shape == (40, 2)


def test_keys_of_data_alone_are_no_table_of_rows(tmp_path: Path) -> None:
    config = {**WINE, "data": {"source": str(rows(tmp_path, 1))}}
    run = fedquilt.run(config, data={"ranges": {"age": [0, 100]}}, folder=tmp_path / "run", rounds=1)
    assert run.config.data.ranges == {"age": (0.0, 100.0)}
    run = fedquilt.run(config, data={"columns": ["age", "ward"]}, folder=tmp_path / "other", rounds=1)
    assert run.config.data.columns == ("age", "ward")
