"""The shared model: what is loaded, what may be trained, and that nothing of it stays."""

import re

import pytest
import torch
from small_federation import LLAMA, VIT, WIDE, common, mixtures, rows, start_of, task_of, workbench

from fedquilt.client import Workbench
from fedquilt.core.factors import cut, factors


def test_the_layout_and_the_parameters_must_name_the_same_tensors():
    bench = workbench()
    fewer = dict(list(bench.parameters.items())[1:])
    with pytest.raises(ValueError, match="name different tensors"):
        Workbench(
            bench.model, bench.blocks, bench.layout, fewer, bench.prepare, scoring=bench.scoring, device=bench.device
        )


def held(bench):
    """Copies of what is in the model."""
    return {name: parameter.detach().clone() for name, parameter in bench.parameters.items()}


def test_load_puts_every_tensor_in():
    bench = workbench()
    params = start_of(bench)
    bench.load(params)
    assert held(bench).keys() == params.keys() == bench.layout.depth.keys()
    assert all(torch.equal(tensor, params[name]) for name, tensor in held(bench).items())


def test_a_core_stays_until_the_next_load_and_one_of_another_size_is_refused():
    bench = workbench()
    params, batch = start_of(bench), rows("image-classification", 5)
    module = next(iter(bench.adapters))
    with torch.no_grad():
        bench.load(params)
        plain = bench.forward(batch)[0]
        bench.load({**params, f"{module}.core": torch.eye(2)})
        twice = bench.forward(batch)[0]
        bench.load({**params, f"{module}.lora_B": 2 * params[f"{module}.lora_B"]})
        assert torch.allclose(twice, bench.forward(batch)[0], atol=1e-6)  # B (I + I) A
        assert not torch.allclose(twice, plain, atol=1e-3)
        bench.load(params)
        assert torch.equal(bench.forward(batch)[0], plain)
    with pytest.raises(ValueError, match=re.escape(f"'{module}.core' is (3, 3), not (2, 2)")):
        bench.load({**params, f"{module}.core": torch.eye(3)})


def test_cores_that_are_made_for_each_pass_get_gradients_and_are_gone_afterwards():
    bench = workbench()
    bench.load(start_of(bench))
    batch, module = rows("image-classification", 5), next(iter(bench.adapters))
    core, made = torch.zeros(2, 2), []
    with bench.making_cores(lambda: made.append(1) or {module: core}), bench.training(["it"], {"it": core}) as trained:
        assert [tensor is core for tensor in trained] == [True]
        for _ in range(2):
            bench.forward(batch)[0].sum().backward()
        assert bool(core.grad.any())
        assert not any(parameter.requires_grad for parameter in bench.parameters.values())
    assert len(made) == 2
    assert bench.adapters[module].core is None
    assert core.grad is None
    assert not core.requires_grad


def test_load_names_what_does_not_fit():
    bench = workbench()
    params = start_of(bench)
    first = next(iter(params))
    with pytest.raises(ValueError, match=f"tensor '{re.escape(first)}' is missing"):
        bench.load({name: tensor for name, tensor in params.items() if name != first})
    with pytest.raises(ValueError, match=re.escape(f"tensor '{first}' is (2, 9), not (2, 8)")):
        bench.load({**params, first: torch.zeros(2, 9)})
    module = first.removesuffix(".lora_A")
    with pytest.raises(ValueError, match=re.escape(f"'{module}' has a B of rank 2 and an A of rank 3")):
        bench.load({**params, first: torch.zeros(3, 8)})
    with pytest.raises(ValueError, match=re.escape(f"'{module}.shift' is (8, 9), not (8, 8)")):
        bench.load({**params, f"{module}.shift": torch.zeros(8, 9)})
    with pytest.raises(ValueError, match="tensor 'stranger' is not a tensor of vit-4x8"):
        bench.load({**params, "stranger": torch.zeros(1)})


def test_a_load_that_is_refused_changes_nothing():
    bench = workbench()
    bench.load(start_of(bench))
    before = held(bench)
    with pytest.raises(ValueError, match="stranger"):
        bench.load({**{name: tensor + 1 for name, tensor in before.items()}, "stranger": torch.zeros(1)})
    assert all(torch.equal(before[name], now) for name, now in held(bench).items())


def test_factors_of_any_rank_are_those_padded_with_zeros_and_scaled_by_their_own_rank():
    bench = workbench(rank=4)  # alpha 8: s is 2 at rank 4 and 4 at rank 2
    params, batch = start_of(bench), rows("image-classification", 5)
    small = cut(params, 2)
    bench.load(small)
    low, _ = bench.forward(batch)
    assert {tuple(bench.parameters[name].shape) for name in small if name.endswith("lora_A")} == {(2, 8)}
    padded = {
        name: torch.cat([2 * tensor, torch.zeros(8, 2)], dim=1)
        if name.endswith("lora_B")
        else torch.cat([tensor, torch.zeros(2, 8)])
        if name.endswith("lora_A")
        else tensor
        for name, tensor in small.items()
    }
    bench.load(padded)
    assert torch.allclose(bench.forward(batch)[0], low, atol=1e-6)
    bench.load(params)
    assert not torch.allclose(bench.forward(batch)[0], low, atol=1e-3)


