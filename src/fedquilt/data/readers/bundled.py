"""Sources that need no files of the user's: scikit-learn's, drawings of letters, and passages of a novel."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.readers.raw_columns import Raw, from_columns, of_one_file
from fedquilt.data.synthetic.glyphs import CLASSES, glyph_table
from fedquilt.data.table import Table

GLYPHS = "glyphs"
"""The source of labelled drawings of letters and symbols, see ``data.synthetic.glyphs``; no digits are among them."""

PASSAGES = "passages"
"""The source of 1,440 passages of English prose, each of 12 words or more; see ``assets/passages.md``."""

SKLEARN = ("digits", "breast_cancer", "iris", "wine")
"""The bundled data sets of scikit-learn with classes: pictures of digits, and tables of numbers."""

_NOT_CLASSES = ("diabetes", "linnerud")  # bundled too, but with numbers to predict
_NUM_GLYPHS = {"train": 2000, "test": 400}
_MOST_GLYPHS = 1_000_000


def read_bundled(location: str, source: str) -> dict[str, Raw] | None:
    """The columns of each split of a bundled source, as ``by_location.read_location``; None if it is not one.

    Raises
    ------
    DataError
        if there is no bundled source of this name, or it cannot have so many rows.
    """
    name, _, rest = location.partition(":")
    if name == "sklearn" and rest:
        return {"": _sklearn(rest, source)}
    if location == PASSAGES:
        return {"": from_columns({"text": _passages()}, PASSAGES)}
    return _glyphs(rest, source) if re.fullmatch(f"{GLYPHS}(:.*)?", location) else None


def _sklearn(name: str, source: str) -> Raw:
    if name in _NOT_CLASSES:
        raise DataError(
            f"data.source = '{source}': {name} holds numbers to predict and no classes; of scikit-learn's bundled sets "
            f"{', '.join(SKLEARN)} can be used"
        )
    if name not in SKLEARN:
        raise DataError(
            f"data.source = '{source}': there is no such set{suggestion(name, SKLEARN)}; of scikit-learn's "
            f"bundled sets {', '.join(SKLEARN)} can be used"
        )
    if name != "digits":
        return _sklearn_table(name)
    images, labels = _digits()
    return from_columns({"image": images.copy(), "label": labels.copy()})


def _sklearn_table(name: str) -> Raw:
    """A bundled table of numbers, under the names that scikit-learn gives to its columns and classes."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    columns = {str(own): bunch.data[:, place] for place, own in enumerate(bunch.feature_names)}
    made = from_columns({**columns, "label": bunch.target.tolist()}, f"sklearn:{name}")
    return replace(made, class_names={"label": tuple(map(str, bunch.target_names))})


@cache
def _digits() -> tuple[Any, Any]:
    """Scikit-learn's digits, images uint8 (n, 8, 8) and labels (n,): a comparison reads them once, not once a run.

    What ``sklearn.datasets.load_digits`` reads, without its import, which takes a process more than a second.
    """
    package = find_spec("sklearn")
    assert package is not None  # fedquilt depends on it
    assert package.origin is not None
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = rows[:, :-1].reshape(-1, 8, 8)  # counts in 0..16
    return np.round(images * (255 / 16)).astype(np.uint8), rows[:, -1].astype(int)


@cache
def _passages() -> list[str]:
    text = (resources.files("fedquilt") / "assets" / "passages.txt").read_text(encoding="utf-8")
    return text.splitlines()


def _glyphs(given: str, source: str) -> dict[str, Raw]:
    """Drawings for training, as many as ``given`` says, and for testing; those of a split are made when it is read."""
    if given and not (given.isdecimal() and 0 < int(given) <= _MOST_GLYPHS):
        raise DataError(
            f"data.source = '{source}': '{given}' is no number of drawings from 1 to {_MOST_GLYPHS}; write "
            f"'{GLYPHS}', or '{GLYPHS}:5000' for 5,000 of them to train with"
        )
    sizes = _NUM_GLYPHS | ({"train": int(given)} if given else {})
    return {split: _drawn_when_read(split, size) for split, size in sizes.items()}


def _drawn_when_read(split: str, size: int) -> Raw:
    read: dict[str, Callable[[], Any]] = {
        "image": lambda: np.asarray(_drawings(split, size).inputs),
        "label": lambda: np.asarray(_drawings(split, size).labels),
    }
    origin = of_one_file(GLYPHS, "row", np.arange(1, size + 1))
    return Raw(tuple(read), size, lambda name: read[name](), origin, {"label": CLASSES})


@lru_cache(maxsize=2)
def _drawings(split: str, size: int) -> Table:
    return glyph_table(size, Rng(0, ("glyph drawings",)).child(split))
