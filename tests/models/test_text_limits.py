"""What a model can take is found by short trials: positions, tokens, padding."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fedquilt.core.errors import ConfigError, DataError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.data.table import Table
from fedquilt.models.hf import load_model
from fedquilt.models.text import NUM_TOKENS, SPECIAL, byte_tokenizer
from fedquilt.models.text_limits import longest_row

SIZE = {
    "vocab_size": NUM_TOKENS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
AUTO = {"causal-lm": AutoModelForCausalLM, "sequence-classification": AutoModelForSequenceClassification}
SENTENCES, CAUSAL = "sequence-classification", "causal-lm"


def folder_of(tmp_path, kind, task=SENTENCES, tokens=(), bert_like=True, **values):
    """A folder with a small random model of this kind, and a tokenizer, to which ``tokens`` were added."""
    with Rng(0).scope():
        AUTO[task].from_config(AutoConfig.for_model(kind, **{**SIZE, **values})).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(start_and_end=bert_like), pad_token=SPECIAL[0], bos_token=SPECIAL[1],
        eos_token=SPECIAL[2], unk_token=SPECIAL[3],
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])],
    )  # fmt: skip
    tokenizer.add_tokens(list(tokens))
    if "[PAD]" in tokens:
        tokenizer.pad_token = "[PAD]"
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def load(name, task=SENTENCES, **more):
    return load_model(name, task, num_classes=None if task == CAUSAL else 2, rng=Rng(0), **more)


@pytest.mark.parametrize(
    ("kind", "values", "positions"),
    [
        ("bert", {}, 64),
        ("roberta", {}, 63),  # positions begin behind the number of the padding token
        ("mpnet", {}, 62),
        ("llama", {"num_key_value_heads": 1}, 64),  # rotary: as the config says
        ("gpt2", {}, 64),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, 64),
        ("bloom", {"max_position_embeddings": None}, 200),  # no positions at all
    ],
)
@pytest.mark.parametrize("meta", [False, True])
def test_a_row_is_as_long_as_the_model_has_positions_and_no_longer(tmp_path, kind, values, positions, meta):
    name = folder_of(tmp_path, kind, **values)
    found = load(name, meta=meta, trial=True, max_length=200)
    assert found.reading.width == positions
    table = Table("text", ["word " * 60, "a"], torch.tensor([0, 1]), ("a", "b"))
    columns = found.encode(table)
    assert columns["input_ids"].shape == (2, positions)
    assert found.reading.lost(table, columns).tolist() == [[302 - positions, 0], [0, 0]]
    if not meta:
        with torch.no_grad():
            assert found.model(**found.prepare(columns)).logits.isfinite().all()
    assert load(name, meta=meta, trial=True, max_length=20).reading.width == 20


def test_positions_begin_behind_the_models_own_padding_token_and_not_the_tokenizers(tmp_path):
    assert load(folder_of(tmp_path, "roberta", pad_token_id=3), max_length=200).reading.width == 60


@pytest.mark.parametrize("task", [SENTENCES, CAUSAL])
@pytest.mark.parametrize("meta", [False, True])
def test_a_padding_token_without_an_embedding_is_refused(tmp_path, task, meta):
    name = folder_of(tmp_path, "llama", task, tokens=["[PAD]"], num_key_value_heads=1)
    with pytest.raises(ModelError, match=r"pads with '\[PAD\]', number 260, .* 260 tokens, 0 to 259; give the tokeni"):
        load(name, task, meta=meta, trial=True)


@pytest.mark.parametrize("task", [SENTENCES, CAUSAL])
def test_a_token_without_an_embedding_is_refused_where_a_row_holds_it(tmp_path, task):
    found = load(folder_of(tmp_path, "llama", task, tokens=["red", "blue"], num_key_value_heads=1), task)
    labels = None if task == CAUSAL else torch.zeros(3, dtype=torch.int64)
    plain = Table("text", ["a", "b", "green"], labels, ("a", "b"))
    assert int(found.encode(plain)["input_ids"].max()) < NUM_TOKENS
    wrong = Table("text", ["a", "b blue", "red"], labels, ("a", "b"))
    with pytest.raises(DataError, match=r"row 1 .*holds 'blue', number 261 .* in 2 of 3 rows.*resize_token_embeddings"):
        found.encode(wrong)


def test_kinds_of_tokens_that_the_model_does_not_tell_apart_are_refused(tmp_path):
    found = load(folder_of(tmp_path, "bert", type_vocab_size=1))
    labels = torch.zeros(1, dtype=torch.int64)
    found.encode(Table("text", ["a"], labels, ("a", "b")))
    with pytest.raises(DataError, match="the tokens of second texts 1, but the model has embeddings for 1 token types"):
        found.encode(Table("text", ["a"], labels, ("a", "b"), pairs=["b"]))


def test_a_model_that_chooses_its_attention_by_the_length_of_a_row_is_left_in_order(tmp_path):
    found = load(folder_of(tmp_path, "big_bird", block_size=4, num_random_blocks=1), max_length=60)
    rows = found.encode(Table("text", ["word " * 9, "a"], torch.tensor([0, 1]), ("a", "b")))
    assert found.model(**found.prepare(rows)).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["fnet", "yoso"])
@pytest.mark.parametrize("meta", [False, True])
def test_a_model_that_padding_moves_is_refused(tmp_path, kind, meta):
    name = folder_of(tmp_path, kind)
    with pytest.raises(ModelError, match=f"padding changes the logits of a {kind} model"):
        load(name, meta=meta, trial=True)


def test_a_row_that_has_no_room_for_text_is_refused(tmp_path):
    found = load(folder_of(tmp_path, "bert"), max_length=4)
    labels = torch.zeros(1, dtype=torch.int64)
    assert found.encode(Table("text", ["abc"], labels, ("a", "b")))["input_ids"].tolist()[0][-1] == 2
    with pytest.raises(ConfigError, match=r"model\.max_length: 4 tokens are too few.* 3 special tokens .* at least 5"):
        found.encode(Table("text", ["abc"], labels, ("a", "b"), pairs=["b"]))


@pytest.mark.parametrize(
    ("kind", "values", "same"),
    [
        ("llama", {"num_key_value_heads": 1}, True),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, True),
        ("rwkv", {"attention_hidden_size": 32}, False),  # it reads the padding
        ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2}, False),  # positions count padding
    ],
)
def test_whether_prompts_of_unlike_lengths_may_share_a_batch_is_found(tmp_path, kind, values, same):
    name = folder_of(tmp_path, kind, CAUSAL, bert_like=False, **values)
    found = load(name, CAUSAL, new_tokens=5, max_length=20)
    assert found.reading.pads_left is same
    assert found.model.generation_config.max_new_tokens is None
    assert not load(name, CAUSAL, max_length=20).reading.pads_left  # nothing is ever written


class Positions(nn.Module):
    """A model with a table of positions that its config does not speak of."""

    def __init__(self, num_positions):
        super().__init__()
        self.config = SimpleNamespace()
        self.table, self.places = nn.Embedding(50, 4), nn.Embedding(num_positions, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for block in self.layers:
            x = block(x)
        return (x,)


@pytest.mark.parametrize(("positions", "wanted", "found"), [(37, 512, 37), (37, 36, 36), (37, 37, 37), (2, 9, 2)])
def test_the_longest_row_is_found_by_halving(positions, wanted, found):
    assert longest_row(Positions(positions), Blocks("layers", 2), "it", wanted) == found


def test_a_model_that_takes_no_row_is_refused():
    with pytest.raises(ModelError, match="model 'it': a trial with a row of 2 tokens ended in IndexError: index out"):
        longest_row(Positions(1), Blocks("layers", 2), "it", 9)


@pytest.mark.parametrize("name", ["arith-llama", "arith-gemma", "arith-qwen"])
def test_a_stand_in_of_a_model_that_was_saved_in_half_precision_is_tried_in_single(name):
    """Rounding to float16 moves logits with the padding as a mask that is not heeded would."""
    tried = load_model(name, "causal-lm", num_classes=None, rng=Rng(1), max_length=96, meta=True, trial=True)
    assert tried.model.config.dtype == torch.float16
    assert tried.reading.width == 96
