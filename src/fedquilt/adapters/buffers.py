"""What a model remembers of the batches that it was trained on: running statistics and their like, in buffers.

A module has state if a forward pass in training mode changes a buffer of it and one in eval mode does not. That is
found by trying, so it holds for batch normalisation, for spectral norms and for modules that nobody has heard of.
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
"""The last part of the names of torch's own buffers that are never below 0."""


class Buffer(NamedTuple):
    """A buffer of a module with state; a module may put another tensor in its place."""

    module: nn.Module
    name: str

    @property
    def value(self) -> Tensor:
        """The tensor that is now in its place."""
        value = self.module._buffers[self.name]
        assert value is not None
        return value

    def number(self) -> Tensor:
        """A copy of the value, on the CPU, as numbers that a mean can be taken of; on meta, none."""
        value = self.value.detach()
        dtype = value.dtype if value.is_floating_point() else torch.float64
        return value.to(dtype) if value.is_meta else value.to("cpu", dtype, copy=True)

    def put(self, number: Tensor) -> None:
        """Set the value to what ``number`` gave, or a mean of such; whole numbers are rounded."""
        own = self.value
        with torch.no_grad():
            whole = number.is_floating_point() and not own.is_floating_point()
            own.copy_(number.round() if whole else number)


State = Mapping[str, Buffer]
"""Buffers of the modules with state, by name, in the model's order."""


def state_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> State:
    """All buffers that are saved with the model, of its modules with state; ``inputs`` are those of a forward pass.

    The model is afterwards as before, and no stream is drawn from. Of a model that cannot be run on ``inputs`` every
    module with a floating-point buffer counts: kept as it is, or averaged, what does not change does not change.
    """
    owners = {path: saved for path, module in model.named_modules() if (saved := _saved(module))}
    if not owners:
        return {}
    modules = {path: model.get_submodule(path) for path in owners}
    with _undone(model, modules), Rng(0).child("state").scope(), torch.no_grad():
        try:
            kept = _changed(model, modules, inputs, train=False)
            moved = _changed(model, modules, inputs, train=True) - kept
        except Exception:  # whatever its code raises on an input that it does not like: then nothing is known of it
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
    """The values of these buffers, as ``Buffer.number`` gives them."""
    return {name: buffer.number() for name, buffer in state.items()}


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """The module's own buffers that are saved with it."""
    skipped = module._non_persistent_buffers_set
    return {name: value for name, value in module._buffers.items() if value is not None and name not in skipped}


def _changed(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], *, train: bool
) -> set[str]:
    """The modules of which a forward pass changed a saved buffer."""
    before = {
        path: {name: (value, value._version, value.clone()) for name, value in _saved(module).items()}
        for path, module in modules.items()
    }
    model.train(train)
    model(**inputs)
    return {path for path, module in modules.items() if _differ(before[path], _saved(module))}


def _differ(before: Mapping[str, tuple[Tensor, int, Tensor]], now: Mapping[str, Tensor]) -> bool:
    """Whether a buffer is another, was written to, or (torch's own kernels do not count writing) has other numbers."""
    if before.keys() != now.keys():
        return True
    return any(
        now[name] is not value or value._version != version or not (value.is_meta or torch.equal(value, copy))
        for name, (value, version, copy) in before.items()
    )


@contextmanager
def _undone(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Afterwards every module is in the mode that it was in, and these have the buffers that they had."""
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
