import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.prompts import rendered
from fedquilt.data.table import Table
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source
from fedquilt.models.text import IGNORED, NUM_TOKENS, byte_tokenizer, completion_encoder, prepare_text

LENGTH = 24


@pytest.fixture(scope="module")
def bert():
    return load_model("tiny:bert", "sequence-classification", num_classes=2, rng=Rng(0), max_length=LENGTH)


@pytest.fixture(scope="module")
def llama():
    return load_model("tiny:llama", "causal-lm", num_classes=None, rng=Rng(0), max_length=LENGTH)


def sentences(*texts, pairs=None):
    return Table("text", list(texts), torch.arange(len(texts)) % 2, ("no", "yes"), pairs=pairs)


@settings(deadline=None)
@given(text=st.text())
def test_the_byte_tokenizer_loses_nothing_and_has_one_token_per_byte(text):
    tokenizer = byte_tokenizer(start_and_end=False)
    text = text.replace("<", "")  # the names of special tokens stand for themselves
    ids = tokenizer.encode(text).ids
    assert ids[0] == 1
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.get_vocab_size() == NUM_TOKENS


def test_sentences_become_rows_of_one_length_padded_on_the_right(bert):
    columns = bert.encode(sentences("abc", "a sentence that is longer than the limit"))
    assert {name: tuple(column.shape) for name, column in columns.items()} == {
        "input_ids": (2, LENGTH),
        "attention_mask": (2, LENGTH),
        "token_type_ids": (2, LENGTH),
        "labels": (2,),
    }
    assert columns["input_ids"][0, [0, 4]].tolist() == [1, 2]
    assert columns["attention_mask"].sum(1).tolist() == [5, LENGTH]
    assert columns["input_ids"][0, 5:].unique().tolist() == [0]
    assert columns["labels"].dtype == torch.int64


def test_a_second_sentence_is_told_by_its_type(bert):
    columns = bert.encode(sentences("ab", pairs=["cde"]))
    assert columns["attention_mask"].sum().item() == 2 + 3 + 3
    assert columns["token_type_ids"][0, :9].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]


def test_prepare_cuts_padding_and_changes_no_logits(bert):
    columns = bert.encode(sentences("abc", "abcdefg"))
    inputs = bert.prepare(columns)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "input_ids": (2, 9),
        "attention_mask": (2, 9),
        "token_type_ids": (2, 9),
    }
    assert all(value.dtype == torch.int64 for value in inputs.values())
    whole = {name: column.long() for name, column in columns.items() if name != "labels"}
    torch.testing.assert_close(bert.model(**inputs).logits, bert.model(**whole).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_a_decoder_classifies_by_the_last_token_that_is_no_padding(kind):
    found = load_model(f"tiny:{kind}", "sequence-classification", num_classes=2, rng=Rng(0), max_length=LENGTH)
    together = found.model(**found.prepare(found.encode(sentences("abc", "abcdefg")))).logits
    alone = found.model(**found.prepare(found.encode(sentences("abc")))).logits
    torch.testing.assert_close(together[:1], alone)


def test_a_completion_is_labelled_and_its_prompt_and_padding_are_not(llama):
    table = Table("text", ["ab"], None, (), targets=["xyz"])
    columns = llama.encode(table)
    ids, labels = columns["input_ids"][0], columns["labels"][0]
    assert columns["attention_mask"][0].sum().item() == 1 + 2 + 3 + 1
    assert ids[6].item() == 2  # the end token
    assert labels[3:7].tolist() == ids[3:7].tolist()
    assert labels[:3].tolist() == [IGNORED] * 3
    assert labels[7:].unique().tolist() == [IGNORED]
    assert list(llama.prepare(columns)) == ["input_ids", "attention_mask"]
    assert llama.prepare(columns)["input_ids"].shape == (1, 7)


@settings(deadline=None, max_examples=50)
@given(prompt=st.integers(0, 40), answer=st.integers(0, 40))
def test_too_long_a_row_keeps_its_completion_first_and_always_a_label(llama, prompt, answer):
    columns = llama.encode(Table("text", ["p" * prompt], None, (), targets=["a" * answer]))
    labelled = int((columns["labels"] != IGNORED).sum())
    assert labelled == min(answer + 1, LENGTH - 1)
    assert int(columns["attention_mask"].sum()) == min(1 + prompt + answer + 1, LENGTH)


def test_without_completions_every_token_is_a_label(llama):
    columns = llama.encode(Table("text", ["abc"], None, ()))
    used = columns["attention_mask"][0].bool()
    assert used.sum().item() == 5
    assert torch.equal(columns["labels"][0][used], columns["input_ids"][0][used].long())


def test_rows_that_are_no_labelled_text_are_told(bert, llama):
    with pytest.raises(DataError, match="reads text, but the data holds images"):
        llama.encode(Table("image", torch.zeros(1, 8, 8, dtype=torch.uint8), None, ()))
    with pytest.raises(DataError, match=r"has no labels.*data\.label"):
        bert.encode(Table("text", ["a"], None, ()))


def test_rows_of_nothing_but_padding_keep_one_column():
    columns = {"input_ids": torch.zeros(2, 4).int(), "attention_mask": torch.zeros(2, 4).int()}
    assert prepare_text(columns)["input_ids"].shape == (2, 1)


# Conversations -------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def talk(*roles):
    turns = tuple((role, f"{role} says") for role in roles)
    return Table("text", [rendered(turns)], None, (), targets=["yes"], turns=[turns])


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A causal model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    load_model("tiny:llama", "causal-lm", num_classes=None, rng=Rng(0)).model.save_pretrained(folder)
    tokenizer = read_tokenizer(Source("tiny", values={}), config_from({"model_type": "llama"}), {})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), "causal-lm", num_classes=None, rng=Rng(0), max_length=80)


