"""Preprocessing is what scikit-learn's own pipeline gives, and survives a round trip through JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fedquilt.core.errors import DataError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.data.cells import Cells
from fedquilt.data.tabular import Category, Number, declared, fit, preprocessor_from


def cells(rows: int = 300) -> Cells:
    """Numbers of unlike scales, with gaps, without, and constant ones; frequent, rare and missing categories."""
    draw = Rng(3).numpy()
    gaps = np.where(draw.random(rows) < 0.2, np.nan, draw.normal(50, 20, rows))
    colours = draw.choice(np.array(["red", "blue", "green", "grey", "pink", None], dtype=object), rows)
    colours[draw.random(rows) < 0.5] = "red"
    codes = draw.choice(np.array(["a", "b"], dtype=object), rows)
    columns = {"gaps": gaps, "colour": colours, "tiny": draw.normal(0, 1e-6, rows), "same": np.full(rows, 7.0)}
    return Cells({**columns, "code": codes})


def oracle(most: int) -> ColumnTransformer:
    """The same features by scikit-learn alone: the flags of missing numbers stand beside their columns in ours."""
    numbers, texts = ["gaps", "tiny", "same"], ["colour", "code"]
    scaled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False)
    return ColumnTransformer([("n", scaled, numbers), ("m", MissingIndicator(), numbers), ("c", encoder, texts)])


@pytest.mark.parametrize("most", [32, 4, 2])
def test_features_are_those_of_scikit_learns_pipeline(most: int) -> None:
    import pandas

    whole, trained = cells(), np.arange(200)
    whole.columns["colour"][250] = "never seen in training"
    made = fit(whole, trained, most=most)
    frame = pandas.DataFrame(dict(whole.columns))
    wanted = oracle(most).fit(frame.iloc[:200]).transform(frame)
    flag = made.names.index("gaps is missing")
    own = made(whole)
    ordered = torch.cat([own[:, [0, 2, 3]], own[:, [flag]], own[:, 4:]], dim=1)  # scikit-learn's: flags after numbers
    torch.testing.assert_close(ordered, torch.tensor(wanted.astype(np.float32)), rtol=1e-6, atol=1e-6)
    assert own.shape == (300, made.width)
    assert own.dtype == torch.float32


def test_the_rows_that_are_fitted_on_have_mean_0_and_variance_1_and_constant_columns_are_0() -> None:
    made = fit(cells())
    features = dict(zip(made.names, made(cells()).T, strict=True))
    assert features["tiny"].mean() == pytest.approx(0, abs=1e-6)
    assert features["tiny"].var(unbiased=False) == pytest.approx(1, abs=1e-5)
    assert not features["same"].any()
    assert features["gaps is missing"].tolist() == np.isnan(cells().columns["gaps"]).tolist()


def test_unseen_and_missing_categories() -> None:
    column = np.array(["a", "a", "b", None], dtype=object)
    made = fit(Cells({"x": column}))
    assert made.names == ("x = a", "x = b", "x is missing")
    other = Cells({"x": np.array(["c", None], dtype=object)})
    assert made(other).tolist() == [[0, 0, 0], [0, 0, 1]]
    grouped = fit(Cells({"x": column}), most=2)
    assert grouped.names == ("x = a", "x is another")
    assert grouped(other).tolist() == [[0, 1], [0, 1]]


def test_a_column_without_any_value_is_0_and_flagged() -> None:
    made = fit(Cells({"x": np.full(3, np.nan)}))
    assert made(Cells({"x": np.array([np.nan, 2.0])})).tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize("most", [32, 3])
def test_json_round_trip(most: int) -> None:
    made = fit(cells(), most=most)
    again = preprocessor_from(json.loads(json.dumps(made.as_json())), "file")
    assert again == made
    assert torch.equal(again(cells()), made(cells()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "file: holds no preprocessing of columns that can be read"),
        ({"columns": []}, "no columns"),
        ({"columns": [{"name": "x", "fill": 0, "centre": 0, "scale": 0, "flagged": True}]}, "a scale of 0"),
        ({"columns": [{"name": "x", "values": [1], "other": True}]}, "categories of 'x' that are not text"),
    ],
)
def test_damaged_json_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        preprocessor_from(fit(cells()).as_json() | changes, "file")


def test_declared_columns_need_no_rows() -> None:
    made = declared({"age": (0, 100)}, {"sex": ("f", "m")})
    assert made.columns == (Number("age", 50, 50, 50, flagged=True), Category("sex", ("f", "m"), other=True))
    rows = Cells({"age": np.array([0, 100, np.nan, 150.0]), "sex": np.array(["f", "m", None, "x"], dtype=object)})
    assert made(rows).tolist() == [[-1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [2, 0, 0, 0, 1]]


def test_declared_and_fitted_columns_together() -> None:
    made = fit(cells(), ranges={"gaps": (0, 100)}, categories={"code": ("b",)})
    kept = {column.name: column for column in made.columns}
    assert kept["gaps"] == Number("gaps", 50, 50, 50, flagged=True)
    assert kept["code"] == Category("code", ("b",), other=True)
    assert kept["same"] == Number("same", 7, 7, 1, flagged=False)


def test_rows_of_other_columns_are_refused() -> None:
    made = fit(cells())
    with pytest.raises(DataError, match="no column 'gaps', which the model reads; their columns: tiny, code"):
        made(cells().of(["tiny", "code"]))
    odd = Cells({**cells().columns, "gaps": cells().columns["code"]})
    with pytest.raises(DataError, match=r"'gaps' holds categories, and the model reads numbers there; .*data\.ranges"):
        made(odd)
    with pytest.raises(DataError, match="no rows to fit"):
        fit(cells(), np.array([], dtype=np.int64))


def test_numbers_far_beyond_all_others_stay_finite() -> None:
    made = fit(cells())
    assert made(Cells({**cells().columns, "tiny": np.full(300, 1e300)}))[:, made.names.index("tiny")].max() == 1e6
