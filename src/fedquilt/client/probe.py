"""Fisher information of a client's or a server's rows in the low-rank adapters, by one batched backward.

The gradient of one row needs no backward of its own. For ``y = W x + s B (A x)`` let ``x`` be ``(tokens, d_in)``,
``g`` the gradient of the row's objective in ``y``, ``(tokens, d_out)``, ``h = x A^T`` and ``u = g B``. Then
``dB = s g^T h`` and ``dA = s u^T x``. As the objective of a batch is the sum over rows, ``g`` of the batch holds every
row's own ``g``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedquilt.adapters.inject import adapters
from fedquilt.adapters.lora import LoraLinear
from fedquilt.client.task import label_logit, negative_log_likelihood
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.types import Layout, Params

OBJECTIVES = {
    "log-prob": lambda logits, labels: -negative_log_likelihood(logits, labels),
    # the released code's: no Fisher information, for it changes when the same vector is added to every class row
    "logit": label_logit,
}


def fisher_diagonal(
    bench: Workbench, columns: Batch, params: Mapping[str, Tensor], *, objective: str = "log-prob", batch_size: int = 32
) -> Params:
    """Diagonal of the empirical Fisher information of every low-rank factor, averaged over all rows.

    ``F_theta = (1/N) sum_n (d log p(y_n | x_n) / d theta)^2``, a tensor of theta's shape for every adapter tensor of
    the layout. Every row is used once; the result does not depend on ``batch_size`` but for rounding.

    Paper: fed-hello, fisher
    """
    bench.load(params)
    modules = adapters(bench.model)
    totals: dict[str, Tensor] = {}
    num_rows = len(columns["labels"])
    with _recorded(modules) as records:
        for first in range(0, num_rows, batch_size):
            batch = {name: column[first : first + batch_size] for name, column in columns.items()}
            logits, labels = bench.forward(batch)
            outputs = [record.output for record in records.values()]
            grads = torch.autograd.grad(OBJECTIVES[objective](logits, labels).sum(), outputs)
            for (name, module), grad in zip(modules.items(), grads, strict=True):
                squares_a, squares_b = _squared_row_gradients(module, records[name].input, grad)
                for key, squares in ((f"{name}.lora_A", squares_a), (f"{name}.lora_B", squares_b)):
                    totals[key] = totals[key] + squares if key in totals else squares
    return {name: total.cpu() / num_rows for name, total in totals.items()}


def layer_scores(fisher: Mapping[str, Tensor], layout: Layout, kind: str = "trace") -> list[float]:
    """One score per transformer block from the Fisher diagonal of its adapters.

    ``trace``: sum of all entries. ``mean``: that over the number of entries. ``norm`` (the released code's): sum over
    the block's tensors of the Frobenius norm of the diagonal. ``squared-norm``: the same with squared norms.
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


def _squared_row_gradients(module: LoraLinear, inputs: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """``sum over rows of dA^2`` (r, d_in) and of ``dB^2`` (d_out, r)."""
    x = inputs.detach().float().flatten(1, -2) if inputs.dim() > 2 else inputs.detach().float().unsqueeze(1)
    g = grad.float().flatten(1, -2) if grad.dim() > 2 else grad.float().unsqueeze(1)  # (rows, tokens, d_out)
    factor_a, factor_b = module.lora_A.detach().float(), module.lora_B.detach().float()
    hidden = x @ factor_a.T  # (rows, tokens, r)
    back = g @ factor_b  # (rows, tokens, r)
    grad_b = module.scaling * torch.einsum("nto,ntr->nor", g, hidden)
    grad_a = module.scaling * torch.einsum("ntr,nti->nri", back, x)
    return grad_a.square().sum(0), grad_b.square().sum(0)


class _Record:
    input: Tensor
    output: Tensor


@contextmanager
def _recorded(modules: Mapping[str, LoraLinear]) -> Iterator[dict[str, _Record]]:
    """Keep every adapted module's input and output; outputs join the graph although no parameter needs a gradient."""
    records = {name: _Record() for name in modules}

    def hook(name: str) -> Callable[..., Tensor]:
        def keep(_module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            records[name].input = args[0]
            # a leaf of zeros makes the output differentiable without a single trainable weight
            records[name].output = output + torch.zeros_like(output, requires_grad=True)
            return records[name].output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
