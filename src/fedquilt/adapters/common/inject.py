"""Adapters in common coordinates in a whole model: injection, layout and initial values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fedquilt.adapters.common.module import EVEN, PARTS, WEIGHT, CommonHead, CommonLinear
from fedquilt.adapters.common.settings import CommonSettings
from fedquilt.adapters.lora.inject import targeted
from fedquilt.adapters.lora.module import LoraLinear, initial_factors, is_linear, num_features
from fedquilt.adapters.sites import SHARED, output_projections, slots_of
from fedquilt.core.errors import ModelError
from fedquilt.core.factors import modules_of, named
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params

Adapted = TypeVar("Adapted", bound=nn.Module)


class Place(NamedTuple):
    """A module whose features are observed: its path, and the site and slot that it stands for."""

    module: str
    point: str


class CommonAdapters(NamedTuple):
    """What was put into a model.

    Attributes
    ----------
    linears : its modules with cores, by path.
    head : the path of the classifier's last module and the common head, if it has one.
    anchored : whether axes are aligned to those of the smallest model, instead of to what all models agree on.
    beside : adapters at modules without a core, by path.
    private : the private LoRA, by the path of its module.
    weight : where the common and the private part are two models, whose logits are averaged: the common one's weight,
        (1,); None for one model of both.
    """

    linears: Mapping[str, CommonLinear]
    head: tuple[str, CommonHead] | None
    anchored: bool = False
    beside: Mapping[str, LoraLinear] = MappingProxyType({})
    private: Mapping[str, LoraLinear] = MappingProxyType({})
    weight: nn.Parameter | None = None

    @contextmanager
    def alone(self, *parts: str) -> Iterator[None]:
        """The model with these of its parts, ``common`` and ``private``, alone."""
        before = self.present
        self._activate(parts)
        try:
            yield
        finally:
            self._activate(before)

    @property
    def present(self) -> tuple[str, ...]:
        """The parts that are in the model now."""
        linear, lora = next(iter(self.linears.values())), next(iter(self.private.values()), None)
        there = {"common": linear.active, "private": lora is not None and lora.active}
        return tuple(part for part in PARTS if there[part])

    def answer(self, logits: Callable[[], Tensor]) -> Tensor:
        """What ``logits()`` gives; of two models that are both in the model now, the weighted mean."""
        if self.weight is None or self.present != PARTS:
            return logits()
        found = []
        for part in PARTS:
            with self.alone(part):
                found.append(logits())
        return torch.lerp(found[1], found[0], self.weight.detach().clamp(0, 1).to(found[0]))

    def _activate(self, parts: Collection[str]) -> None:
        for linear in self.linears.values():
            linear.active = "common" in parts
        for lora in self.private.values():
            lora.active = "private" in parts
        if self.head is not None:
            self.head[1].parts = frozenset(parts)

    def observed(self) -> tuple[Place, ...]:
        """The modules of which the models' agreement is found: of each site and slot the deepest, and the head."""
        deepest = {own.core_name: name for name, own in self.linears.items()}
        found = [Place(name, point_of(core)) for core, name in deepest.items()]
        return (*found, *([] if self.head is None else [Place(self.head[0], "head")]))

    @contextmanager
    def taken_out(self, model: nn.Module) -> Iterator[None]:
        """The model without these adapters inside, with the modules of its own names."""
        own: dict[str, nn.Module] = {**self.linears, **self.beside, **({} if self.head is None else dict([self.head]))}
        put = {name: model.get_submodule(name) for name in own}  # with the private LoRA around, where there is one
        shared = model.get_submodule(SHARED)
        try:
            for name, module in own.items():
                _set(model, name, module.get_submodule("base"))
            delattr(model, SHARED)
            yield
        finally:
            for name, module in put.items():
                _set(model, name, module)
            model.add_module(SHARED, shared)


def point_of(core: str) -> str:
    """The site and slot of a core, ``<site>.<slot>``."""
    return core.removeprefix(SHARED + ".")


def inject_common(
    model: nn.Module, blocks: Blocks, settings: CommonSettings, head: Collection[str] = (), classes: str = ""
) -> CommonAdapters:
    """Put cores after attention and after the feed-forward part of each block, and the common head onto a classifier.

    The model is changed in place. It then also has a module ``common`` with the core of every site and slot, and with
    the common head. With a ``private_rank``, a LoRA of this rank is around each module with a core, or around each that
    ``private_targets`` names. Afterwards no parameter requires a gradient.

    Parameters
    ----------
    model : a model without adapters.
    blocks : where its transformer blocks are.
    settings : ranks, sites and slots.
    head : the names of the head's parameters; the common head goes onto the last linear module among them. Empty for
        a model without a trained head.
    classes : a name of the classes of the outputs; architectures with the same name share a head.

    Raises
    ------
    ModelError
        if the model's sites or targets are unknown, its head has no linear module, or it already has a module
        ``common``.
    """
    if hasattr(model, SHARED):
        raise ModelError(f"{type(model).__name__} already has a module '{SHARED}'; take that out first")
    found = output_projections(model, blocks, settings.sites)
    bare = private_modules(model, blocks, settings)
    slots = slots_of(blocks.num_layers, settings.num_slots, settings.slot_rule)
    device, size = next(model.parameters()).device, (settings.rank, settings.rank)
    shared = nn.ModuleDict(
        {
            site: nn.ParameterList(torch.zeros(size, device=device) for _ in range(settings.num_slots))
            for site in settings.sites
        }
    )
    model.add_module(SHARED, shared)
    model.requires_grad_(False)
    own = dict(shared.named_parameters(prefix=SHARED))
    linears = {}
    for name, (site, layer) in found.items():
        if slots[layer] is None:  # a block that shares nothing
            continue
        core = f"{SHARED}.{site}.{slots[layer]}"
        linears[name] = replaced(model, name, partial(CommonLinear, settings=settings, core={core: own[core]}))
    private = {
        name: replaced(model, name, partial(_with_private, base=base, settings=settings, name=name))
        for name, base in bare.items()
        if name in linears or settings.private_targets
    }
    beside = {name: lora for name, lora in private.items() if name not in linears}
    apart = settings.parts == "apart"
    last = put_head(model, head, classes, settings.rank, settings.head_scale, private=apart) if head else None
    weight = nn.Parameter(torch.full((1,), EVEN, device=device), requires_grad=False) if apart else None
    if weight is not None:
        module, _, name = WEIGHT.rpartition(".")
        model.add_module(module, nn.ParameterDict({name: weight}))
    return CommonAdapters(linears, last, beside=beside, private=private, weight=weight)


