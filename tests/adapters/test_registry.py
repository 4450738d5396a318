"""Every kind of adapter keeps the promises of its interface, and the run file knows the same kinds."""

import pytest
import torch

from fedquilt import load_adapter
from fedquilt.adapters.kind import Export, Host
from fedquilt.adapters.lora.inject import load, trainable
from fedquilt.adapters.registry import KINDS
from fedquilt.adapters.settings import OF_KIND, Adapter
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

MODEL, TASK, CLASSES = "tiny:bert?layers=2&width=16", "sequence-classification", 3


def loaded():
    return load_model(MODEL, TASK, num_classes=CLASSES, rng=Rng(0))


def host_of(found, **changes) -> Host:
    values = {
        "number": 0,
        "num_architectures": 1,
        "fewest_layers": found.blocks.num_layers,
        "head": found.head,
        "trained_head": found.head,
        "fresh_head": found.fresh_head,
        "targets": found.targets,
        "task": TASK,
        "classes": ("a", "b", "c"),
        "state": {},
        **changes,
    }
    return Host(found.model, found.blocks, found.architecture, **values)


def section(kind: str) -> Adapter:
    values = {"rank": 2, "private_rank": 2, "num_blocks": 2, "common_head": True}
    return Adapter(kind=kind, **{key: value for key, value in values.items() if key in OF_KIND[kind]})


def test_the_run_file_has_the_keys_of_every_kind() -> None:
    assert OF_KIND.keys() == KINDS.keys()
    assert {kind for kind, keys in OF_KIND.items() if "rank" in keys} == {
        name for name, kind in KINDS.items() if kind.ranks != "none"
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("frozen_head", [False, True])
def test_a_kind_puts_trains_and_saves_what_its_layout_names(name, frozen_head, tmp_path) -> None:
    found, kind = loaded(), KINDS[name]
    put = kind.put(section(name), host_of(found, trained_head=() if frozen_head else found.head))
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    own_head = put.layout.head - frozenset(found.head)  # a common head is beside the model's own
    assert own_head if kind.needs_public and not frozen_head else not own_head
    assert bool(put.layout.head) is not frozen_head
    start = put.start(Rng(1))
    assert {name: tuple(tensor.shape) for name, tensor in start.items()} == dict(put.layout.shapes)
    assert put.frozen <= put.layout.depth.keys() == trainable(found.model, put.layout).keys()
    assert any(name.endswith(("lora_A", "lora_B")) for name in put.layout.depth) == kind.has_factors
    changed = {name: tensor + 0.1 for name, tensor in start.items()}
    inputs = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6).long()}
    own = trainable(found.model, put.layout)
    load(own, changed)
    wanted = found.model(**inputs).logits
    export = Export(MODEL, MODEL, None, None, ("a", "b", "c"), lambda params: load(own, params), found.save)
    put.save(tmp_path / "out", changed, export)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(kind.files)
    if kind.load is None:
        again = load_model(str(tmp_path / "out"), TASK, num_classes=CLASSES, rng=Rng(5)).model
    else:
        again = load_adapter(loaded().model, tmp_path / "out")
    torch.testing.assert_close(again.eval()(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)


def test_only_kinds_with_factors_have_a_scale() -> None:
    found = loaded()
    assert KINDS["lora"].put(section("lora"), host_of(found)).scaling("query", 4) == 16.0 / 4
    with pytest.raises(ValueError, match="'query' has no low-rank factors"):
        KINDS["full"].put(section("full"), host_of(loaded())).scaling("query", 4)


def test_a_folder_of_no_kind_is_refused_with_the_files_that_there_could_be(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config.json or fedquilt_adapter.json.*so it is not an adapter"):
        load_adapter(loaded().model, tmp_path)


@pytest.mark.parametrize(("kind", "slots"), [("lora", False), ("lora", True), ("mixture", True)])
def test_layers_that_share_tensors_by_slots_start_with_the_same_axes(kind, slots) -> None:
    found = loaded()
    start = KINDS[kind].put(section(kind), host_of(found, slots=slots)).start(Rng(1))
    first = {name: tensor for name, tensor in start.items() if name.endswith((".lora_A", ".down"))}
    twins = [(name, name.replace(".0.", ".1.")) for name in first if ".0." in name]
    assert twins
    assert all(torch.equal(first[left], first[right]) is slots for left, right in twins)
    here = [first[left] for left, _ in twins]
    assert not any(torch.equal(a, b) for i, a in enumerate(here) for b in here[:i] if a.shape == b.shape)
