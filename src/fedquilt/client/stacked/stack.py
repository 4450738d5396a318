"""The tensors of several clients in one workbench, as stacks: tensor by tensor, (K, ...), padded to one rank."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedquilt.adapters.stacks import linear
from fedquilt.client.job import Job
from fedquilt.client.workbench import Workbench
from fedquilt.core.factors import CORE
from fedquilt.core.types import Params

Shapes = dict[str, torch.Size]


class Stack:
    """The clients that are in a workbench now, in the order of their rows in a batch.

    Factors of lower ranks are padded with zeros: the padding of each factor has a gradient only through that of the
    other one, so that it stays zero.

    Parameters
    ----------
    bench
        The workbench; ``stacked`` puts the tensors in and takes them out.
    jobs
        What the clients train; they may differ only as ``kinds.kind_of`` says.

    Attributes
    ----------
    jobs
        The jobs that are not finished.
    tensors
        The stack of each tensor by name: those of the model, and those beside it.
    beside
        The stacks of tensors besides the model's own, which are among ``tensors``.
    followers
        Copies of some stacks, by name, which lose the same clients.
    """

    def __init__(self, bench: Workbench, jobs: Sequence[Job]) -> None:
        self.bench, self.jobs = bench, list(jobs)
        more = [{} if job.extra is None else job.extra.tensors for job in jobs]
        own = _loaded(bench, [job.params for job in jobs])
        self._shapes: list[Shapes] = [
            {name: tensor.shape for name, tensor in (tensors | extra).items()}
            for tensors, extra in zip(own, more, strict=True)
        ]
        for name, parameter in bench.parameters.items():
            parameter.data = padded([tensors[name] for tensors in own])
        self.beside = {
            name: padded([extra[name].to(bench.device) for extra in more]) for name in (more[0] if more else {})
        }
        self.tensors: dict[str, Tensor] = {**bench.parameters, **self.beside}
        self.followers: list[dict[str, Tensor]] = []
        self._scale()

    def own(self, place: int) -> Params:
        """Copies of one client's tensors, on the CPU, at its own ranks."""
        shapes = self._shapes[place]
        return {
            name: cut(tensor.detach()[place], shapes[name]).to("cpu", copy=True)
            for name, tensor in self.tensors.items()
        }

    def views(self, names: Collection[str]) -> list[dict[str, Tensor]]:
        """Each client's tensors of these names at its own ranks; gradients flow through them to the stacks."""
        taken = {name: tensor.unbind() for name, tensor in self.tensors.items() if name in names}
        return [
            {name: cut(parts[place], shapes[name]) for name, parts in taken.items()}
            for place, shapes in enumerate(self._shapes)
        ]

    def keep(self, places: Sequence[int], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Let go of all clients but those at these places, together with what optimisers know of them."""
        before, rows = len(self.jobs), torch.tensor(list(places), device=self.bench.device)
        self.jobs, self._shapes = [self.jobs[p] for p in places], [self._shapes[p] for p in places]
        for tensor in self.tensors.values():
            tensor.grad = None
            tensor.data = tensor.data[rows]
        for copies in self.followers:
            copies.update({name: copy[rows] for name, copy in copies.items()})
        for state in (state for optimizer in optimizers for state in optimizer.state.values()):
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == before:  # not a number of steps
                    state[key] = value[rows]
        for adapter in self.bench.adapters.values():
            if adapter.core is not None:
                adapter.core = adapter.core[rows]
        self._scale()

    def _scale(self) -> None:
        """Give the adapters the scalings of their ranks, where these differ."""
        for name, adapter in self.bench.adapters.items():
            ranks = [shapes[f"{name}.lora_A"][0] for shapes in self._shapes]
            scales = [adapter.scaling_at(rank) for rank in ranks]
            alike = set(ranks) == {adapter.lora_A.shape[-2]}
            adapter.scales = None if alike else torch.tensor(scales, device=self.bench.device)


@contextmanager
def stacked(bench: Workbench, jobs: Sequence[Job]) -> Iterator[Stack]:
    """The clients' tensors in the workbench; when the context ends, it holds tensors of one client again."""
    with ExitStack() as undo:
        before = {name: parameter.data for name, parameter in bench.parameters.items()}
        undo.callback(_restore, bench, before)
        cores = _cores(bench, jobs)
        stack = Stack(bench, jobs)
        for name, adapter in bench.adapters.items():
            adapter.core = cores.get(name)
        for name in bench.parameters:
            module = bench.model.get_submodule(name.rpartition(".")[0])
            if type(module) is nn.Linear and "forward" not in vars(module):
                undo.callback(delattr, module, "forward")
                module.forward = partial(_linear_of, module)  # type: ignore[method-assign]
        yield stack


def padded(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors as one, (K, ...), with zeros up to the largest size of each axis."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tuple(tensors))
    made = tensors[0].new_zeros(len(tensors), *(max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)))
    for place, tensor in enumerate(tensors):
        cut(made[place], tensor.shape).copy_(tensor)
    return made


def cut(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries of each axis, as many as ``shape`` says."""
    return tensor if tensor.shape == shape else tensor[tuple(slice(size) for size in shape)]


def _loaded(bench: Workbench, clients: Sequence[Params]) -> list[Params]:
    """The tensors of the model as ``load`` leaves them, of each client; those with the very same tensors share them."""
    made: dict[tuple[tuple[str, int], ...], Params] = {}
    found = []
    for params in clients:
        same = tuple((name, id(tensor)) for name, tensor in params.items())
        if same not in made:
            bench.load(params)
            made[same] = {name: parameter.detach().clone() for name, parameter in bench.parameters.items()}
        found.append(made[same])
    return found


def _cores(bench: Workbench, jobs: Sequence[Job]) -> dict[str, Tensor]:
    """The stacks of the cores that the clients' tensors hold, by module; 0 for those without, which changes nothing."""
    given = [{name: job.params.get(f"{name}.{CORE}") for name in bench.adapters} for job in jobs]
    found = {}
    for name in bench.adapters:
        if any(own[name] is not None for own in given):
            ranks = [len(job.params[f"{name}.lora_A"]) for job in jobs]
            cores = [
                torch.zeros(rank, rank) if (core := own[name]) is None else core.detach()
                for own, rank in zip(given, ranks, strict=True)
            ]
            found[name] = padded([core.to(bench.device) for core in cores])
    return found


def _linear_of(module: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias)


def _restore(bench: Workbench, before: Mapping[str, Tensor]) -> None:
    for name, parameter in bench.parameters.items():
        parameter.grad = None
        parameter.data = before[name]
    for adapter in bench.adapters.values():
        adapter.core = adapter.scales = None
