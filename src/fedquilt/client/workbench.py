"""The frozen model that all clients of an architecture share in one process.

Clients load their adapters (megabytes) into it; the base is never copied. Outside ``training`` no tensor requires a
gradient, and inside only the named tensors do, so that the backward pass stops at the shallowest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedquilt.adapters.buffers import State, numbers
from fedquilt.adapters.common.ends import end_names, opened, put_ends
from fedquilt.adapters.lora.core import with_cores
from fedquilt.adapters.lora.inject import adapters
from fedquilt.aggregate.axes import is_point
from fedquilt.client.model_config import without_cache
from fedquilt.client.public import PublicInputs
from fedquilt.client.recompute import recomputed
from fedquilt.client.shallow import only_blocks
from fedquilt.client.task import Scoring
from fedquilt.core.autocast import autocast_device
from fedquilt.core.factors import CORE, SHIFT, factors, is_factor, same_but_rank
from fedquilt.core.params import without
from fedquilt.core.profiling import span
from fedquilt.core.types import Blocks, Layout, Params

Batch = dict[str, Tensor]


class Workbench:
    """A model with adapters, ready to train or evaluate any client of its architecture.

    Parameters
    ----------
    model, blocks, layout
        The model with adapters, its transformer blocks, and its trainable tensors.
    parameters
        The model's own parameters by their names in ``layout``.
    prepare
        Converts rows of a client's columns to the model's keyword arguments.
    scoring
        The loss and the accuracy of its task.
    device, precision
        Where the model runs, in ``"fp32"`` or ``"bf16"`` (autocast).
    state
        The buffers of modules with running statistics, those of the layout among them. Such a module is in training
        mode only while its buffers are trained, so that they do not change in a frozen model.
    longest
        The maximum number of tokens of a language model's row; None for that of its config.
    pads_left
        Whether padding on the left does not change the model's output.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks,
        layout: Layout,
        parameters: Mapping[str, nn.Parameter],
        prepare: Callable[[Batch], Batch],
        *,
        scoring: Scoring,
        device: torch.device,
        precision: str = "fp32",
        state: State = MappingProxyType({}),
        longest: int | None = None,
        pads_left: bool = False,
    ) -> None:
        if parameters.keys() | layout.buffers != layout.depth.keys() or layout.buffers - state.keys():
            raise ValueError("the workbench's parameters and its layout name different tensors")
        self.model = model.to(device)
        self.adapters = adapters(model)
        # parameters that are not LoRA factors: the head, DoRA's magnitudes, and adapters of other kinds
        self._whole = [name for name in parameters if not is_factor(name)]
        self.blocks = blocks
        self.layout = layout
        self.parameters = dict(parameters)
        self._state = dict(state)
        self._buffers = {name: state[name] for name in layout.depth if name in layout.buffers}
        self._running: list[nn.Module] = []  # modules with running statistics, while these are trained
        self.prepare = prepare
        self.scoring = scoring
        self.device = device
        self.precision = precision
        self.longest = longest
        self.pads_left = pads_left
        self._cores: Callable[[], Mapping[str, Tensor]] | None = None
        # what holds during the last forward pass besides autocast
        self.during: Callable[[], AbstractContextManager[object]] = nullcontext
        # called after each optimiser step with its number and the number of all steps
        self.stepped: Callable[[int, int], None] | None = None
        # the most that training keeps of what the blocks below the trained ones make of a client's rows; 0 for nothing
        self.prefix_bytes = 0
        # what the model makes of public inputs, for adapters in common coordinates
        self.public: PublicInputs | None = None

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Load ``params`` into the model; they must hold every tensor of the layout with its shape.

        The factors of a module may have another rank than the layout's. A change that was merged into the base is
        ``<module>.shift``, (d_out, d_in), and the matrix between the factors ``<module>.core``, (r, r). A module
        without them has an unchanged base and is plain LoRA. ``point.<place>`` are the common coordinates of public
        inputs, from which the model's axes follow, and ``<module>.encoder`` and ``<module>.decoder`` ends in place of
        them. No tensor of the previous client remains.

        Raises
        ------
        ValueError
            if a tensor is missing, unknown or has another shape (names the first).
        """
        if self.public is not None:
            points = {name: tensor for name, tensor in params.items() if is_point(name)}
            self.public.place(points)
            params = without(params, points.keys() | put_ends(self.public.adapters.linears, params))
        shapes = self.layout.shapes
        for name in self.layout.depth:
            if name not in params:
                raise ValueError(f"tensor '{name}' is missing")
            if not same_but_rank(name, params[name].shape, shapes[name]):
                raise ValueError(f"tensor '{name}' is {tuple(params[name].shape)}, not {shapes[name]}")
        modules = factors(params)
        beside = {f"{module}.{part}" for module in self.adapters for part in (SHIFT, CORE)}
        if unknown := params.keys() - self.layout.depth.keys() - beside:
            raise ValueError(f"tensor '{min(unknown)}' is not a tensor of {self.layout.architecture}")
        for module in self.adapters:
            pair, shift, core = modules[module], params.get(f"{module}.{SHIFT}"), params.get(f"{module}.{CORE}")
            if pair.B.shape[1] != pair.A.shape[0]:
                raise ValueError(f"'{module}' has a B of rank {pair.B.shape[1]} and an A of rank {pair.A.shape[0]}")
            if shift is not None and shift.shape != (len(pair.B), pair.A.shape[1]):
                raise ValueError(f"'{module}.{SHIFT}' is {tuple(shift.shape)}, not {(len(pair.B), pair.A.shape[1])}")
            if core is not None and core.shape != (len(pair.A), len(pair.A)):
                raise ValueError(f"'{module}.{CORE}' is {tuple(core.shape)}, not {(len(pair.A), len(pair.A))}")
        for module, adapter in self.adapters.items():
            adapter.set_factor("lora_A", modules[module].A)
            adapter.set_factor("lora_B", modules[module].B)
            shift, core = params.get(f"{module}.{SHIFT}"), params.get(f"{module}.{CORE}")
            adapter.shift = None if shift is None else shift.detach().to(self.device)
            adapter.core = None if core is None else core.detach().to(self.device)
        with torch.no_grad():
            for name in self._whole:
                self.parameters[name].copy_(params[name])
        for name, buffer in self._buffers.items():
            buffer.put(params[name])

    def ends(self, layers: Collection[int]) -> frozenset[str]:
        """The names of the ends of adapters in common coordinates in these blocks."""
        return frozenset() if self.public is None else end_names(self.public.adapters.linears, self.blocks, layers)

    def opened(self, names: Collection[str]) -> Params:
        """Those ends among the named tensors, to be trained, as ``load`` or the axes have made them."""
        return {} if self.public is None else opened(self.public.adapters.linears, names)

    def state(self, names: Collection[str]) -> Params:
        """The current values, on the CPU, of those of the named tensors that are buffers."""
        chosen = set(names)
        return numbers({name: buffer for name, buffer in self._buffers.items() if name in chosen})

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels of one batch of rows, on the workbench's device."""
        moved = {name: column.to(self.device, non_blocking=True) for name, column in batch.items()}
        inputs = self.prepare(moved)
        labels = moved["labels"]
        if labels.dim() > 1:
            labels = labels[:, : inputs["input_ids"].shape[1]]  # prepare removes padding that the batch does not need
        cores = {} if self._cores is None else self._cores()
        self.during = partial(self._conditions, cores, len(labels) == 1)
        with span("forward"), self.autocast(), self.during():
            logits = self._answer(inputs)
        return logits, labels

    def _answer(self, inputs: Batch) -> Tensor:
        def once() -> Tensor:
            logits: Tensor = self.model(**inputs).logits
            return logits

        return once() if self.public is None else self.public.adapters.answer(once)

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context of mixed precision, or a null context."""
        kind = autocast_device(self.device)
        return torch.autocast(kind, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    @contextmanager
    def making_cores(self, cores: Callable[[], Mapping[str, Tensor]]) -> Iterator[None]:
        """Compute the cores by ``cores()``, by module path, in every forward pass inside; gradients flow through it."""
        self._cores = cores
        try:
            yield
        finally:
            self._cores = None

    @contextmanager
    def training(
        self,
        names: Collection[str],
        beside: Mapping[str, Tensor] = MappingProxyType({}),
        *,
        recompute: bool = False,
    ) -> Iterator[list[Tensor]]:
        """Train mode with gradients only for the named tensors, which are given in the layout's order.

        ``beside`` are tensors besides the model's own that may be named too. Named buffers are updated by every forward
        pass; they have no gradient and are not among the given tensors. A module with running statistics stays in eval
        mode unless all of its buffers are named. With ``recompute`` the backward pass, which must end inside as well,
        computes the activations of every block again, see ``recompute.recomputed``.
        """
        chosen = set(names)
        blocks = self.model.get_submodule(self.blocks.path).children() if recompute else ()
        trained = [tensor for name, tensor in {**self.parameters, **beside}.items() if name in chosen]
        try:
            for tensor in trained:
                tensor.requires_grad_(True)
            held = {id(buffer.module) for name, buffer in self._state.items() if name not in chosen}
            owners = {id(buffer.module): buffer.module for buffer in self._state.values()}
            self._running = [module for key, module in owners.items() if key not in held]
            self._train()
            with without_cache(self.model), recomputed(blocks, self._again):
                yield trained
        finally:
            self._running = []
            self.model.eval()
            for tensor in trained:
                tensor.requires_grad_(False)
                tensor.grad = None

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Eval mode without gradients, for use inside ``training``."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._train()

    def _train(self) -> None:
        """Set train mode, except for modules with running statistics that are not trained.

        With adapters in common coordinates dropout stays off: it would shift features away from the centre of their
        axes, whose encoders enlarge what hardly varies. A private part alone has none.
        """
        self.model.train(self.public is None or self.public.adapters.present == ("private",))
        running = {id(module) for module in self._running}
        for buffer in self._state.values():
            buffer.module.training = id(buffer.module) in running

    @contextmanager
    def _conditions(self, cores: Mapping[str, Tensor], single: bool) -> Iterator[None]:
        """What holds during a forward pass: these cores, and a single row's treatment of running statistics."""
        with with_cores(self.adapters, cores), self._alone(single):
            yield

    def _again(self, block: nn.Module) -> AbstractContextManager[object]:
        """The conditions of the current forward pass, for running this block again once it has run.

        Running statistics are as they were before the first run, and the second one does not update them.
        """
        modules = [module for module in self._running if module in set(block.modules())]
        before = [{k: b if b is None else b.clone() for k, b in module._buffers.items()} for module in modules]

        @contextmanager
        def again(during: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
            now = [dict(module._buffers) for module in modules]
            try:
                for module, buffers in zip(modules, before, strict=True):
                    module._buffers.update(buffers)
                with during():
                    yield
            finally:
                for module, buffers in zip(modules, now, strict=True):
                    module._buffers.update(buffers)

        return again(self.during)

    @contextmanager
    def _alone(self, single: bool) -> Iterator[None]:
        """For a batch of a single row, which has no batch statistics, modules use their running statistics."""
        for module in self._running if single else ():
            module.training = False
        try:
            yield
        finally:
            for module in self._running if single else ():
                module.training = True

    def shallow(self, layers: Collection[int] | None) -> AbstractContextManager[object]:
        """The model with only the given blocks, in increasing order; with None it is unchanged."""
        return nullcontext() if layers is None else only_blocks(self.model, self.blocks, sorted(layers))