def parts(loaded, table):
    columns = loaded.encode(table)
    ids, labels = columns["input_ids"][0], columns["labels"][0]
    start = int((labels != IGNORED).int().argmax())
    return ids[:start].tolist(), labels[labels != IGNORED].tolist()


def test_a_conversation_is_written_by_the_models_template_and_learned_from_the_answer_on(chatty):
    prompt, answer = parts(chatty, talk("user", "assistant", "user"))
    assert prompt[0] == 1
    assert prompt.count(1) == 1  # the template writes the start token, and the tokenizer not once more
    assert chatty.decode(prompt) == "[user]user says[assistant]assistant says[user]user says[assistant]"
    assert chatty.decode(answer) == "yes"
    assert answer[-1] == 2


def test_without_a_template_a_conversation_is_plain_text(llama):
    table = talk("user")
    prompt, answer = parts(load_model("tiny:llama", "causal-lm", num_classes=None, rng=Rng(0)), table)
    assert llama.decode(prompt) == table.inputs[0] == "User:\nuser says\n\nAssistant:\n"
    assert llama.decode(answer) == "yes"


def test_what_a_template_does_not_take_is_told_with_its_row(chatty):
    with pytest.raises(
        DataError, match=r"row 0: the model's chat template does not take a conversation of system, user"
    ):
        chatty.encode(talk("system", "user"))


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_what_was_encoded_is_decoded(llama, text):
    text = text.replace("<", "")
    tokenizer = read_tokenizer(Source("tiny", values={}), config_from({"model_type": "llama"}), {})
    columns = completion_encoder(tokenizer, 100)(Table("text", ["p"], None, (), targets=[text]))
    answer = columns["labels"][columns["labels"] != IGNORED].tolist()
    assert answer[-1] == 2
    assert llama.decode(answer) == text


# Rows that are too long ----------------------------------------------------------------------------------------------


def test_too_long_a_prompt_keeps_its_start_token_and_its_end(llama):
    table = Table("text", ["p" * 40 + "end"], None, (), targets=["xyz"])
    columns = llama.encode(table)
    ids = columns["input_ids"][0].tolist()
    assert ids[0] == 1
    assert llama.decode(ids) == "p" * 16 + "end" + "xyz"
    assert llama.reading.lost(table, columns).tolist() == [[1 + 43 + 4 - LENGTH, 0]]


def test_an_answer_that_is_too_long_loses_its_end_and_is_counted(llama):
    table = Table("text", ["pp", "p"], None, (), targets=["a" * 40, "b"])
    columns = llama.encode(table)
    assert columns["input_ids"][0, 0] == 1
    assert int((columns["labels"][0] != IGNORED).sum()) == LENGTH - 1
    assert llama.reading.lost(table, columns).tolist() == [[2, 41 - (LENGTH - 1)], [0, 0]]


def test_a_text_without_an_answer_loses_its_end(llama):
    table = Table("text", ["t" * 40, "t"], None, ())
    columns = llama.encode(table)
    assert columns["input_ids"][0, 0] == 1
    assert llama.reading.lost(table, columns).tolist() == [[42 - LENGTH, 0], [0, 0]]


def test_of_a_pair_the_longer_sentence_is_cut_first(bert):
    table = sentences("a" * 40, "a" * 3, "ab", pairs=["bcd", "b" * 40, "cd"])
    columns = bert.encode(table)
    assert columns["token_type_ids"].sum(1).tolist() == [4, LENGTH - 5, 3]
    assert columns["input_ids"][:, 0].tolist() == [1, 1, 1]
    assert columns["input_ids"][:2, -1].tolist() == [2, 2]
    assert bert.reading.lost(table, columns).tolist() == [[46 - LENGTH, 0], [46 - LENGTH, 0], [0, 0]]


def test_a_conversation_that_is_too_long_keeps_the_start_token_that_its_template_writes(chatty):
    turns = (("user", "long " * 40),)
    table = Table("text", [rendered(turns)], None, (), targets=["yes"], turns=[turns])
    prompt, answer = parts(chatty, table)
    assert prompt[0] == 1
    assert chatty.decode(prompt).endswith("long [assistant]")
    assert chatty.decode(answer) == "yes"
    assert int(chatty.reading.lost(table, chatty.encode(table))[0, 0]) > 100
