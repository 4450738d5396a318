"""An exported adapter whose base nobody could load by its name comes with the base, and its card loads both."""

import re
from pathlib import Path

import pytest
import torch

from fedquilt.experiment.export import export
from fedquilt.experiment.run import run
from fedquilt.experiment.trained_model import trained_model


def logits(model, size):
    with torch.no_grad():
        return model.eval()(pixel_values=torch.linspace(-1, 1, 2 * size * size).reshape(2, 1, size, size)).logits


@pytest.mark.parametrize("name", ["tiny:vit?layers=3&width=16&image=8&patch=4", "glyph-vit-4x32?layers=3"])
def test_the_card_of_an_export_loads_what_the_run_trained(config, tmp_path, monkeypatch, name):
    folder = run(config(f"model.name='{name}'", "rounds=1"), tmp_path / "run")
    made = export(folder, tmp_path / "adapter")
    assert (made / "base" / "model.safetensors").is_file()
    assert not (folder / "adapters" / "global" / "base").exists()  # a run does not hold it once for each client
    monkeypatch.chdir(made)
    known = {}
    exec(re.search(r"```python\n(.*?)```", Path("README.md").read_text("utf-8"), re.S)[1], known)
    expected = trained_model(folder)
    size = expected.config.image_size
    assert known["model"].config.id2label[0] == "0"
    torch.testing.assert_close(logits(known["model"], size), logits(expected, size), rtol=0, atol=1e-5)
    assert export(folder, made) == made  # again, over the first


def test_a_base_with_a_place_of_its_own_is_not_copied(config, tmp_path):
    from fedquilt.experiment.merged_model import export_merged

    first = run(config("rounds=1"), tmp_path / "first")
    whole = export_merged(first, tmp_path / "whole")
    folder = run(config(f"model.name='{whole}'", "rounds=1"), tmp_path / "run")
    assert not (export(folder, tmp_path / "adapter") / "base").exists()
