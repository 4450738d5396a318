"""Adapters that are aligned to the smallest model: what they compute, what they train, and how they are saved."""

import pytest
import torch
from peft import PeftModel

from fedquilt.adapters.common.anchored import anchored_layout, inject_anchored, shared_blocks
from fedquilt.adapters.common.anchored_kind import ANCHORED
from fedquilt.adapters.common.settings import AnchoredSettings
from fedquilt.adapters.kind import Export, Host
from fedquilt.adapters.lora.inject import adapters as loras
from fedquilt.adapters.lora.inject import load
from fedquilt.adapters.lora.module import merged_weights
from fedquilt.adapters.settings import Adapter
from fedquilt.adapters.sites import SHARED, is_shared
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.saved_adapter import load_adapter

VIT = "tiny:vit?layers=4&width=8&image=4&patch=2"
IMAGES = torch.randn(3, 1, 4, 4, generator=Rng(1).torch())


def adapted(**settings):
    loaded = load_model(VIT, "image-classification", num_classes=3, rng=Rng(0))
    before = loaded.model(pixel_values=IMAGES).logits
    own = AnchoredSettings(**{"rank": 2, "alpha": 4.0, "num_blocks": 2, "targets": loaded.targets} | settings)
    adapters = inject_anchored(loaded.model, loaded.blocks, own, loaded.head if own.common_head else (), "abc")
    return loaded, adapters, before


def drawn(adapters, seed: int) -> None:
    """Numbers in everything that the adapters hold."""
    rng = Rng(seed).torch()
    tensors = [own for linear in adapters.linears.values() for own in (*linear.buffers(recurse=False),)]
    tensors += [own for linear in adapters.linears.values() for own in linear.shared_tensors()]
    tensors += [own for lora in adapters.beside.values() for own in lora.parameters(recurse=False)]
    if adapters.head is not None:
        tensors += [adapters.head[1].shared, *adapters.head[1].buffers(recurse=False)]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=rng))


@pytest.mark.parametrize(
    ("num_layers", "blocks"),
    [(12, (2, 5, 8, 11)), (8, (1, 3, 5, 7)), (10, (3, 5, 7, 9)), (4, (0, 1, 2, 3)), (7, (3, 4, 5, 6))],
)
def test_shared_blocks_are_equally_spaced_and_the_last_is_among_them(num_layers, blocks):
    assert shared_blocks(num_layers, 4) == blocks


def test_no_more_blocks_are_shared_than_there_are():
    with pytest.raises(ConfigError, match=r"adapter\.num_blocks is 4, and a model has 3 blocks"):
        shared_blocks(3, 4)


def test_zero_matrices_and_vectors_change_no_output_to_the_bit():
    loaded, adapters, before = adapted()
    for linear in adapters.linears.values():
        linear.place(torch.ones(2, 8), torch.ones(8, 2))
    assert torch.equal(loaded.model(pixel_values=IMAGES).logits, before)


def test_a_shared_module_is_computed_as_written():
    _, adapters, _ = adapted()
    drawn(adapters, 2)
    assert [*adapters.linears] == [
        f"vit.layers.{layer}.attention.{end}" for layer in (1, 3) for end in ("q_proj", "v_proj")
    ]
    module = adapters.linears["vit.layers.3.attention.v_proj"]
    assert module.core_name == "common.value.1"
    x = torch.randn(5, 8, generator=Rng(3).torch())
    inner = x @ module.encoder.T @ module.core.T + module.offset
    torch.testing.assert_close(module(x), module.base(x) + 4.0 / 2 * inner @ module.decoder.T)


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_shared_has_no_dimension_of_the_models_width(bias):
    loaded, adapters, _ = adapted(bias=bias)
    layout = anchored_layout(loaded.model, loaded.blocks, "vit", adapters, loaded.head)
    shared = {name: shape for name, shape in layout.shapes.items() if is_shared(name)}
    wanted = {f"{SHARED}.{site}.{slot}": (2, 2) for site in ("query", "value") for slot in (0, 1)}
    if bias:
        wanted |= {f"{SHARED}.{site}-bias.{slot}": (2,) for site in ("query", "value") for slot in (0, 1)}
    assert shared == wanted
    assert {layout.depth[name] for name in shared} == {1, 3}
    assert {depth for name, depth in layout.depth.items() if "lora" in name} == {0, 2}
    assert layout.head == set(loaded.head)
    assert [*layout.depth.values()] == sorted(layout.depth.values(), key=lambda depth: 9 if depth is None else depth)


