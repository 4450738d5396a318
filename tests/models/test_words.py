"""Words among tokens: every tokenizer sees the same ones, and no row that lost a word is taken for one that has it."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fedquilt.core.errors import DataError, ModelError
from fedquilt.data.table import Table
from fedquilt.models.small_tokenizers import MARKS, new_tokenizer
from fedquilt.models.text import byte_tokenizer, classification_encoder, completion_encoder
from fedquilt.models.words import ends_of_words, word_finder

TEXTS = ["The cat sat on\tthe  mat.", "Élan vital, naïve café 12 times", '"Oh!" said she; "a 2nd one?"']


def word_piece() -> Tokenizer:
    """As BERT: accents are dropped, and a word is cut into pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *letters, *(f"##{letter}" for letter in letters), "the", "##ital", ","]
    own = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    own.normalizer = normalizers.BertNormalizer()
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return own


def wrapped(own: Tokenizer, pad: str = "<pad>", end: str = "</s>"):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token=pad, eos_token=end)


TOKENIZERS = {
    "bytes": wrapped(byte_tokenizer(start_and_end=False)),
    "bytes with an end": wrapped(byte_tokenizer(start_and_end=True)),
    "word pieces": wrapped(word_piece()),
    **{family: wrapped(new_tokenizer(family, 600, TEXTS * 4), marks.pad, marks.end) for family, marks in MARKS.items()},
}


def read(tokenizer, texts, width: int, classifies: bool = False):
    make = classification_encoder if classifies else completion_encoder
    return make(tokenizer, width)(Table("text", list(texts), torch.zeros(len(texts), dtype=torch.long), ("a", "b")))


@pytest.mark.parametrize("classifies", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_token_of_a_word_is_the_one_of_its_last_character(name: str, classifies: bool) -> None:
    tokenizer = TOKENIZERS[name]
    columns = read(tokenizer, TEXTS, 64, classifies)
    found = word_finder(tokenizer, name)(TEXTS, columns, 5)
    whole = tokenizer(TEXTS)
    # of a character that is cut into bytes, transformers names the first token, and the word ends at the last
    last = [[whole.char_to_token(row, end - 1) for end in ends_of_words(text, 5)] for row, text in enumerate(TEXTS)]
    spans = [[whole.token_to_chars(row, place) for place in places.tolist()] for row, places in enumerate(found)]
    for row, ends in enumerate(last):
        for own, first, span, end in zip(
            found[row].tolist(), ends, spans[row], ends_of_words(TEXTS[row], 5), strict=True
        ):
            assert span.start < end <= span.end
            assert own >= first
            assert own == first or span == whole.token_to_chars(row, first)
            following = whole.token_to_chars(row, own + 1) if own + 1 < len(whole["input_ids"][row]) else None
            assert following is None or following.start >= end
    assert found.shape == (3, 5)
    assert (columns["attention_mask"].gather(1, found) == 1).all()


@settings(deadline=None, max_examples=30)
@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1), min_size=3))
def test_any_text_has_its_words_in_order(words: list[str]) -> None:
    text = " ".join(words)
    ends = ends_of_words(text, 3)
    assert [part.split()[-1] for part in (text[:end] for end in ends)] == text.split()[: len(ends)]
    if len(ends) == 3:
        found = word_finder(TOKENIZERS["bytes"], "x")([text], read(TOKENIZERS["bytes"], [text], 4000), 3)[0]
        # one start token, then a token for each byte
        assert found.tolist() == [len(text[:end].encode()) for end in ends]


def test_a_row_that_was_cut_before_the_last_word_is_refused() -> None:
    tokenizer, texts = TOKENIZERS["bytes with an end"], ["one two three four"]
    find = word_finder(tokenizer, "small")
    assert find(texts, read(tokenizer, texts, 15, classifies=True), 3).tolist() == [[3, 7, 13]]
    with pytest.raises(DataError, match=r"axes\.words = 3: model 'small' reads at most 14 tokens, and 14 are needed"):
        find(texts, read(tokenizer, texts, 14, classifies=True), 3)
    with pytest.raises(DataError, match=r"set axes\.words lower or model\.max_length higher"):
        find(texts, read(tokenizer, texts, 9), 3)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match=r"which axes\.rows = 'words' needs; set axes\.rows = 'inputs'"):
        word_finder(object(), "slow")(["a b"], {}, 1)
