"""Mixtures of adapters in a whole model: injection, removal, initial values, layout and merging."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from fedquilt.adapters.lora.inject import copied, own_parameters, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.mixture.module import MixtureLinear, drawn_down, drawn_expert
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.sites import BANK, axes_of, is_shared, output_projections, slots_of
from fedquilt.core.errors import ModelError
from fedquilt.core.factors import Product, named
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


def inject_mixture(
    model: nn.Module, blocks: Blocks, settings: MixtureSettings, layers: Iterable[int] | None = None
) -> dict[str, MixtureLinear]:
    """Put mixtures into these blocks (None: all) at the settings' sites; returns them by module path.

    The model is changed in place. It then also has a module ``mixture`` with the branches of every part and slot, the
    same for every model with these settings. Afterwards no parameter requires a gradient: the caller enables the
    gradients of what it trains.

    Raises
    ------
    ModelError
        if the model's sites are unknown, or it already has a module ``mixture``.
    """
    if hasattr(model, BANK):
        raise ModelError(f"{type(model).__name__} already has a module '{BANK}'; take that out first")
    found = output_projections(model, blocks, settings.sites, layers)
    slots = slots_of(blocks.num_layers, settings.num_slots, settings.slot_rule)
    device = next(model.parameters()).device

    def branches() -> nn.ParameterList:
        shape = (settings.rank, settings.rank)
        return nn.ParameterList(torch.zeros(shape, device=device) for _ in range(settings.branches))

    bank = nn.ModuleDict(
        {part: nn.ModuleList(branches() for _ in range(settings.num_slots)) for part in settings.sites}
    )
    model.add_module(BANK, bank)
    model.requires_grad_(False)
    shared = dict(bank.named_parameters(prefix=BANK))
    injected = {}
    for name, (part, layer) in found.items():
        names = [] if slots[layer] is None else expert_names(part, slots[layer], settings.branches)  # type: ignore[arg-type]
        base = model.get_submodule(name)
        injected[name] = MixtureLinear(base, settings, {one: shared[one] for one in names}).train(base.training)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, injected[name])
    return injected


def mixtures(model: nn.Module) -> dict[str, MixtureLinear]:
    """The mixtures in ``model`` by module path, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureLinear)}


def remove_mixture(model: nn.Module) -> None:
    """Remove every mixture and the bank, so that ``model`` is as before ``inject_mixture``."""
    for name, mixture in mixtures(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, mixture.base)
    delattr(model, BANK)


def expert_names(part: str, slot: int, branches: int) -> list[str]:
    """The names of the branches of one part and slot."""
    return [f"{BANK}.{part}.{slot}.{branch}" for branch in range(branches)]


def branch_of(name: str) -> int:
    """The number of the branch of this name."""
    return int(name.rpartition(".")[2])


def mixture_layout(model: nn.Module, blocks: Blocks, architecture: str, head: Collection[str] = ()) -> Layout:
    """Names, depths and shapes of the mixtures' tensors and of the head's parameters: by depth, the head last.

    A branch has the depth of the shallowest block that uses it; one that no block uses is not listed.

    Raises
    ------
    ModelError
        if a head parameter is not in the model.
    """
    parameters = own_parameters(model, head)
    depth: dict[str, int | None] = {}
    for name, mixture in mixtures(model).items():  # the model's order, so a branch meets its shallowest block first
        ends = (own for own, _ in mixture.named_parameters() if not own.startswith("base."))
        for tensor in (*(f"{name}.{own}" for own in ends), *mixture.expert_names):
            depth.setdefault(tensor, blocks.depth(name))
    depth |= {name: None for name in parameters if name in set(head)}
    return Layout(architecture, blocks.num_layers, depth, {name: tuple(parameters[name].shape) for name in depth})


