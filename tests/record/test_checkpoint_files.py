"""Checkpoint files: a memory counts as saved only when the manifest names its file."""

from __future__ import annotations

import pytest
import torch
from run_folders import create, no_space

from fedquilt.core.errors import RunError
from fedquilt.record import Record, folder


def test_memories_of_a_checkpoint_that_no_manifest_names_are_written_again(tmp_path, monkeypatch):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"t": 1}, {0: {"x": torch.zeros(2)}})
    memories = {0: {"x": torch.ones(2)}}

    def refuse(*_):
        raise no_space()

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_manifest", refuse)
        with pytest.raises(RunError, match="No space left on device"):
            made.save_checkpoint(2, {"t": 2}, memories)
    made.go_back(1)  # deletes the files that the manifest does not name
    assert len(list((made.folder / "checkpoint").iterdir())) == 2
    made.save_checkpoint(2, {"t": 2}, memories)  # the same objects as in the checkpoint that failed
    number, state, loaded = Record.open(made.folder).load_checkpoint()
    assert (number, state) == (2, {"t": 2})
    assert torch.equal(loaded[0]["x"], memories[0]["x"])
