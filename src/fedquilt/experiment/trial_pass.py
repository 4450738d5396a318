"""A trial forward pass before training, so that unsuitable models are found before a run starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.errors import FedquiltError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params

ROWS = 2
"""Number of rows of a trial; a single row would hide operations across rows."""

TOKENS = 16
"""Number of tokens of a row in a trial of gradients."""

_ALIKE = 1e-3  # the most that two gradients of the same may differ, relative to the largest of all


def try_out(bench: Workbench, rows: Batch, name: str) -> None:
    """Try the model called ``name`` and its adapters on the first of these rows.

    Raises
    ------
    ModelError
        if the pass fails, the logits do not have the task's shape, or adapters have no effect on the output.
    """
    batch = {key: column[:ROWS] for key, column in rows.items()}
    with torch.no_grad(), _untouched(bench.model), _noted(bench.adapters) as called:
        try:
            with bench.training(()):  # some models accept different inputs in training mode
                bench.forward(batch)
            logits, labels = bench.forward(batch)
            felt = not bench.adapters or _are_felt(bench, batch)
        except FedquiltError:
            raise
        except Exception as error:  # whatever a model raises: it is somebody else's code
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"model '{name}': {type(bench.model).__name__} does not take these rows ({cause}); use a model for "
                "this kind of data"
            ) from error
    fits = isinstance(logits, Tensor) and logits.shape[:-1] == labels.shape
    if not fits:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"model '{name}': {type(bench.model).__name__} gives logits {shape}, but the labels are "
            f"{tuple(labels.shape)}; use a model with one output for each class or token"
        )
    if not felt:
        raise ModelError(
            f"model '{name}': the output of the blocks of {type(bench.model).__name__} does not depend on its modules "
            f"{', '.join(dict.fromkeys(map(_kind, bench.adapters)))}, so adapters there would have no effect; choose "
            "other adapter.targets"
        )
    for kind in dict.fromkeys(map(_kind, bench.adapters)):
        if kind not in map(_kind, called):
            raise ModelError(
                f"model '{name}': {type(bench.model).__name__} does not call its modules '{kind}' but uses their "
                f"weights itself, so adapters there would have no effect; list modules without '{kind}' in "
                "adapter.targets"
            )


def try_blocks(bench: Workbench, rows: Batch, name: str) -> None:
    """Raise ModelError if a block of the model called ``name`` cannot run without the others.

    Methods that skip blocks need this. Blocks of different widths, such as the stages of a convolutional network,
    depend on the blocks before them.
    """
    batch = {key: column[:ROWS] for key, column in rows.items()}
    for layer in range(bench.blocks.num_layers):
        try:
            with torch.no_grad(), _untouched(bench.model), bench.shallow([layer]):
                bench.forward(batch)
        except Exception as error:  # whatever a model raises: it is somebody else's code
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"model '{name}': block {layer} of {type(bench.model).__name__} does not run without the others "
                f"({cause}), and the method skips blocks in training; set method.drop_layers = false, or take another "
                "model"
            ) from error


def try_recomputing(bench: Workbench, params: Params, rows: Batch, name: str) -> None:
    """Raise ModelError if gradient checkpointing changes the gradients of the model called ``name``.

    They change if a block gives another result when it runs again, as one that counts its own calls. A few tokens of
    the first of these rows are tried with the model's tensors ``params``, so that even the pass without checkpointing
    needs little memory.
    """
    batch = {key: column[:ROWS, :TOKENS] if column.dim() == 2 else column[:ROWS] for key, column in rows.items()}
    try:
        kept, again = (_gradients(bench, params, batch, recompute) for recompute in (False, True))
    except Exception as error:  # whatever a model raises: it is somebody else's code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    else:
        most = max((float(gradient.abs().max()) for gradient in kept.values()), default=0.0)
        apart = [name for name, gradient in kept.items() if not torch.allclose(again[name], gradient, 0, _ALIKE * most)]
        if not apart and kept.keys() == again.keys():
            return
        reason = f"the gradient of {apart[0]} is another one" if apart else "some tensors have no gradient with it"
    raise ModelError(
        f"model '{name}': training.gradient_checkpointing = true does not work with {type(bench.model).__name__}, "
        f"whose blocks do not compute the same when they run again ({reason}); set it to false"
    )


def _gradients(bench: Workbench, params: Params, batch: Batch, recompute: bool) -> dict[str, Tensor]:
    """The gradients of all tensors that a pass over this batch gives one to."""
    bench.load(params)
    with _untouched(bench.model), bench.training(bench.layout.depth, recompute=recompute):
        logits, _ = bench.forward(batch)
        logits.float().square().mean().backward()
        return {name: tensor.grad.clone() for name, tensor in bench.parameters.items() if tensor.grad is not None}


def _are_felt(bench: Workbench, batch: Batch) -> bool:
    """Whether the adapters change any output of the blocks."""
    blocks = bench.model.get_submodule(bench.blocks.path)
    assert isinstance(blocks, nn.ModuleList)
    left: list[list[Tensor]] = []
    before = [
        (factor, factor.clone()) for adapter in bench.adapters.values() for factor in (adapter.lora_A, adapter.lora_B)
    ]
    hooks = [block.register_forward_hook(lambda _, given, made: left[-1].extend(_tensors(made))) for block in blocks]
    try:
        for size in (0.0, 1.0):
            left.append([])
            for factor, _ in before:
                # a ramp, because equal numbers have no effect after normalisation
                factor.copy_(size * torch.linspace(-1, 0.5, factor.numel(), device=factor.device).view_as(factor))
            bench.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for factor, value in before:
            factor.copy_(value)
    return any(not torch.equal(without, made) for without, made in zip(*left, strict=True))


def _tensors(made: object) -> list[Tensor]:
    """The tensors in a module's output."""
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, tuple | list) else ()
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and torch's random state when the context ends."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with Rng(0).child("trial").scope():
            yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _noted(modules: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """The paths of the modules that are called in the context."""
    called: set[str] = set()
    hooks = [module.register_forward_hook(lambda *_, path=path: called.add(path)) for path, module in modules.items()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _kind(path: str) -> str:
    return path.rpartition(".")[2]
