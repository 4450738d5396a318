"""Language models whose tokens see ahead are told from those whose do not, by trying."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.models.causality import ordinary_tokens, sees_ahead, sees_far_ahead
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source

SIZE = {
    "vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 32, "embedding_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 130,
}  # fmt: skip
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
SMALL = {
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
}


def model_of(kind, **values):
    with Rng(0).scope():
        config = AutoConfig.for_model(kind, **{**SIZE, **SMALL.get(kind, {}), **values})
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("length", [8, 48])
def test_an_encoder_sees_ahead_until_it_is_made_a_decoder(kind, length):
    assert sees_ahead(model_of(kind), length)
    assert not sees_ahead(model_of(kind, is_decoder=True), length)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("bloom", {}),
        ("mamba", {}),
        ("mixtral", {"num_key_value_heads": 1, "num_local_experts": 4}),
        ("mistral", {"num_key_value_heads": 1, "sliding_window": 4}),
        ("gemma3_text", {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4}),
        ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}),
    ],
)
def test_a_decoder_does_not_whatever_its_window(kind, values):
    model = model_of(kind, **values)
    assert not sees_ahead(model)
    assert not sees_ahead(model, 48)


class Reaching(nn.Module):
    """A language model in which each token sees the ones from ``first`` to ``last`` places ahead, below ``prefix``."""

    def __init__(self, first, last, prefix=1000):
        super().__init__()
        self.reach, self.prefix = (first, last), prefix
        self.table = nn.Embedding(50, 8)
        self.config = AutoConfig.for_model("llama")

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        x, places = self.table(input_ids), torch.arange(input_ids.shape[1])
        ahead = places[None] - places[:, None]
        seen = (ahead == 0) | ((ahead >= self.reach[0]) & (ahead <= self.reach[1]) & (places[None] < self.prefix))
        return type("Out", (), {"logits": seen.float() @ x @ self.table.weight.T})


@pytest.mark.parametrize(
    ("model", "length", "ahead"),
    [
        (Reaching(1, 1), 8, True),  # a window on both sides
        (Reaching(1, 99, prefix=3), 8, True),  # the first tokens, a prompt, see one another
        (Reaching(1, 99, prefix=6), 48, True),
        (Reaching(30, 99), 8, False),
        (Reaching(30, 99), 48, True),  # only from afar, so that a short row does not tell
        (Reaching(-99, -1), 48, False),
    ],
)
def test_windows_and_prefixes_that_look_forward(model, length, ahead):
    assert sees_ahead(model, length) is ahead


class Cut(Reaching):
    """One that cannot do without its second block."""

    def __init__(self, first, last):
        super().__init__(first, last)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(2))

    def forward(self, input_ids, attention_mask):
        assert len(self.layers) == 2
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("reach", [(30, 99), (-99, -1)])
def test_a_model_that_cannot_be_cut_is_tried_whole_on_a_long_row(reach):
    assert sees_far_ahead(Cut(*reach), Blocks("layers", 2), 48) is (reach[0] > 0)


def test_tokens_of_a_trial_are_no_special_ones():
    found = ordinary_tokens(model_of("gpt2"), 9)
    assert len(set(found)) == 9
    assert min(found) == 3
    assert max(found) < 260


def test_a_model_that_sees_ahead_is_refused_and_taken_as_a_decoder(tmp_path):
    for decoder in (False, True):
        folder = tmp_path / str(decoder)
        model_of("roberta", is_decoder=decoder).save_pretrained(folder)
        read_tokenizer(Source("tiny", values={}), config_from({"model_type": "roberta"}), {}).save_pretrained(folder)

    def load(name, **more):
        return load_model(str(tmp_path / name), "causal-lm", num_classes=None, rng=Rng(0), **more).model

    for meta in (False, True):
        with pytest.raises(ModelError, match=r"roberta model.*attends to later tokens.*is_decoder to true"):
            load("False", meta=meta, trial=True)
    assert not sees_ahead(load("True"))
    turned = load("False", as_decoder=True)
    assert not sees_ahead(turned)
    assert turned.config.is_decoder
