"""A model's features on public inputs, and its axes: what clients of different architectures compare.

No function of this module reads a client's own rows. Features are those of the frozen base: cores and private factors
do not act while they are observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedquilt.adapters.common.inject import CommonAdapters, point_of
from fedquilt.adapters.common.settings import Axes as AxesSettings
from fedquilt.adapters.lora.module import num_features
from fedquilt.aggregate.axes import SEEN, coordinates
from fedquilt.client.coordinates import Anchored, Consensus, Way
from fedquilt.core.federation import Public
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params

Batch = dict[str, Tensor]

ENDS = "word_ends"
"""The column of public inputs that says at which tokens words end, int64 (inputs, words); see ``rows = "words"``."""

_KEPT = 2**31
"""Bytes of features that are kept at a time; those of one module are kept even if they are more."""

_BATCH = 64
"""Inputs in one forward pass."""


class Features(NamedTuple):
    """What goes into a module and what comes out of it, each (inputs, observations, d)."""

    inputs: Tensor
    outputs: Tensor


@dataclass
class PublicInputs:
    """The public inputs as one model reads them, with what it makes of them.

    Attributes
    ----------
    model, adapters
        The model with adapters in common coordinates, and these adapters.
    settings
        The numbers of inputs, the size of the bases, and the ridge.
    device
        Where the model runs.
    prepare
        Converts rows to the model's keyword arguments.
    rows
        The public inputs in the model's columns: those that axes are made from, then those held out; with
        ``settings.rows = "words"`` also the column ``ENDS``. None on the meta device, where only shapes are known.
    rng
        The stream that the factors of an anchor are drawn from, the same for all parties.
    """

    model: nn.Module
    adapters: CommonAdapters
    settings: AxesSettings
    device: torch.device
    prepare: Callable[[Batch], Batch]
    rows: Batch | None
    rng: Rng
    _placed: Params = field(default_factory=dict)
    _seen: Params = field(default_factory=dict)

    def shapes(self, rank: int, example: Batch) -> Public:
        """The shapes of ``bases()`` and of ``seen()`` for axes of this rank; ``example`` are arguments of the model."""
        own, way = self.settings, self._way(rank)
        bases: Params = {}
        seen: Params = {}
        observations = self._observations_of_an_input(example)
        for module, point in self._observed.items():
            each, linear = observations.get(module, 1), self.adapters.linears.get(module)
            adapted = linear or self.adapters.head[1]  # type: ignore[index]  # what is observed is one or the other
            width, outputs = num_features(adapted.base)
            shapes = way.shapes(point, own.inputs * each, width, None if linear is None else outputs)
            bases |= {f"basis.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
            seen[f"{SEEN}.{point}"] = torch.empty(own.held_out * each, rank, device="meta")
        return Public(bases, seen, self.adapters.anchored)

    def _observations_of_an_input(self, example: Batch) -> dict[str, int]:
        """The number of observations of an input at each module, by a pass over shapes where it is not 1 everywhere."""
        if self.settings.rows == "inputs":
            return {}
        number = len(next(iter(example.values())))
        if self.settings.rows == "words":
            ends = torch.zeros(number, self.settings.words, dtype=torch.int64, device=self.device)
            example = {**example, ENDS: ends}
        found = self._features(self._observed, lambda: [example], number)
        return {module: features.inputs.shape[1] for module, features in found}

    def bases(self) -> Params:
        """What the model says of each place, by ``basis.<place>`` and names that begin so; see ``coordinates``."""
        way, bases = self._way(), dict[str, Tensor]()
        for module, features in self._features(self._observed, self._batches, self._number):
            said = way.sent(self._observed[module], *self._fitted(module, features))
            bases |= {f"basis.{name}": tensor.float().cpu() for name, tensor in said.items()}
        return bases

    def place(self, points: Mapping[str, Tensor]) -> None:
        """Set the axes of all modules by the points of their places; nothing is done if they are those set last.

        Raises
        ------
        TrainingError
            if a place lacks its points, or these are of another shape; they may come from a server.
        """
        if self._placed.keys() == points.keys() and all(torch.equal(self._placed[n], t) for n, t in points.items()):
            return
        if not points:
            self.clear()
            return
        self._seen, way = {}, self._way()
        for module, features in self._features(self._modules, self._batches, self._number):
            point = self._modules[module]
            found = way.axes(point, points, *self._fitted(module, features))
            if module in self.adapters.linears:
                self.adapters.linears[module].place(found.encoder, found.decoder)
            elif self.adapters.head is not None:
                self.adapters.head[1].place(found.encoder, found.centre)
            if module in self._observed:
                self._seen[f"{SEEN}.{point}"] = coordinates(found, self._held_out(features.inputs)).float().cpu()
        self._placed = {name: tensor.clone() for name, tensor in points.items()}

    def clear(self) -> None:
        """Set all axes to 0, so that the adapters do nothing."""
        self._placed, self._seen = {}, {}
        for linear in self.adapters.linears.values():
            for buffer in linear.buffers(recurse=False):
                buffer.zero_()
        if self.adapters.head is not None:
            for buffer in self.adapters.head[1].buffers(recurse=False):
                buffer.zero_()

    def seen(self) -> Params:
        """The common coordinates of the held-out inputs by ``seen.<place>``, after ``place``."""
        return dict(self._seen)

    @property
    def _number(self) -> int:
        return self.settings.inputs + self.settings.held_out

    @property
    def _observed(self) -> dict[str, str]:
        """The places of the modules whose features stand for them, by module path."""
        return {own.module: own.point for own in self.adapters.observed()}

    @property
    def _modules(self) -> dict[str, str]:
        """The places of all adapted modules, by module path."""
        linears = {name: point_of(own.core_name) for name, own in self.adapters.linears.items()}
        return linears | ({} if self.adapters.head is None else {self.adapters.head[0]: "head"})

    def _way(self, rank: int | None = None) -> Way:
        """How axes of this rank, or of the adapters', are found."""
        rank = next(iter(self.adapters.linears.values())).settings.rank if rank is None else rank
        return Anchored(self.settings, rank, self.rng) if self.adapters.anchored else Consensus(self.settings, rank)

    def _fitted(self, module: str, features: Features) -> tuple[Tensor, Tensor | None]:
        """The observations that axes are made from, before the module and, but for a head, after it."""
        before, after = (one[: self.settings.inputs].flatten(0, -2) for one in features)
        return before, after if module in self.adapters.linears else None

    def _held_out(self, features: Tensor) -> Tensor:
        return features[self.settings.inputs :].flatten(0, -2)

    def _batches(self) -> Iterator[Batch]:
        """The model's keyword arguments for all public inputs, with ``ENDS`` where there is such a column."""
        if self.rows is None:
            raise ValueError("the public inputs are not here")
        for start in range(0, self._number, _BATCH):
            batch = {name: rows[start : start + _BATCH].to(self.device) for name, rows in self.rows.items()}
            ends = {ENDS: batch.pop(ENDS)} if ENDS in batch else {}
            yield self.prepare(batch) | ends

    def _features(
        self, modules: Iterable[str], batches: Callable[[], Iterable[Batch]], number: int
    ) -> Iterator[tuple[str, Features]]:
        """The features of each of these modules on ``number`` inputs, with the adapters out.

        What does not fit into ``_KEPT`` bytes at once is left to a further pass over the batches.
        """
        waiting = list(modules)
        while waiting:
            found = self._pass(waiting, batches(), number)
            waiting = [name for name in waiting if name not in found]
            yield from ((name, found.pop(name)) for name in list(found))

    def _pass(self, modules: Iterable[str], batches: Iterable[Batch], number: int) -> dict[str, Features]:
        """The features of the first modules of which all fits into memory; of at least one."""
        found: dict[str, Features] = {}
        at, start, points = dict[str, Tensor](), 0, self._modules

        def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = "inputs" if points[name] == "head" else self.settings.rows
            own = [_observations(features.detach(), rows, at) for features in (inputs[0], output)]
            if start == 0 and (not found or _num_bytes(own, number) + _num_bytes(kept(), number) <= _KEPT):
                found[name] = Features(*(features.new_empty((number, *features.shape[1:])) for features in own))
            for whole, features in zip(found.get(name, ()), own, strict=False):
                whole[start : start + len(features)] = features

        def kept() -> list[Tensor]:
            return [features for both in found.values() for features in both]

        with torch.no_grad(), self.adapters.taken_out(self.model):
            hooks = [self.model.get_submodule(name).register_forward_hook(partial(note, name)) for name in modules]
            try:
                for batch in batches:
                    at = batch
                    self.model(**{name: tensor for name, tensor in batch.items() if name != ENDS})
                    start += len(next(iter(batch.values())))
            finally:
                for hook in hooks:
                    hook.remove()
        return found


def _num_bytes(features: Iterable[Tensor], number: int) -> int:
    """Bytes of such features, (inputs, observations, d), of another number of inputs."""
    return sum(number * own[0].numel() * own.element_size() for own in features)


def _observations(features: Tensor, rows: str, batch: Batch) -> Tensor:
    """Features (inputs, tokens, d) or (inputs, d) as (inputs, observations, d)."""
    if features.dim() == 2:
        return features.unsqueeze(1)
    if rows == "tokens":
        return features
    if rows == "words":
        ends = batch[ENDS].unsqueeze(-1).expand(-1, -1, features.shape[-1])  # (inputs, words, d)
        return features.gather(1, ends)
    mask = batch.get("attention_mask")
    known = mask is not None and mask.dim() == 2
    weights = (mask if known else torch.ones(features.shape[:2])).to(features).unsqueeze(-1)  # type: ignore[union-attr]
    return (features * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
