"""Buffers that training changes, such as the running statistics of batch normalisation.

A module has state if a forward pass in training mode changes one of its buffers and a forward pass in eval mode does
not. This is found by running the model, so it also works for spectral norms and for custom modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedquilt.core.rng import Rng
from fedquilt.core.types import Params

VARIANCES = ("running_var", "num_batches_tracked")
"""The last part of the names of those buffers of torch's own modules that are never negative."""


class Buffer(NamedTuple):
    """A buffer of a module with state, found by name, because the module may replace the tensor."""

    module: nn.Module
    name: str

    @property
    def value(self) -> Tensor:
        """The current tensor."""
        value = self.module._buffers[self.name]
        assert value is not None
        return value

    def number(self) -> Tensor:
        """A copy of the value on the CPU in a floating-point dtype, for averaging; a meta tensor stays on meta."""
        value = self.value.detach()
        dtype = value.dtype if value.is_floating_point() else torch.float64
        return value.to(dtype) if value.is_meta else value.to("cpu", dtype, copy=True)

    def put(self, number: Tensor) -> None:
        """Set the value to a result of ``number``, or to a mean of such results; integer buffers are rounded."""
        own = self.value
        with torch.no_grad():
            whole = number.is_floating_point() and not own.is_floating_point()
            own.copy_(number.round() if whole else number)


State = Mapping[str, Buffer]
"""The buffers of the modules with state by name, in the model's order."""


def state_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> State:
    """The persistent buffers of the model's modules with state; ``inputs`` are the arguments of a forward pass.

    Afterwards the model is unchanged, and no random stream has advanced. If the model cannot be run on ``inputs``,
    every module with a floating-point buffer counts as one with state. This does no harm: averaging a buffer that
    training never changes leaves it unchanged.
    """
    owners = {path: saved for path, module in model.named_modules() if (saved := _saved(module))}
    if not owners:
        return {}
    modules = {path: model.get_submodule(path) for path in owners}
    with _undone(model, modules), Rng(0).child("state").scope(), torch.no_grad():
        try:
            kept = _changed(model, modules, inputs, train=False)
            moved = _changed(model, modules, inputs, train=True) - kept
        except Exception:  # a model's code may raise anything for inputs that it does not expect
            moved = {
                path for path, saved in owners.items() if any(value.is_floating_point() for value in saved.values())
            }
    return {
        f"{path}.{name}" if path else name: Buffer(modules[path], name)
        for path, saved in owners.items()
        if path in moved
        for name in saved
    }


def numbers(state: State) -> Params:
    """The values of these buffers as returned by ``Buffer.number``."""
    return {name: buffer.number() for name, buffer in state.items()}


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """The module's own persistent buffers."""
    skipped = module._non_persistent_buffers_set
    return {name: value for name, value in module._buffers.items() if value is not None and name not in skipped}


def _changed(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], *, train: bool
) -> set[str]:
    """The paths of the modules whose persistent buffers are changed by a forward pass."""
    before = {
        path: {name: (value, value._version, value.clone()) for name, value in _saved(module).items()}
        for path, module in modules.items()
    }
    model.train(train)
    model(**inputs)
    return {path for path, module in modules.items() if _differ(before[path], _saved(module))}


def _differ(before: Mapping[str, tuple[Tensor, int, Tensor]], now: Mapping[str, Tensor]) -> bool:
    """Whether a buffer was replaced, written to, or has other values (torch's own kernels do not count every write)."""
    if before.keys() != now.keys():
        return True
    return any(
        now[name] is not value or value._version != version or not (value.is_meta or torch.equal(value, copy))
        for name, (value, version, copy) in before.items()
    )


@contextmanager
def _undone(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Restore the mode of every module, and the buffers of ``modules``, when the context ends."""
    modes = [(module, module.training) for module in model.modules()]
    held = [
        (module, dict(module._buffers), {k: v.clone() for k, v in _saved(module).items()})
        for module in modules.values()
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, buffers, values in held:
            module._buffers.update(buffers)
            for name, value in values.items():
                Buffer(module, name).put(value)
