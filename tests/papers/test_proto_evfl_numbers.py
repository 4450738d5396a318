"""Accuracies of a small vertical federation: what its labelled unaligned rows and the mask of classes are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedquilt.config.load import parse
from fedquilt.experiment import run
from fedquilt.record import read_rounds

pytestmark = pytest.mark.slow

HALVES = {"left": ["image_?_[0-3]"], "right": ["image_?_[4-7]"]}
DIAGONALS = {
    "diagonal": ["image_[0-3]_[0-3]", "image_[4-7]_[4-7]"],
    "other": ["image_[0-3]_[4-7]", "image_[4-7]_[0-3]"],
}
CLASSES = {"left": "013487", "right": "13489", "diagonal": "014897", "other": "03469"}


def accuracy(folder: Path, partition: dict[str, Any], *, lists: bool = True, **method: Any) -> float:
    """The accuracy in per cent of four parties with quadrant pairs of digits, after 20 rounds."""
    parties = [
        {"label": label, "columns": columns, **({"classes": [*CLASSES[label], "2", "5"]} if lists else {})}
        for label, columns in (HALVES | DIAGONALS).items()
    ]
    config = parse(
        {
            "rounds": 20,
            "threads": 1,
            "model": {"name": "mlp?layers=1&width=64", "task": "tabular-classification"},
            "data": {"source": "sklearn:digits"},
            "partition": {"scheme": "vertical", "unaligned": 300, "tail": 0.1, "test_fraction": 0.3, **partition},
            "adapter": {"kind": "full"},
            "training": {"steps": 20, "batch_size": 64, "learning_rate": 0.0005},
            "evaluation": {"every": 20, "last": 1},
            "method": {"name": "proto-evfl", **method},
            "parties": parties,
        }
    )
    return 100 * read_rounds(run(config, folder))[-1]["evaluation"]["global"]["accuracy"]


def test_proto_11_class_lists_and_the_mask_of_classes(tmp_path: Path) -> None:
    few = {"aligned": 40, "aligned_classes": ["2", "5"]}
    whole = accuracy(tmp_path / "whole", few)
    assert whole >= accuracy(tmp_path / "aligned", few, name="vfl-split") + 40
    assert accuracy(tmp_path / "unmasked", few, mask=False) <= whole - 8


def test_proto_11_all_classes_aligned(tmp_path: Path) -> None:
    some = {"aligned": 50, "tail": 1.0}
    split = accuracy(tmp_path / "aligned", some, lists=False, name="vfl-split")
    assert accuracy(tmp_path / "whole", some, lists=False) >= split + 4
