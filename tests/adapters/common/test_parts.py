"""Models of two parts: each part alone, the mean of their logits, and how both are saved and loaded."""

import json
from pathlib import Path

import pytest
import torch

from fedquilt.adapters.common.inject import common_layout, initial_common, inject_common
from fedquilt.adapters.common.module import PARTS, WEIGHT
from fedquilt.adapters.common.parts import PARTS_FILE, load_parts
from fedquilt.adapters.common.settings import CommonSettings
from fedquilt.adapters.sites import is_shared
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

VIT = "tiny:vit?layers=2&width=8&image=4&patch=2"
IMAGES = torch.randn(3, 1, 4, 4, generator=Rng(1).torch())
TARGETS = ("q_proj", "fc2")  # one without a core, one with


def adapted(parts="apart", targets=TARGETS):
    loaded = load_model(VIT, "image-classification", num_classes=3, rng=Rng(0))
    settings = CommonSettings(
        rank=2, alpha=4.0, num_slots=2, private_rank=1, private_alpha=3.0, private_targets=targets, parts=parts
    )
    adapters = inject_common(loaded.model, loaded.blocks, settings, loaded.head, "abc")
    layout = common_layout(loaded.model, loaded.blocks, "vit", adapters)
    rng, parameters = Rng(2).torch(), dict(loaded.model.named_parameters())
    assert initial_common(layout)(Rng(3)).get(WEIGHT, torch.zeros(1)) == (0.5 if parts == "apart" else 0.0)
    modules = [*adapters.linears.values(), adapters.head[1]]
    drawn = [parameters[name] for name in layout.depth if name != WEIGHT]
    drawn += [tensor for module in modules for tensor in module.buffers(recurse=False)]
    with torch.no_grad():
        for tensor in drawn:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=rng))
    return loaded, adapters, layout


def without(loaded, layout, *, shared):
    """The logits of the model with its shared tensors, or all others, set to 0."""
    parameters = dict(loaded.model.named_parameters())
    kept = {name: parameters[name].clone() for name in layout.depth if is_shared(name) == shared}
    with torch.no_grad():
        for name in kept:
            parameters[name].zero_()
        logits = loaded.model(pixel_values=IMAGES).logits
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)
    return logits


def test_a_private_lora_is_at_the_named_modules_with_a_scale_of_its_own() -> None:
    _, adapters, layout = adapted()
    assert {name.rpartition(".")[2] for name in adapters.private} == set(TARGETS)
    assert {name.rpartition(".")[2] for name in adapters.beside} == {"q_proj"}
    assert {lora.scaling for lora in adapters.private.values()} == {3.0}
    own = {name for name in layout.depth if not is_shared(name)} - {WEIGHT}
    assert own == {f"{name}.{end}" for name in adapters.private for end in ("lora_A", "lora_B")} | {
        f"{adapters.head[0]}.private_{end}" for end in ("weight", "bias")
    }
    depths = [layout.depth[name] for name in layout.depth]
    assert depths == [*sorted(depth for depth in depths if depth is not None), None, None, None, None]
    with pytest.raises(ModelError, match=r"adapter\.targets holds 'nowhere', which names no linear module"):
        adapted(targets=("nowhere",))


def test_each_part_alone_is_the_model_with_the_tensors_of_the_other_at_zero() -> None:
    loaded, adapters, layout = adapted()
    assert adapters.present == PARTS
    with adapters.alone("common"):
        assert torch.equal(loaded.model(pixel_values=IMAGES).logits, without(loaded, layout, shared=False))
        with adapters.alone("private"):
            assert adapters.present == ("private",)
        assert adapters.present == ("common",)
    with adapters.alone("private"):
        assert torch.equal(loaded.model(pixel_values=IMAGES).logits, without(loaded, layout, shared=True))


def test_both_parts_answer_by_the_mean_of_their_logits_and_one_alone_by_its_own() -> None:
    loaded, adapters, layout = adapted()
    answers = {shared: without(loaded, layout, shared=shared) for shared in (True, False)}

    def logits():
        return loaded.model(pixel_values=IMAGES).logits

    for weight, share in ((0.5, 0.5), (0.25, 0.25), (1.0, 1.0), (1.3, 1.0)):  # noise may take it out of its range
        with torch.no_grad():
            adapters.weight.fill_(weight)
        torch.testing.assert_close(adapters.answer(logits), share * answers[False] + (1 - share) * answers[True])
    with adapters.alone("private"):
        assert torch.equal(adapters.answer(logits), answers[True])
    together, others, _ = adapted("together")
    assert torch.equal(others.answer(lambda: together.model(pixel_values=IMAGES).logits), together.model(IMAGES).logits)


def test_a_folder_with_a_missing_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / PARTS_FILE).write_text(json.dumps({"weights": {"common": 0.5, "private": 0.5}}))
    loaded, _, _ = adapted()
    with pytest.raises(ModelError, match="no folder 'common'; export the run again"):
        load_parts(loaded.model, tmp_path, lambda model, folder: None)
