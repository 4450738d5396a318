"""Texts as tensors: what is sent arrives, and what else may arrive is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.errors import WireError
from fedquilt.distill.texts import text_rows, texts_of

plain = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t"), max_size=20)


@given(st.lists(plain, max_size=4))
def test_texts_that_fit_arrive_as_they_were(texts):
    rows = text_rows(texts, 80)
    assert rows.dtype == torch.uint8
    assert texts_of(rows, len(texts), 80) == texts


@given(plain, st.integers(1, 12))
def test_a_long_text_loses_its_end_and_no_character_is_cut(text, width):
    (found,) = texts_of(text_rows([text], width), 1, width)
    assert text.startswith(found)
    assert len(found.encode()) <= width
    assert len(found) == len(text) or len(text[: len(found) + 1].encode()) > width


def test_what_cannot_be_read_is_left_out_by_the_sender():
    assert texts_of(text_rows(["a\0b\x1b\x7f\ud800c\n"], 20), 1, 20) == ["abc\n"]


@given(st.binary(max_size=12))
def test_any_bytes_are_a_text_or_a_clear_error(content):
    rows = torch.zeros(1, 12, dtype=torch.uint8)
    rows[0, : len(content)] = torch.tensor(list(content), dtype=torch.uint8)
    try:
        (found,) = texts_of(rows, 1, 12)
    except WireError:
        with pytest.raises(WireError, match=r"^text 0 "):
            texts_of(rows, 1, 12)
    else:
        assert text_rows([found], 12).equal(rows)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["a"], "list"),
        (torch.zeros(1, 4), "float32"),
        (torch.zeros(2, 4, dtype=torch.uint8), r"\(2, 4\)"),
        (torch.zeros(1, 5, dtype=torch.uint8), r"\(1, 5\)"),
        (torch.tensor([[97, 0, 98, 0]], dtype=torch.uint8), "behind its end"),
        (torch.tensor([[255, 0, 0, 0]], dtype=torch.uint8), "UTF-8 at byte 0"),
        (torch.tensor([[27, 91, 0, 0]], dtype=torch.uint8), "control character"),
    ],
)
def test_what_is_no_text_is_refused(rows, text):
    with pytest.raises(WireError, match=text):
        texts_of(rows, 1, 4)
