from pathlib import Path

import pytest

from fedquilt.cli.examples import EXAMPLES

TINY_IMAGES = {
    "glyph-vit-4x32": "tiny:vit?layers=2&width=16&image=8&patch=4",
    "glyph-vit-8x48": "tiny:vit?layers=3&width=24&image=8&patch=4",
    "glyph-vit": "tiny:vit?layers=4&width=16&image=8&patch=4",
}


def test_all_are_listed_with_what_they_show(command):
    said = command("examples")
    assert said.code == 0
    assert len(EXAMPLES) == 5
    for name, file in EXAMPLES.items():
        assert f"\n{name}\n  " in f"\n{said.out}"
        assert file.read_text().startswith("# ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_passes_check(command, name):
    assert command("examples", name).code == 0
    said = command("check", f"{name}.toml")
    assert said.code == 0, said.err
    assert "is there already" in command("examples", name).err


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_runs_one_round(command, name):
    """With tiny models in place of those of images; those of texts and tables are small."""
    text = EXAMPLES[name].read_text()
    for own, tiny in TINY_IMAGES.items():
        text = text.replace(f'"{own}"', f'"{tiny}"')
    Path("one.toml").write_text(text)
    changes = ["rounds=1", "training.steps=1"]
    if "[server]" in text:
        text = text.replace("train=200", "train=24").replace("train=60", "train=8").replace("test=60", "test=6")
        Path("one.toml").write_text(text)
        changes += ["method.candidates=2", "method.path_tokens=6"]
    if "[axes]" in text:
        changes += ["axes.inputs=60", "axes.held_out=20", "axes.min_agreement=0.0"]
    said = command("run", "one.toml", "--folder", "run", "--quiet", *changes)
    assert said.code == 0, said.err
    assert Path("run/result.json").exists()


def test_an_unknown_example_is_named(command):
    said = command("examples", "hundred-phone")
    assert said.code == 1
    assert "there is no example 'hundred-phone' (did you mean 'hundred-phones'?)" in said.err