def private_modules(model: nn.Module, blocks: Blocks, settings: CommonSettings) -> dict[str, nn.Module]:
    """The modules of a model without adapters that get the private LoRA, by path; none without a ``private_rank``.

    Raises
    ------
    ModelError
        if a target names no linear module.
    """
    if not settings.private_rank:
        return {}
    if settings.private_targets:
        return targeted(model, blocks, settings.private_targets)
    return {name: model.get_submodule(name) for name in output_projections(model, blocks, settings.sites)}


def put_head(
    model: nn.Module, head: Collection[str], classes: str, rank: int, scale: float, *, private: bool = False
) -> tuple[str, CommonHead]:
    """Put the common head onto the last linear module of a head; returns its path and the common head.

    Parameters
    ----------
    model : a model with a module ``common``.
    head : the names of the head's parameters.
    classes : a name of the classes of the outputs; architectures with the same name share a head.
    rank : the number of coordinates.
    scale : the scale of the common head.
    private : whether there is a private change of the head too.

    Raises
    ------
    ModelError
        if the head has no linear module.
    """
    last, shared = _last_linear(model, head), model.get_submodule(SHARED)
    _, outputs = num_features(model.get_submodule(last))
    v = nn.Parameter(torch.zeros(outputs, rank, device=next(model.parameters()).device), requires_grad=False)
    shared.add_module(f"head-{classes}", nn.ParameterList([v]))
    return last, replaced(model, last, partial(CommonHead, rank=rank, scale=scale, shared=v, private=private))


def _last_linear(model: nn.Module, head: Collection[str]) -> str:
    """The path of the last linear module of a head.

    Raises
    ------
    ModelError
        if there is none.
    """
    modules = dict.fromkeys(name.rpartition(".")[0] for name in head)
    found = [name for name in modules if is_linear(model.get_submodule(name))]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear module in its head ({', '.join(modules)}), so it cannot have a "
            "common head; set head.policy = 'frozen', or use another adapter.kind"
        )
    return found[-1]


def _with_private(module: nn.Module, base: nn.Module, settings: CommonSettings, name: str) -> LoraLinear:
    """The private LoRA around a module, which is ``base`` or has a core and is itself around ``base``."""
    around = LoraLinear(base, settings.private, name)
    around.base = module
    return around


def replaced(model: nn.Module, name: str, make: Callable[[nn.Module], Adapted]) -> Adapted:
    """Put ``make(base)`` in the place of the module at this path."""
    base = model.get_submodule(name)
    made = make(base)
    made.train(base.training)
    _set(model, name, made)
    return made


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def common_layout(model: nn.Module, blocks: Blocks, architecture: str, adapters: CommonAdapters) -> Layout:
    """Names, depths and shapes of cores, private factors and heads: by depth, the heads last.

    A core has the depth of the shallowest block that uses it; one that no block uses is not listed.
    """
    depth: dict[str, int | None] = {}
    for name in sorted({**adapters.linears, **adapters.beside}, key=lambda name: blocks.depth(name) or 0):
        private = [f"{name}.{end}" for end, _ in model.get_submodule(name).named_parameters(recurse=False)]
        core = [adapters.linears[name].core_name] if name in adapters.linears else []
        for own in (*private, *core):
            depth.setdefault(own, blocks.depth(name))
    if adapters.head is not None:
        _, head = adapters.head
        trained = {id(own) for own in (head.shared, *head.parameters(recurse=False))}
        depth |= {name: None for name, own in model.named_parameters() if id(own) in trained}
    if adapters.weight is not None:
        depth[WEIGHT] = None
    shapes = dict(model.named_parameters())
    return Layout(architecture, blocks.num_layers, depth, {name: tuple(shapes[name].shape) for name in depth})


def initial_common(layout: Layout) -> Callable[[Rng], Params]:
    """``make(rng)``, which returns the tensors that training starts from: private factors as in LoRA, all else 0.

    The weight of the common part begins at one half.
    """

    def make(rng: Rng) -> Params:
        params = {name: torch.zeros(shape) for name, shape in layout.shapes.items()}
        params |= {name: torch.full_like(one, EVEN) for name, one in params.items() if name == WEIGHT}
        for module in modules_of(layout.depth):
            (rank, d_in), (d_out, _) = layout.shapes[f"{module}.lora_A"], layout.shapes[f"{module}.lora_B"]
            a, b = initial_factors(module, d_in, d_out, rank, rng)
            params |= named({module: (b, a)})
        return params

    return make