def initial_mixture(layout: Layout, model: nn.Module, settings: MixtureSettings) -> Callable[[Rng], Params]:
    """``make(rng)``, which returns the tensors that training starts from, on the CPU.

    ``down`` and the branches are drawn at random, ``up`` and the gates are 0, and the head is copied when this function
    is called. A branch depends only on its name and ``rng``: the same stream gives every architecture the same
    branches.
    """
    head = {name: copied(parameter) for name, parameter in trainable(model, layout).items() if name in layout.head}

    def value(name: str, shape: tuple[int, ...], rng: Rng) -> Tensor:
        if name in head:
            return head[name].clone()
        if is_shared(name):
            return drawn_expert(name, settings, rng)
        module, _, end = name.rpartition(".")
        if end != "down":
            return torch.zeros(shape)
        rank, width = shape
        return drawn_down(axes_of(module), rank, width, rng)

    return lambda rng: {name: value(name, shape, rng) for name, shape in layout.shapes.items()}


def trained_names(layout: Layout, settings: MixtureSettings, own: int) -> tuple[str, ...]:
    """The tensors that a client of the architecture with branch ``own`` trains, in the layout's order.

    They are the projections, the gates, the head, and its own branch (``trained = "own"``) or all branches.

    Raises
    ------
    ValueError
        if there is no such branch.

    Paper: heterotune, own-branch
    """
    if not 0 <= own < settings.branches:
        raise ValueError(f"there is no branch {own}; the branches are 0 to {settings.branches - 1}")
    foreign = {name for name in layout.depth if is_shared(name) and branch_of(name) != own}
    return tuple(name for name in layout.depth if settings.trained == "all" or name not in foreign)


def check_bank(banks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise ModelError if a branch has different shapes in different architectures, so that it cannot be shared."""
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for architecture, tensors in banks.items():
        for name, tensor in tensors.items():
            other, shape = first.setdefault(name, (architecture, tuple(tensor.shape)))
            if is_shared(name) and shape != tuple(tensor.shape):
                raise ModelError(
                    f"branch '{name}' is {tuple(tensor.shape)} in {architecture} and {shape} in {other}; "
                    "all architectures must have the same adapter.rank"
                )


def shared_penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor], mu: float, decay: float = 0.0) -> Tensor:
    """``mu / 2 sum ||S - S_0||^2 + decay sum ||S||^2`` over the trained branches S, a scalar.

    S_0 is the branch in ``start``, as the server sent it. Gradients flow only to ``trained``.

    Raises
    ------
    ValueError
        if a number is below 0 or not finite.

    Paper: heterotune, shared-regulariser
    """
    for key, value in (("mu", mu), ("decay", decay)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{key} is {value}; it must be at least 0 and finite")
    terms = [
        mu / 2 * (tensor - start[name].detach()).square().sum() + decay * tensor.square().sum()
        for name, tensor in trained.items()
        if is_shared(name)
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def folded_weights(found: Mapping[str, MixtureLinear]) -> Params:
    """The merged weights and biases by name: with them the model without mixtures computes what it does with them.

    Raises
    ------
    ModelError
        if a mixture is not linear.
    """
    params: Params = {}
    for name, mixture in found.items():
        if mixture.active:
            weight, bias = mixture.folded()
            params[f"{name}.weight"] = weight
            if bias is not None:
                params[f"{name}.bias"] = bias
    return params


def as_lora(found: Mapping[str, MixtureLinear]) -> tuple[Params, LoraSettings]:
    """The active mixtures as plain LoRA of the same rank and scale with its settings, which PEFT can load.

    Raises
    ------
    ModelError
        if there is none, one is not linear, or a serial one would change the bias of its module.
    """
    active = {name: mixture for name, mixture in found.items() if mixture.active}
    if not active:
        raise ModelError("there is no active mixture of adapters to write as LoRA")
    settings = next(iter(active.values())).settings
    pairs = {name: Product(*mixture.as_lora()) for name, mixture in active.items()}
    return named(pairs), LoraSettings(rank=settings.rank, alpha=settings.scaling * settings.rank)
