"""A model's features on public inputs, and its axes: what clients of different architectures compare.

No function of this module reads a client's own rows. Features are those of the frozen base: cores and private factors
do not act while they are observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fedquilt.adapters.common.inject import CommonAdapters, point_of
from fedquilt.adapters.common.settings import Axes as AxesSettings
from fedquilt.aggregate.axes import POINT, SEEN, basis, coordinates, solve
from fedquilt.core.errors import TrainingError
from fedquilt.core.federation import Public
from fedquilt.core.types import Params

Batch = dict[str, Tensor]

ENDS = "word_ends"
"""The column of public inputs that says at which tokens words end, int64 (inputs, words); see ``rows = "words"``."""

_BATCH = 64
"""Inputs in one forward pass."""


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
    """

    model: nn.Module
    adapters: CommonAdapters
    settings: AxesSettings
    device: torch.device
    prepare: Callable[[Batch], Batch]
    rows: Batch | None
    _placed: Params = field(default_factory=dict)
    _seen: Params = field(default_factory=dict)

    def shapes(self, rank: int, example: Batch) -> Public:
        """The shapes of ``bases()`` and of ``seen()`` for axes of this rank; ``example`` are arguments of the model."""
        own = self.settings
        bases, seen = {}, {}
        if own.rows == "words":
            count = len(next(iter(example.values())))
            example = {**example, ENDS: torch.zeros(count, own.words, dtype=torch.int64, device=self.device)}
        for module, (inputs, _) in self._features(self._observed, [example]).items():
            (each, width), point = inputs.shape[1:], self._observed[module]
            count = own.inputs * each
            bases[f"basis.{point}"] = torch.empty(count, min(own.basis, count, width), device="meta")
            seen[f"{SEEN}.{point}"] = torch.empty(own.held_out * each, rank, device="meta")
        return Public(bases, seen)

    def bases(self) -> Params:
        """For each place the basis of the model's whitened features, (observations, R), by ``basis.<place>``."""
        own, found = self.settings, self._features(self._observed, self._batches())
        return {
            f"basis.{self._observed[module]}": basis(self._fitted(inputs), own.basis, ridge=own.ridge).float().cpu()
            for module, (inputs, _) in found.items()
        }

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
        self._seen = {}
        for module, (inputs, outputs) in self._features(self._modules, self._batches()).items():
            point = self._modules[module]
            z, ridge = self._checked(points, point, len(self._fitted(inputs))).to(inputs.device), self.settings.ridge
            entry = solve(self._fitted(inputs), z, ridge=ridge)
            if module in self.adapters.linears:
                decoder = solve(self._fitted(outputs), z, ridge=ridge).decoder
                self.adapters.linears[module].place(entry.encoder, decoder)
            elif self.adapters.head is not None:
                self.adapters.head[1].place(entry.encoder, entry.centre)
            if module in self._observed:
                self._seen[f"{SEEN}.{point}"] = coordinates(entry, self._held_out(inputs)).float().cpu()
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
    def _observed(self) -> dict[str, str]:
        """The places of the modules whose features stand for them, by module path."""
        return {own.module: own.point for own in self.adapters.observed()}

    @property
    def _modules(self) -> dict[str, str]:
        """The places of all adapted modules, by module path."""
        linears = {name: point_of(own.core_name) for name, own in self.adapters.linears.items()}
        return linears | ({} if self.adapters.head is None else {self.adapters.head[0]: "head"})

    def _checked(self, points: Mapping[str, Tensor], point: str, count: int) -> Tensor:
        """The points of a place, (count, r)."""
        linear = next(iter(self.adapters.linears.values()))
        found, wanted = points.get(f"{POINT}.{point}"), (count, linear.settings.rank)
        if found is None or found.shape != wanted:
            given = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise TrainingError(f"the common coordinates of '{point}' are {given}; this model needs {wanted}")
        return found

    def _fitted(self, features: Tensor) -> Tensor:
        """The observations that axes are made from."""
        return features[: self.settings.inputs].flatten(0, -2)

    def _held_out(self, features: Tensor) -> Tensor:
        return features[self.settings.inputs :].flatten(0, -2)

    def _batches(self) -> Iterator[Batch]:
        """The model's keyword arguments for all public inputs, with ``ENDS`` where there is such a column."""
        if self.rows is None:
            raise ValueError("the public inputs are not here")
        for start in range(0, self.settings.inputs + self.settings.held_out, _BATCH):
            batch = {name: rows[start : start + _BATCH].to(self.device) for name, rows in self.rows.items()}
            ends = {ENDS: batch.pop(ENDS)} if ENDS in batch else {}
            yield self.prepare(batch) | ends

    def _features(self, modules: Iterable[str], batches: Iterable[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        """The features before and after each of these modules, (inputs, observations, d), with the adapters out."""
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in modules}
        at, points = [dict[str, Tensor]()], self._modules

        def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = "inputs" if points[name] == "head" else self.settings.rows
            for kept, features in zip(found[name], (inputs[0], output), strict=True):
                kept.append(_observations(features.detach(), rows, at[0]))

        with torch.no_grad(), self.adapters.taken_out(self.model):
            hooks = [self.model.get_submodule(name).register_forward_hook(partial(note, name)) for name in found]
            try:
                for batch in batches:
                    at[0] = batch
                    self.model(**{name: tensor for name, tensor in batch.items() if name != ENDS})
            finally:
                for hook in hooks:
                    hook.remove()
        return {name: (torch.cat(before), torch.cat(after)) for name, (before, after) in found.items()}


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
