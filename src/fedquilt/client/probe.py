"""Fisher information of low-rank adapters on a client's or the server's rows, by batched backward passes.

The gradients of single rows need no backward passes of their own. For ``y = W x + s B (A x)`` let ``x`` be ``(tokens,
d_in)``, ``g`` the gradient of the row's objective in ``y``, ``(tokens, d_out)``, ``h = x A^T`` and ``u = g B``. Then
``dB = s g^T h`` and ``dA = s u^T x``. As the objective of a batch is the sum over rows, ``g`` of the batch holds the
``g`` of every row. The gradient of a module that is called several times in one pass is the sum over all calls. With
DoRA, ``y = m V / ||V|| x`` with ``V = W + s B A``: then ``dm = sum_tokens g * (V / ||V|| x)``, and ``g * m / ||V||``
takes the place of ``g`` in the other two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.dora import DoraLinear
from fedquilt.adapters.lora.inject import adapters
from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.client.task import Scoring
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.factors import MAGNITUDE
from fedquilt.core.types import Layout, Params

OBJECTIVES = {
    "log-prob": lambda scoring, logits, labels: -scoring.loss(logits, labels),
    # as in the released code; not a Fisher information, as it changes if one vector is added to every class's row
    "logit": Scoring.label_logit,
}


def fisher_diagonal(
    bench: Workbench, columns: Batch, params: Mapping[str, Tensor], *, objective: str = "log-prob", batch_size: int = 32
) -> Params:
    """Diagonal of the empirical Fisher information of every tensor of the adapters, averaged over all rows.

    ``F_theta = (1/N) sum_n (d log p(y_n | x_n) / d theta)^2``, a tensor of theta's shape for every adapter tensor of
    the layout. Every row is used once.

    Parameters
    ----------
    bench, columns, params
        The workbench, the N rows, and the model's tensors.
    objective
        The function that is differentiated, a key of ``OBJECTIVES``.
    batch_size
        Rows of a backward pass; up to rounding, the result does not depend on it. If an adapted module mixes rows, as
        with position embeddings that all rows share, the rows are processed one by one.

    Paper: fed-hello, fisher
    """
    bench.load(params)
    modules = adapters(bench.model)
    totals = {
        f"{name}.{own}": torch.zeros_like(parameter, dtype=torch.float32)
        for name, module in modules.items()
        for own, parameter in module.named_parameters(recurse=False)
    }
    num_rows, first = len(columns["labels"]), 0
    with _recorded(modules) as calls, _inputs_kept(bench.model) as inputs:
        while first < num_rows:
            _forget(calls)
            batch = {name: column[first : first + batch_size] for name, column in columns.items()}
            logits, labels = bench.forward(batch)
            apart = len(labels) == 1 or _rows_lead(calls, len(labels))
            if apart:
                squares = _squared_row_gradients(modules, calls, OBJECTIVES[objective](bench.scoring, logits, labels))
                # the first time: a leading dimension equal to the number of rows may be a coincidence
                apart = first > 0 or len(labels) == 1 or _rows_lead(_calls_of_one_row(bench, calls, inputs), 1)
            if not apart:
                batch_size = 1
                continue
            for name, square in squares.items():
                totals[name] += square
            first += len(labels)
    return {name: total.cpu() / num_rows for name, total in totals.items()}


def layer_scores(fisher: Mapping[str, Tensor], layout: Layout, kind: str = "trace") -> list[float]:
    """One score per transformer block from the Fisher diagonal of its adapters.

    ``trace``: sum of all entries. ``mean``: their mean. ``norm`` (as in the released code): sum over the block's
    tensors of the Frobenius norm of the diagonal. ``squared-norm``: the same with squared norms.
    """
    parts: list[list[Tensor]] = [[] for _ in range(layout.num_layers)]
    for name, diagonal in fisher.items():
        layer = layout.depth[name]
        if layer is not None:
            parts[layer].append(diagonal.double())
    return [_block_score(tensors, kind) for tensors in parts]


def _block_score(tensors: list[Tensor], kind: str) -> float:
    if kind == "norm":
        return float(sum(tensor.norm() for tensor in tensors))
    if kind == "squared-norm":
        return float(sum(tensor.square().sum() for tensor in tensors))
    total = float(sum(tensor.sum() for tensor in tensors))
    return total / max(1, sum(tensor.numel() for tensor in tensors)) if kind == "mean" else total


class _Call(NamedTuple):
    """One call of an adapted module: its input (..., d_in) and output (..., d_out)."""

    input: Tensor
    output: Tensor


_Calls = dict[str, list[_Call]]


def _squared_row_gradients(modules: Mapping[str, LoraLinear], calls: _Calls, objective: Tensor) -> Params:
    """Sums over rows of ``dA^2`` (r, d_in), ``dB^2`` (d_out, r) and, with DoRA, ``dm^2`` (d_out,).

    They are those of every module that influences the objective.

    ``objective`` has one entry for each row, and rows are the first dimension of every call's tensors.
    """
    made = [(name, call) for name, own in calls.items() for call in own]
    grads = torch.autograd.grad(objective.sum(), [call.output for _, call in made], allow_unused=True)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, call), grad in zip(made, grads, strict=True):
        if grad is not None:
            x, g = (t.detach().float().reshape(len(objective), -1, t.shape[-1]) for t in (call.input, grad))
            pairs.setdefault(name, []).append((x, g))
    squares: Params = {}
    for name, own in pairs.items():
        module, x, g = modules[name], *(torch.cat(tensors, dim=1) for tensors in zip(*own, strict=True))
        if isinstance(module, DoraLinear):
            squares[f"{name}.{MAGNITUDE}"] = (g * F.linear(x, module.direction())).sum(1).square().sum(0)
            g = g * module.factor().detach()
        factor_a, factor_b = module.lora_A.detach().float(), module.lora_B.detach().float()
        hidden = x @ factor_a.T  # (rows, tokens of all calls, r)
        back = g @ factor_b  # (rows, tokens of all calls, r)
        squares[f"{name}.lora_A"] = (module.scaling * torch.einsum("ntr,nti->nri", back, x)).square().sum(0)
        squares[f"{name}.lora_B"] = (module.scaling * torch.einsum("nto,ntr->nor", g, hidden)).square().sum(0)
    return squares


def _rows_lead(calls: _Calls, num_rows: int) -> bool:
    """Whether rows are the first dimension of every call's input, (rows, tokens, features)."""
    inputs = [call.input for made in calls.values() for call in made]
    return all(x.dim() > 2 and len(x) == num_rows for x in inputs)


def _calls_of_one_row(bench: Workbench, calls: _Calls, inputs: Batch) -> _Calls:
    """The calls in a forward pass of only the first row of these inputs."""
    _forget(calls)
    with torch.no_grad(), bench.autocast():
        bench.model(**{name: column[:1] for name, column in inputs.items()})
    return calls


def _forget(calls: _Calls) -> None:
    for made in calls.values():
        made.clear()


@contextmanager
def _inputs_kept(model: nn.Module) -> Iterator[Batch]:
    """Record the keyword arguments of the model's last forward pass."""
    kept: Batch = {}

    def keep(_module: nn.Module, _args: tuple[Any, ...], named: Batch) -> None:
        kept.update(named)

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def _recorded(modules: Mapping[str, LoraLinear]) -> Iterator[_Calls]:
    """Record input and output of every call of every adapted module, in the order of the calls.

    Outputs are part of the autograd graph although no parameter requires a gradient.
    """
    calls: _Calls = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., Tensor]:
        def keep(_module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # a leaf of zeros makes the output differentiable without any trainable weight
            output = output + torch.zeros_like(output, requires_grad=True)
            calls[name].append(_Call(args[0], output))
            return output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
