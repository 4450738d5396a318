"""Small tokenizers: what goes in comes out, letter for letter, and no two of them agree on the numbers."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic_text import passages
from fedquilt.models.small_tokenizers import MARKS, new_tokenizer, save_tokenizer

SIZES = {"llama": 512, "gemma": 480, "qwen": 400}
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
tricky = st.lists(
    st.sampled_from(
        [*(mark for marks in MARKS.values() for mark in marks), "<0x41>", "▁", "Ġ", " ", "\n", "12", "Ana"]
    ),
    max_size=8,
).map("".join)


@cache
def made(family):
    return new_tokenizer(family, SIZES[family], passages(3000, Rng(0)))


@pytest.mark.parametrize("family", list(MARKS))
@settings(max_examples=150, deadline=None)
@given(text=any_text | tricky)
def test_every_text_comes_back(family, text):
    tokenizer = made(family)
    numbers = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(numbers, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", list(MARKS))
def test_specials_come_first_and_digits_stand_alone(family):
    tokenizer = made(family)
    assert [tokenizer.token_to_id(mark) for mark in MARKS[family]] == [0, 1, 2]
    assert 256 < tokenizer.get_vocab_size() <= SIZES[family]
    numbers = tokenizer.encode("12 + 345 = 357").ids
    assert numbers[0] == 1
    assert [tokenizer.decode([number]) for number in numbers[1:]] == [*"12", " +", " ", *"345", " =", " ", *"357"]


@pytest.mark.parametrize("family", list(MARKS))
def test_frequent_words_are_one_token(family):
    pieces = made(family).encode("so far Ana has 3 apples left.", add_special_tokens=False)
    assert len(pieces.ids) < 20
    assert " apples" in [made(family).decode([number]) for number in pieces.ids]


def test_no_two_families_agree_on_the_numbers():
    rows = {family: tuple(made(family).encode("Ana has 3 apples.").ids) for family in MARKS}
    assert len(set(rows.values())) == 3
    digits = {family: made(family).token_to_id("7") for family in MARKS}
    assert len(set(digits.values())) == 3


@pytest.mark.parametrize("family", list(MARKS))
def test_the_same_texts_make_the_same_tokenizer(family):
    again = new_tokenizer(family, SIZES[family], passages(3000, Rng(0)))
    assert again.to_str() == made(family).to_str()


@pytest.mark.parametrize("family", list(MARKS))
def test_a_saved_one_is_read_by_hugging_face(family, tmp_path):
    save_tokenizer(made(family), family, 64, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id, read.model_max_length) == (0, 1, 2, 64)
    for text in ("Ana has 3 apples.", " 1 , 2\n\n é▁<0x41>"):
        assert read(text)["input_ids"] == made(family).encode(text).ids
        assert read.decode(read(text, add_special_tokens=False)["input_ids"]) == text
