import pytest
import torch
from torch import nn

from fedquilt.adapters.lora.inject import inject
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.client.shallow import only_blocks
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, model_from
from fedquilt.models.shapes import tiny

KEEP = (1, 2, 5)  # in Gemma 3 block 5 is the one with full attention
CASES = [
    ("vit", "image-classification"),
    ("bert", "sequence-classification"),
    ("distilbert", "sequence-classification"),
    ("llama", "sequence-classification"),
    ("gemma", "causal-lm"),
    ("gemma2", "causal-lm"),
    ("gemma3", "causal-lm"),
    ("qwen", "causal-lm"),
    ("qwen3", "causal-lm"),
    ("gpt2", "causal-lm"),
]


def inputs(task: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(2, 1, 28, 28, generator=generator)}
    return {"input_ids": torch.randint(4, 200, (2, 9), generator=generator), "attention_mask": torch.ones(2, 9).long()}


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("use_cache", [False, True])
def test_the_shallow_model_is_one_built_shallow_and_the_whole_one_comes_back(kind, task, use_cache):
    found = load_model(f"tiny:{kind}?layers=7", task, num_classes=3, rng=Rng(0))
    model = found.model
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = use_cache
    names = [name for name, _ in model.named_parameters()]
    settings, before = model.config.to_dict(), model(**inputs(task)).logits
    with only_blocks(model, found.blocks, KEEP) as shallow:
        assert shallow is model
        inside, state = (
            model(**inputs(task)).logits,
            {name: value.clone() for name, value in model.state_dict().items()},
        )
    assert not torch.equal(inside, before)
    assert model.config.to_dict() == settings
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model(**inputs(task)).logits, before)

    values = tiny(f"{kind}?layers=3", vocab_size=260, positions=512) | {"pad_token_id": 0}
    if kind == "vit":
        del values["pad_token_id"]
    config = config_from(values)
    config.num_labels = 3
    if hasattr(config, "layer_types"):
        config.layer_types = [settings["layer_types"][index] for index in KEEP]
    built = model_from(config, task).eval()
    built.load_state_dict(state)
    assert torch.equal(built(**inputs(task)).logits, inside)


def test_order_of_keep_does_not_matter_and_all_blocks_are_the_whole_model():
    found = load_model("tiny:gpt2?layers=4", "causal-lm", num_classes=None, rng=Rng(0))
    whole = found.model(**inputs("causal-lm")).logits
    with only_blocks(found.model, found.blocks, [3, 0]):
        falling = found.model(**inputs("causal-lm")).logits
    with only_blocks(found.model, found.blocks, [0, 3]):
        rising = found.model(**inputs("causal-lm")).logits
    with only_blocks(found.model, found.blocks, range(4)):
        assert torch.equal(found.model(**inputs("causal-lm")).logits, whole)
    assert torch.equal(falling, rising)


def test_the_model_is_whole_again_after_an_error_inside():
    found = load_model("tiny:llama?layers=4", "causal-lm", num_classes=None, rng=Rng(0))
    before = found.model(**inputs("causal-lm")).logits
    with pytest.raises(RuntimeError, match="inside"), only_blocks(found.model, found.blocks, [2]):
        raise RuntimeError("inside")
    assert len(found.model.model.layers) == found.model.config.num_hidden_layers == 4
    assert torch.equal(found.model(**inputs("causal-lm")).logits, before)


def test_adapters_in_the_kept_blocks_get_the_gradients():
    found = load_model("tiny:vit?layers=4", "image-classification", num_classes=3, rng=Rng(0))
    injected = inject(found.model, found.blocks, LoraSettings(rank=2, alpha=4.0), found.targets)
    factors = {name: adapter.lora_B for name, adapter in injected.items()}
    for adapter in injected.values():
        nn.init.ones_(adapter.lora_A)
        adapter.lora_B.requires_grad_(True)
    with only_blocks(found.model, found.blocks, [1, 3]):
        found.model(**inputs("image-classification")).logits.sum().backward()
    assert {name for name, factor in factors.items() if factor.grad is not None} == {
        f"vit.layers.{layer}.attention.{module}" for layer in (1, 3) for module in ("q_proj", "v_proj")
    }


def test_works_without_a_config():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Module()
            self.body.steps = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))

    model = Plain()
    steps = model.body.steps
    with only_blocks(model, Blocks("body.steps", 3), [2]):
        assert list(model.body.steps) == [steps[2]]
    assert model.body.steps is steps


@pytest.mark.parametrize("keep", [[], [0, 0], [-1], [2]])
def test_blocks_that_are_not_there_are_refused(keep):
    found = load_model("tiny:vit", "image-classification", num_classes=3, rng=Rng(0))
    with pytest.raises(ValueError, match="distinct indices from 0 to 1"), only_blocks(found.model, found.blocks, keep):
        pass
    assert len(found.model.vit.layers) == 2
