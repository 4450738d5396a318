"""Sources that need no files: drawings of letters and passages of a novel."""

import pytest
import torch

from fedquilt.core.errors import DataError
from fedquilt.data.loaders import load_table, published_split
from fedquilt.data.readers.bundled import read_bundled
from fedquilt.data.synthetic.glyphs import CLASSES


def test_passages_are_whole_sentences_and_each_is_there_once() -> None:
    table = load_table("passages")
    assert table.kind == "text"
    assert table.labels is None
    assert len(set(table.inputs)) == len(table) == 1440
    assert all(12 <= len(text.split()) <= 26 and text.isascii() for text in table.inputs)
    assert all(text.rstrip('"')[-1] in ".!?" for text in table.inputs)
    assert table.inputs[0].startswith("It is a truth universally acknowledged")


def test_glyphs_are_labelled_drawings_with_a_published_split() -> None:
    train, test = published_split(load_table("glyphs:50"))
    assert train.inputs.shape == (50, 28, 28)
    assert train.inputs.dtype == torch.uint8
    assert len(test) == 400
    assert train.classes == CLASSES
    assert set(train.labels.tolist()) <= set(range(len(CLASSES)))
    assert torch.equal(load_table("glyphs:50", split="train").inputs, train.inputs)
    assert torch.equal(load_table("glyphs:50", split="test").inputs, test.inputs)
    assert len(load_table("glyphs:300", split="train", limit=20)) == 20


def test_as_many_glyphs_as_are_asked_for_are_drawn() -> None:
    assert {split: raw.num_rows for split, raw in read_bundled("glyphs", "x").items()} == {"train": 2000, "test": 400}
    assert read_bundled("glyphs:5", "x")["train"].num_rows == 5
    assert read_bundled("./glyphs", "x") is read_bundled("passages.txt", "x") is None


@pytest.mark.parametrize("source", ["glyphs: ", "glyphs:0", "glyphs:many", "glyphs:-3", "glyphs:2000000"])
def test_what_is_no_number_of_drawings_is_refused(source: str) -> None:
    with pytest.raises(
        DataError, match=r"is no number of drawings from 1 to 1000000; write 'glyphs', or 'glyphs:5000'"
    ):
        load_table(source)
