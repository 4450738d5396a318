"""Injection of LoRA adapters into a model, and the layout of its trainable tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from fedquilt.adapters.families import ends_in
from fedquilt.adapters.lora.dora import DoraLinear
from fedquilt.adapters.lora.module import LoraLinear, initial_factors, is_linear
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ModelError, suggestion
from fedquilt.core.factors import at_rank, is_factor, named
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


def inject(
    model: nn.Module, blocks: Blocks, settings: LoraSettings, targets: Collection[str] = (), head: Collection[str] = ()
) -> dict[str, LoraLinear]:
    """Put a LoRA adapter on every linear module inside a block that a target names; returns them by module path.

    The model is changed in place. Afterwards no parameter requires a gradient, not even the head's: the caller enables
    the gradients of what it trains.

    Parameters
    ----------
    model : a model without adapters.
    blocks : where its transformer blocks are.
    settings : rank, scaling and dropout of the adapters.
    targets : names of modules or ends of their paths (``"q_proj"``, ``"attention.q_proj"``); the settings' if empty.
    head : the names of the head's parameters, which must not be in an adapted module.

    Raises
    ------
    ModelError
        if a target matches no linear module inside the blocks, or a head parameter is not in the model; lists the
        modules that there are.
    """
    linears = targeted(model, blocks, tuple(targets) or settings.targets or ())
    own_parameters(model, head)
    model.requires_grad_(False)
    injected = {}
    for name, module in linears.items():
        parent, _, child = name.rpartition(".")
        injected[name] = (DoraLinear if settings.use_dora else LoraLinear)(module, settings, name)
        injected[name].train(module.training)
        setattr(model.get_submodule(parent), child, injected[name])
    return injected


def targeted(model: nn.Module, blocks: Blocks, targets: Collection[str]) -> dict[str, nn.Module]:
    """The linear modules inside the blocks that a target names, by path, in the model's order.

    Raises
    ------
    ModelError
        if there is no target, or one matches no linear module inside the blocks; lists the modules that there are.
    """
    linears = {name: module for name, module in model.named_modules() if _adaptable(name, module, blocks)}
    endings = sorted({_within_block(name, blocks) for name in linears})
    if not linears:
        raise ModelError(
            f"{type(model).__name__} has no linear module inside its blocks ({blocks.path}), so there is nothing to "
            "adapt; use another model"
        )
    if not targets:
        raise ModelError(
            "adapter.targets is empty and the model has no default; choose among its linear modules: "
            + ", ".join(endings)
        )
    for target in targets:
        if not any(ends_in(name, target) for name in linears):
            last = sorted({name.rpartition(".")[2] for name in endings})
            raise ModelError(
                f"adapter.targets holds '{target}', which names no linear module inside the "
                f"blocks{suggestion(target, last)}; "
                "there are: " + (", ".join(endings) or "none")
            )
    return {name: module for name, module in linears.items() if ends_in(name, *targets)}


def all_linear(model: nn.Module, blocks: Blocks) -> tuple[str, ...]:
    """Names that match every linear module inside the blocks, as PEFT's ``target_modules = "all-linear"`` does.

    Outside the blocks PEFT also adapts, for example, a pooler; such a module is in no layer that a client could train.
    """
    names = (name for name, module in model.named_modules() if _adaptable(name, module, blocks))
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapters in ``model`` by module path, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def remove(model: nn.Module) -> Params:
    """Remove every adapter, so that ``model`` is as before ``inject``; returns the adapters' last values by name."""
    taken: Params = {}
    for name, adapter in adapters(model).items():
        taken |= {f"{name}.{own}": parameter.detach() for own, parameter in adapter.named_parameters(recurse=False)}
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapter.base)
    return taken


def layout(model: nn.Module, blocks: Blocks, architecture: str, head: Collection[str] = ()) -> Layout:
    """Names, depths and shapes of the adapters in ``model`` and of the head's parameters: by depth, the head last.

    Raises
    ------
    ModelError
        if a head parameter is not in the model.
    """
    parameters = own_parameters(model, head)
    names = [
        f"{name}.{own}"
        for name, adapter in adapters(model).items()
        for own, _ in adapter.named_parameters(recurse=False)
    ]
    # sorted is stable: inside a block the model's own order stays
    depth: dict[str, int | None] = dict(
        sorted(((name, blocks.depth(name)) for name in names), key=lambda item: item[1] or 0)
    )
    depth |= {name: None for name in parameters if name in set(head)}
    shapes = {name: tuple(parameters[name].shape) for name in depth}
    return Layout(architecture, blocks.num_layers, depth, shapes)


def own_parameters(model: nn.Module, head: Collection[str]) -> dict[str, nn.Parameter]:
    """The model's parameters by name, in its order, after a check that they include those of ``head``.

    Raises
    ------
    ModelError
        if a head parameter is not in the model.
    """
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(head) - parameters.keys()):
        raise ModelError(f"the head's parameter '{unknown[0]}' is not in the model")
    return parameters


def trainable(model: nn.Module, layout: Layout) -> dict[str, nn.Parameter]:
    """The parameters of the model that the layout names, in the layout's order, without buffers."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in layout.depth if name not in layout.buffers}


def initial(layout: Layout, model: nn.Module, axes: Callable[[str], str] = str) -> Callable[[Rng], Params]:
    """``make(rng)``, which returns the tensors that training starts from, on the CPU: new factors, and other tensors.

    The factors are drawn module by module from ``rng``; modules of one width for whose paths ``axes`` is the same start
    with the same factors. The head and the magnitudes of DoRA are copied when this
    function is called, so that values that clients load into the model later do not change them.
    """
    kept = {name: copied(parameter) for name, parameter in trainable(model, layout).items() if not is_factor(name)}

    def make(rng: Rng) -> Params:
        params: Params = {}
        for name in layout.depth:
            module, _, factor = name.rpartition(".")
            if name in kept:
                params[name] = kept[name].clone()
            elif factor == "lora_A":
                (rank, d_in), d_out = layout.shapes[name], layout.shapes[f"{module}.lora_B"][0]
                params[name], params[f"{module}.lora_B"] = initial_factors(axes(module), d_in, d_out, rank, rng)
        return params

    return make


def fresh(layout: Layout, rank: int, rng: Rng) -> Params:
    """New factors for every adapted module of the layout, at this rank or the module's own if that is lower."""
    params: Params = {}
    for name, shape in at_rank(layout, rank).shapes.items():
        module, _, factor = name.rpartition(".")
        if factor == "lora_A":
            own, d_in = shape
            a, b = initial_factors(module, d_in, layout.shapes[f"{module}.lora_B"][0], own, rng)
            params |= named({module: (b, a)})
    return params


def load(parameters: Mapping[str, nn.Parameter], params: Mapping[str, torch.Tensor]) -> None:
    """Copy the values ``params`` into the parameters of the same names; other parameters are unchanged."""
    with torch.no_grad():
        for name, value in params.items():
            parameters[name].copy_(value)


def copied(parameter: nn.Parameter) -> torch.Tensor:
    """A copy of the parameter's value on the CPU; zeros for a parameter on meta."""
    # a meta tensor has no values: only shapes are needed then, so the zeros are expanded without memory
    if parameter.is_meta:
        return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return parameter.detach().to("cpu", copy=True)


def _adaptable(name: str, module: nn.Module, blocks: Blocks) -> bool:
    return blocks.depth(name) is not None and is_linear(module)


def _within_block(name: str, blocks: Blocks) -> str:
    inside = name[len(blocks.path) + 1 :].partition(".")[2].split(".")
    return inside[-1] if any(part.isdecimal() for part in inside) else ".".join(inside)