def test_what_was_merged_into_the_base_acts_until_the_next_load():
    bench = workbench()
    params, batch = start_of(bench), rows("image-classification", 5)
    modules = factors(params)
    nothing = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in params.items()}
    scale = next(iter(bench.adapters.values())).scaling
    shifts = {f"{module}.shift": scale * pair.B @ pair.A for module, pair in modules.items()}
    bench.load(params)
    wanted, _ = bench.forward(batch)
    bench.load({**nothing, **shifts})
    assert torch.allclose(bench.forward(batch)[0], wanted, atol=1e-6)
    weights = [adapter.merged() for adapter in bench.adapters.values()]
    bench.load(params)
    assert all(torch.allclose(w, a.merged(), atol=1e-6) for w, a in zip(weights, bench.adapters.values(), strict=True))
    bench.load(nothing)
    assert not torch.allclose(bench.forward(batch)[0], wanted, atol=1e-3)


def test_training_opens_the_named_tensors_only_and_closes_them_again_even_after_an_error():
    bench = workbench()
    names = list(bench.layout.names([1, 3]))

    def open_ones() -> list[str]:
        return [name for name, parameter in bench.model.named_parameters() if parameter.requires_grad]

    def broken_step() -> None:
        with bench.training(reversed(names)) as trained:
            assert [id(p) for p in trained] == [id(bench.parameters[name]) for name in names]  # in the layout's order
            assert sorted(open_ones()) == sorted(names)
            assert bench.model.training
            trained[0].grad = torch.ones_like(trained[0])
            raise RuntimeError("on purpose")

    assert open_ones() == []
    with pytest.raises(RuntimeError, match="on purpose"):
        broken_step()
    assert open_ones() == []
    assert not bench.model.training
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_t14_random_subsets_of_thirty_two_blocks_open_exactly_their_own_tensors():
    """T14: block 1 is neither 10 nor 11; the oracle reads the number between dots. All subsets of 12: test_client."""
    bench = workbench("tiny:llama?layers=32&width=8")
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        number = int(torch.randint(1, 33, (), generator=generator))
        subset = set(torch.randperm(32, generator=generator)[:number].tolist())
        with bench.training(bench.layout.names(subset)):
            opened = [name for name, parameter in bench.model.named_parameters() if parameter.requires_grad]
        assert {int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in opened} == subset
        assert len(opened) == 4 * len(subset)  # A and B of q and v


@pytest.mark.parametrize("model", [VIT, LLAMA])
def test_forward_gives_logits_and_labels_that_belong_together(model):
    bench = workbench(model)
    bench.load(start_of(bench))
    batch = rows(task_of(model), 4)
    if "attention_mask" in batch:  # three tokens of padding that the batch does not need
        batch["attention_mask"][:, 4:], batch["labels"][:, 4:] = 0, -100
    logits, labels = bench.forward(batch)
    assert logits.shape[:-1] == labels.shape == ((4,) if model == VIT else (4, 4))


def test_bf16_is_autocast_and_leaves_parameters_in_float32():
    exact, half = workbench(), workbench(precision="bf16")
    for bench in (exact, half):
        bench.load(start_of(bench))
    (logits, _), (rough, _) = (
        exact.forward(rows("image-classification", 4)),
        half.forward(rows("image-classification", 4)),
    )
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), logits, rtol=0.05, atol=0.05)
    assert {parameter.dtype for parameter in half.parameters.values()} == {torch.float32}


def test_shallow_runs_the_given_blocks_in_order_and_the_whole_model_comes_back():
    bench = workbench()
    ran = []
    for index, block in enumerate(bench.model.get_submodule(bench.blocks.path)):
        block.register_forward_hook(lambda *_args, index=index: ran.append(index))
    batch = rows("image-classification", 2)
    for layers, expected in (([3, 0], [0, 3]), (None, [0, 1, 2, 3])):
        with bench.shallow(layers):
            bench.forward(batch)
        assert ran == expected
        ran.clear()


def test_dropout_rests_with_adapters_in_common_coordinates_alone() -> None:
    for scene, trains in ((common((VIT, WIDE)), False), (mixtures((VIT, WIDE)), True)):
        bench = next(iter(scene.clients.values())).bench
        with bench.training(bench.parameters):
            assert bench.model.training is trains
        assert not bench.model.training
