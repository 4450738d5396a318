"""Differences between two configs are listed by key."""

from __future__ import annotations

import pytest
from run_folders import CONFIG, create

from fedquilt.core.errors import RunError
from fedquilt.record import Record


def test_open_names_the_keys_in_which_another_config_differs(tmp_path):
    made = create(tmp_path / "toy")
    assert Record.open(made.folder, CONFIG).config == CONFIG
    other = {"name": "toy", "seed": 2, "output": "elsewhere", "training": {"steps": 6, "learning_rate": 0.1, "new": 1}}
    with pytest.raises(RunError, match="this run was started from another config") as caught:
        Record.open(made.folder, other, ignored=("output",))
    text = str(caught.value)
    assert (
        "seed is 1 there and 2 now; training.new is None there and 1 now; training.steps is 5 there and 6 now;" in text
    )
    assert "output" not in text
    assert Record.open(made.folder, other, ignored=("output", "seed", "training")).folder == made.folder