def test_a_common_head_is_shared_instead_of_the_models_own():
    loaded, adapters, _ = adapted(common_head=True)
    layout = anchored_layout(loaded.model, loaded.blocks, "vit", adapters, ())
    assert layout.head == {"common.head-abc.0"}


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(ModelError, match=r"adapter\.rank is 9, and '.*q_proj' has 8 features"):
        adapted(rank=9)


def saved(folder, **keys):
    """A model with drawn adapters of this kind, its logits, and its folder."""
    loaded = load_model(VIT, "image-classification", num_classes=3, rng=Rng(0))
    host = Host(
        loaded.model,
        loaded.blocks,
        "vit",
        number=0,
        num_architectures=1,
        fewest_layers=4,
        head=loaded.head,
        trained_head=loaded.head,
        fresh_head=False,
        targets=loaded.targets,
        task="image-classification",
        classes=("a", "b", "c"),
        state={},
    )
    put = ANCHORED.put(Adapter(kind="anchored", rank=2, alpha=6.0, num_blocks=2, **keys), host)
    drawn(put.common, 6)
    parameters = dict(loaded.model.named_parameters())
    params = {name: parameters[name].detach().clone() for name in put.layout.depth}

    def into_model(values):
        load({name: parameters[name] for name in values}, values)

    put.save(folder, params, Export(VIT, VIT, None, None, ("a", "b", "c"), into_model, lambda path: None))
    return loaded.model(pixel_values=IMAGES).logits


def fresh():
    return load_model(VIT, "image-classification", num_classes=3, rng=Rng(0)).model


@pytest.mark.parametrize("keys", [{}, {"bias": False}, {"common_head": True}])
def test_peft_and_fedquilt_read_what_is_saved_and_compute_the_same(keys, tmp_path):
    live = saved(tmp_path / "adapter", **keys)
    by_peft = PeftModel.from_pretrained(fresh(), tmp_path / "adapter").eval()
    torch.testing.assert_close(by_peft(pixel_values=IMAGES).logits, live, atol=1e-5, rtol=1e-5)
    own = load_adapter(fresh(), tmp_path / "adapter").eval()
    torch.testing.assert_close(own(pixel_values=IMAGES).logits, live, atol=1e-5, rtol=1e-5)
    assert (fresh()(pixel_values=IMAGES).logits - live).abs().max() > 0.05


def test_a_bias_is_merged_into_the_bias_of_the_base(tmp_path):
    live = saved(tmp_path / "adapter")
    model = load_adapter(fresh(), tmp_path / "adapter").eval()
    merged = merged_weights(loras(model))
    assert "vit.layers.3.attention.q_proj.bias" in merged
    assert "vit.layers.2.attention.q_proj.bias" not in merged
    bare = fresh()
    head = {name: own for name, own in model.named_parameters() if name.startswith("classifier")}
    load(dict(bare.named_parameters()), {**merged, **head})
    torch.testing.assert_close(bare(pixel_values=IMAGES).logits, live, atol=1e-5, rtol=1e-5)


def test_a_bias_is_not_merged_where_the_base_has_none(tmp_path):
    saved(tmp_path / "adapter")
    model = load_adapter(fresh(), tmp_path / "adapter")
    own = loras(model)
    own["vit.layers.3.attention.q_proj"].base.bias = None
    with pytest.raises(ModelError, match=r"'vit\.layers\.3\.attention\.q_proj' has no bias"):
        merged_weights(own)
