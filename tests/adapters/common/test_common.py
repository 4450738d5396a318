"""Adapters in common coordinates: what they compute, what they train, and how they are saved."""

import pytest
import torch

from fedquilt.adapters.common.ends import put_ends
from fedquilt.adapters.common.inject import common_layout, initial_common, inject_common
from fedquilt.adapters.common.settings import CommonSettings
from fedquilt.adapters.sites import SHARED, is_shared
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

VIT = "tiny:vit?layers=4&width=8&image=4&patch=2"
IMAGES = torch.randn(3, 1, 4, 4, generator=Rng(1).torch())


def adapted(private_rank: int = 0, head: bool = True):
    loaded = load_model(VIT, "image-classification", num_classes=3, rng=Rng(0))
    settings = CommonSettings(rank=2, alpha=4.0, num_slots=2, private_rank=private_rank)
    before = loaded.model(pixel_values=IMAGES).logits
    adapters = inject_common(loaded.model, loaded.blocks, settings, loaded.head if head else (), "abc")
    return loaded, adapters, before


def drawn(loaded, adapters, seed: int) -> None:
    rng = Rng(seed).torch()
    private = [loaded.model.get_submodule(name) for name in adapters.linears]
    modules = [*adapters.linears.values(), adapters.head[1]]
    tensors = [tensor for module in modules for tensor in (*module.buffers(recurse=False),)]
    tensors += [module.core for module in adapters.linears.values()] + [adapters.head[1].shared]
    tensors += [own for module in private for own in module.parameters(recurse=False)]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=rng))


def test_zero_cores_change_no_output_to_the_bit() -> None:
    loaded, adapters, before = adapted()
    for module in adapters.linears.values():
        module.place(torch.ones(2, module.encoder.shape[1]), torch.ones(module.decoder.shape[0], 2))
    assert torch.equal(loaded.model(pixel_values=IMAGES).logits, before)


def test_a_core_is_computed_as_written() -> None:
    loaded, adapters, _ = adapted(private_rank=1)
    drawn(loaded, adapters, 2)
    name, module = next(iter(adapters.linears.items()))
    around = loaded.model.get_submodule(name)
    x = torch.randn(5, module.encoder.shape[1], generator=Rng(3).torch())
    core = 4.0 / 2 * x @ module.encoder.T @ module.core.T @ module.decoder.T
    torch.testing.assert_close(module(x), module.base(x) + core)
    wanted = module.base(x) + core + 4.0 * x @ around.lora_A.T @ around.lora_B.T
    torch.testing.assert_close(around(x), wanted)
    head = adapters.head[1]
    h = torch.randn(5, 8, generator=Rng(4).torch())
    torch.testing.assert_close(head(h), head.base(h) + 10.0 * (h - head.centre) @ head.encoder.T @ head.shared.T)


def test_what_is_shared_has_no_dimension_of_the_models_width() -> None:
    loaded, adapters, _ = adapted(private_rank=2)
    layout = common_layout(loaded.model, loaded.blocks, "vit", adapters)
    shared = {name: shape for name, shape in layout.shapes.items() if is_shared(name)}
    assert set(shared.values()) == {(2, 2), (3, 2)}
    assert {name for name in shared if "head" in name} == layout.head == {f"{SHARED}.head-abc.0"}
    # blocks 0 and 1 share slot 0, so a core has the depth of the shallower
    assert [layout.depth[f"{SHARED}.attention.{slot}"] for slot in (0, 1)] == [0, 2]
    start = initial_common(layout)(Rng(5))
    assert {name: tuple(tensor.shape) for name, tensor in start.items()} == dict(layout.shapes)
    assert all(tensor.any() == name.endswith(".lora_A") for name, tensor in start.items())


def test_folding_equals_the_live_model() -> None:
    loaded, adapters, before = adapted(private_rank=1)
    drawn(loaded, adapters, 6)
    wanted = loaded.model(pixel_values=IMAGES).logits
    around = {name: loaded.model.get_submodule(name) for name in adapters.linears}
    changes = {name: module.folded() for name, module in adapters.linears.items()}
    name, head = adapters.head
    weight, bias = head.folded()
    with adapters.taken_out(loaded.model), torch.no_grad():
        assert torch.equal(loaded.model(pixel_values=IMAGES).logits, before)
        for path, (b, a) in changes.items():
            loaded.model.get_submodule(path).weight += b @ a + around[path].delta()
        loaded.model.get_submodule(name).weight.copy_(weight)
        loaded.model.get_submodule(name).bias.copy_(bias)
        torch.testing.assert_close(loaded.model(pixel_values=IMAGES).logits, wanted, rtol=1e-4, atol=1e-4)
    assert name.split(".")[0] in dict(loaded.model.named_modules())


def test_a_model_without_a_trained_head_has_no_common_head() -> None:
    _, adapters, _ = adapted(head=False)
    assert adapters.head is None
    assert {place.point for place in adapters.observed()} == {
        "attention.0", "attention.1", "feed-forward.0", "feed-forward.1",
    }  # fmt: skip


def test_a_head_without_a_bias_takes_no_centre_so_that_it_can_be_folded() -> None:
    loaded = load_model("tiny:gpt2?layers=2&width=8", "sequence-classification", num_classes=3, rng=Rng(0))
    settings = CommonSettings(rank=2, num_slots=2)
    _, head = inject_common(loaded.model, loaded.blocks, settings, loaded.head, "abc").head
    head.place(torch.ones(2, 8), torch.ones(8))
    weight, bias = head.folded()
    assert bias is None
    assert not head.centre.any()
    assert torch.equal(weight, head.weight)


def test_a_model_is_adapted_once() -> None:
    loaded, _, _ = adapted()
    with pytest.raises(ModelError, match="already has a module 'common'"):
        inject_common(loaded.model, loaded.blocks, CommonSettings(rank=2, num_slots=2))


def test_ends_of_a_clients_own_replace_the_axes_until_others_are_put() -> None:
    loaded, adapters, _ = adapted()
    drawn(loaded, adapters, 7)
    name, module = next(iter(adapters.linears.items()))
    x = torch.randn(5, module.encoder.shape[1], generator=Rng(8).torch())
    with_axes = module(x)
    own = torch.randn(module.decoder.shape, generator=Rng(9).torch())
    assert put_ends(adapters.linears, {f"{name}.decoder": own}) == {f"{name}.decoder"}
    wanted = 4.0 / 2 * x @ module.encoder.T @ module.core.T @ own.T
    torch.testing.assert_close(module(x), module.base(x) + wanted)
    b, a = module.folded()
    torch.testing.assert_close(x @ a.T @ b.T, wanted)
    assert put_ends(adapters.linears, {}) == frozenset()
    assert torch.equal(module(x), with_axes)
    with pytest.raises(ValueError, match=rf"'{name}.encoder' is \(1, 1\), not"):
        put_ends(adapters.linears, {f"{name}.encoder": torch.zeros(1, 1)})
