"""Which language models keep the examples of a row apart, and that the others are refused before training."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.packing_trial import refuse_mixing

SIZE = {
    "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 32, "use_cache": False,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip
LOCAL = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
LOCAL |= {"layer_types": ["sliding_attention", "full_attention"]}


def made(kind, **values):
    with Rng(0).scope(), torch.no_grad():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **values})).eval()


def refusal(model, length):
    """Why a model is refused; None if it is taken."""
    try:
        refuse_mixing(model, "its name", length)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("gpt2", {}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **LOCAL}),
        ("gemma3_text", LOCAL),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 4}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_tell_examples_apart_by_their_positions(kind, values, dtype):
    assert refusal(made(kind, **values).to(dtype), 64) is None
    assert refusal(made(kind, **values).to(dtype), 8) is None


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),  # counts positions itself, from the mask
        ("bloom", {}),  # no positions at all
        ("rwkv", {"attention_hidden_size": 32}),  # a state instead of attention
    ],
)
def test_models_that_do_not_are_refused(kind, values):
    reason = r"model 'its name': training.packing = true does not work with a \w+ model, .* \(.*\); set it to false"
    with pytest.raises(ModelError, match=reason):
        refuse_mixing(made(kind, **values), "its name", 64)


def test_a_model_that_would_cache_is_tried_without():
    model = made("llama", num_key_value_heads=2, use_cache=True)
    refuse_mixing(model, "its name", 64)
    assert model.config.use_cache


def test_a_model_that_fails_in_the_trial_says_how():
    model = made("gpt2", max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"apart \(a trial ended in IndexError: index out of range in self\); set it"):
        refuse_mixing(model, "its name", 64)
