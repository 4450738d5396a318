"""Adapters of any rank, on a base that was changed, as one plain LoRA that PEFT computes the same with."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel

from fedquilt.adapters.lora.as_plain_lora import plain
from fedquilt.adapters.lora.inject import initial, inject, layout, trainable
from fedquilt.adapters.lora.peft_files import save_peft
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.client.task import scoring_of
from fedquilt.client.workbench import Workbench
from fedquilt.core.factors import cut, factors
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TASKS = {"tiny:vit": "image-classification", "tiny:gpt2": "causal-lm", "tiny:bert": "sequence-classification"}


def inputs(task):
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(4, 1, 28, 28, generator=generator)}
    return {"input_ids": torch.randint(4, 200, (4, 9), generator=generator), "attention_mask": torch.ones(4, 9).long()}


def scene(name, **values):
    task = TASKS[name]
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    base = copy.deepcopy(found.model)
    settings = LoraSettings(**{"rank": 3, "alpha": 12.0, "targets": found.targets} | values)
    inject(found.model, found.blocks, settings, (), found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    generator = torch.Generator().manual_seed(1)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in initial(where, found.model)(Rng(1)).items()
    }
    bench = Workbench(
        found.model,
        found.blocks,
        where,
        trainable(found.model, where),
        found.prepare,
        scoring=scoring_of(task),
        device=torch.device("cpu"),
    )
    return base, bench, where, params, settings, task


def shifted(params, rank):
    """The tensors with a change of this rank merged into the base of every module."""
    generator = torch.Generator().manual_seed(2)
    shifts = {}
    for module, (b, a) in factors(params).items():
        left, right = torch.randn(len(b), rank, generator=generator), torch.randn(rank, a.shape[1], generator=generator)
        shifts[f"{module}.shift"] = 0.1 * left @ right
    return {**params, **shifts}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("rank", "changed"), [(None, 4), (2, 4), (1, 0)])
@pytest.mark.parametrize("name", TASKS)
def test_peft_computes_the_same_logits_from_one_adapter(tmp_path, name, rank, changed, rslora):
    base, bench, where, params, settings, task = scene(name, rslora=rslora)
    params = cut(params, rank)
    params = shifted(params, changed) if changed else params
    bench.load(params)
    ours, before = bench.model.eval()(**inputs(task)).logits, base.eval()(**inputs(task)).logits
    tensors, told = plain(params, settings)
    folder = save_peft(tmp_path / "a", tensors, bench.model, where, told, base_name="base", task=task)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(theirs(**inputs(task)).logits, ours, rtol=0, atol=2e-5)
    torch.testing.assert_close(theirs.merge_and_unload()(**inputs(task)).logits, ours, rtol=0, atol=2e-5)
    assert float((ours - before).abs().max()) > 0.01
    assert {len(pair.A) for pair in factors(tensors).values()} == {(rank or 3) + changed}


def test_nothing_to_do_is_nothing_done():
    _, _, _, params, settings, _ = scene("tiny:vit", rank_pattern={"layers.1.attention.q_proj": 2})
    tensors, told = plain(params, settings)
    assert told is settings
    assert all(tensors[name] is params[name] for name in params)


def test_a_fresh_adapter_on_a_changed_base_is_the_change_alone():
    _, _, where, params, settings, _ = scene("tiny:vit")
    blank = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in params.items()}
    tensors, told = plain(shifted(blank, 2), settings)
    assert {len(pair.A) for pair in factors(tensors).values()} == {2}
    assert set(told.rank_pattern.values()) == {2}
    assert set(told.alpha_pattern.values()) == {2.0}
    assert tensors.keys() == set(where.depth)


def test_a_change_of_zeros_leaves_an_adapter_that_files_can_hold():
    _, _, _, params, settings, _ = scene("tiny:vit")
    blank = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in params.items()}
    none = {f"{m}.shift": torch.zeros(len(b), a.shape[1]) for m, (b, a) in factors(blank).items()}
    tensors, _ = plain({**blank, **none}, settings)
    assert {len(pair.A) for pair in factors(tensors).values()} == {3}
