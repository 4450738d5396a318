"""A model object in place of a name: any ``nn.Module``, or a model of transformers."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.adapters.folders import write_folder
from fedquilt.core.errors import ModelError
from fedquilt.core.types import IN_MEMORY, Blocks
from fedquilt.models.layers import find_blocks
from fedquilt.models.weights_digest import digest

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A model of your own, with what cannot be derived from its structure.

    A classifier may be any module with one ``nn.ModuleList`` of equal blocks. Images (float32, rows x channels x height
    x width) are passed as ``pixel_values`` or the first parameter of ``forward``, rows of a table (float32, rows x
    features) as ``features`` or the first parameter, and text as ``input_ids`` and ``attention_mask`` or the first two.
    It returns logits or an object with ``.logits``. The module is copied and stays unchanged. A language model must be
    a model of transformers.

    Parameters
    ----------
    module
        The model with its weights; a classifier has one output for each class of the data, in their order.
    tokenizer
        A fast tokenizer of transformers, for models of text.
    blocks
        The path of the list of blocks, such as ``"encoder.layers"``; not needed if there is only one list.
    head
        The path of the classification head; by default the last linear layer outside the blocks.
    image_size
        Height and width of the images that it takes; by default those of the data.
    channels
        Channels of the images; by default those of the first convolution, or 3.
    mean, std
        The normalisation of pixels in [0, 1]: subtract ``mean``, then divide by ``std``.
    """

    module: nn.Module
    tokenizer: Any = None
    blocks: str | None = None
    head: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    _saved: list[Path] = field(default_factory=list, init=False, repr=False)

    @property
    def name(self) -> str:
        """The model's name in a config: its class with a digest of its weights and of the fields of this object."""
        fields = [self.blocks, self.head, self.image_size, self.channels, self.mean, self.std]
        parts = (digest(self.module), json.dumps(fields), _content(self.tokenizer))
        total = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{IN_MEMORY}{type(self.module).__name__}-{total[:16]}"

    @property
    def is_pretrained(self) -> bool:
        """Whether transformers can save the model and read it back."""
        return hasattr(self.module, "save_pretrained") and hasattr(getattr(self.module, "config", None), "model_type")

    def folder(self) -> Path:
        """A temporary folder with the files of the model and its tokenizer; it exists as long as this object."""
        if not self._saved:
            made = Path(mkdtemp(prefix="fedquilt-model-"))
            weakref.finalize(self, rmtree, made, ignore_errors=True)
            self.module.save_pretrained(made)  # type: ignore[operator]
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(made)
            self._saved.append(made)
        return self._saved[0]

    def copied(self, meta: bool) -> Any:
        """A copy of the module; with ``meta`` a copy on the meta device, without copying the weights."""
        memo: dict[int, Any] = {}
        if meta:
            for parameter in self.module.parameters():
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            for buffer in self.module.buffers():
                memo[id(buffer)] = torch.empty_like(buffer, device="meta")
        made = deepcopy(self.module, memo)
        return made if meta else made.float().cpu()

    def found_blocks(self, model: nn.Module) -> Blocks:
        """The blocks of ``model``, which is the module or a copy of it.

        Raises
        ------
        ModelError
            if ``blocks`` does not name a list of modules, or is None and there is not exactly one such list.
        """
        if self.blocks is None:
            return find_blocks(model)
        lists = {path: one for path, one in model.named_modules() if isinstance(one, nn.ModuleList)}
        if self.blocks not in lists:
            known = ", ".join(f"'{path}'" for path in lists) or "none"
            raise ModelError(f"blocks = '{self.blocks}': names no nn.ModuleList of the model; there are: {known}")
        return Blocks(self.blocks, len(lists[self.blocks]))

    def found_head(self, model: nn.Module, blocks: Blocks, num_classes: int | None) -> tuple[str, ...]:
        """The names of the head's parameters.

        Raises
        ------
        ModelError
            if there is none, or its number of outputs is not the number of classes.
        """
        linear = [
            path for path, one in model.named_modules() if isinstance(one, nn.Linear) and blocks.depth(path) is None
        ]
        path = self.head or (linear[-1] if linear else "")
        names = tuple(name for name, _ in model.named_parameters() if path and name.startswith(f"{path}."))
        if not names:
            lacks = f"parameters below '{path}'" if path else "linear layer outside its blocks"
            raise ModelError(
                f"{type(model).__name__} has no {lacks}, so its classification head is not known; name its module: "
                "fedquilt.OwnModel(model, head='...')"
            )
        inside = [one for one in linear if one == path or one.startswith(f"{path}.")]
        outputs = model.get_submodule(inside[-1]).out_features if inside else num_classes
        if num_classes is not None and outputs != num_classes:
            raise ModelError(
                f"{type(model).__name__}: its head '{path}' has {outputs} outputs, but the data has {num_classes} "
                "classes; build the model for these, or name its head: fedquilt.OwnModel(model, head='...')"
            )
        return names

    def num_channels(self) -> int:
        """The number of channels of its images."""
        convolutions = (one.in_channels for one in self.module.modules() if isinstance(one, nn.Conv2d))
        return self.channels or next(convolutions, 3)


def own_model(model: Any, tokenizer: Any = None) -> OwnModel:
    """The model as an ``OwnModel``; a given tokenizer replaces its own."""
    if not isinstance(model, OwnModel):
        return OwnModel(model, tokenizer)
    return (
        model
        if tokenizer is None
        else OwnModel(
            model.module, tokenizer, model.blocks, model.head, model.image_size, model.channels, model.mean, model.std
        )
    )


def dressed(model: Any, inputs: Sequence[str], **config: Any) -> Any:
    """Give the copied module the interface of a model of transformers, in place; ``undressed`` undoes it.

    ``forward`` then takes ``inputs`` by name and returns an object with ``.logits``. If the module's own ``forward``
    has parameters of these names, other inputs are dropped; otherwise the inputs go to its first parameters in order.
    """
    own = model.forward
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    taken = [one.name for one in signature(own).parameters.values() if one.kind in kinds]
    matched = {name: name for name in inputs if name in taken} or dict(zip(inputs, taken, strict=False))

    def forward(**given: Tensor) -> Any:
        made = own(**{matched[name]: value for name, value in given.items() if name in matched})
        made = made[0] if isinstance(made, tuple) else made
        return made if hasattr(made, "logits") else SimpleNamespace(logits=made)

    model.forward = forward
    added = {"main_input_name": inputs[0], "config": SimpleNamespace(model_type=type(model).__name__, **config)}
    for name, value in added.items():
        if not hasattr(model, name):
            setattr(model, name, value)
    return model


def undressed(model: nn.Module) -> nn.Module:
    """Remove what ``dressed`` added to the module."""
    for name in ("forward", "main_input_name"):
        vars(model).pop(name, None)
    if isinstance(vars(model).get("config"), SimpleNamespace):
        del model.config
    return model


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write all weights of a module as safetensors, with a file that names its class."""
    about = {"class": type(model).__name__, "format": "fedquilt.own_model"}
    write_folder(folder, (WEIGHTS, model.state_dict()), ("own_model.json", about))


def padded(tokenizer: Any, name: str) -> Any:
    """A copy of the tokenizer that pads on the right.

    Raises
    ------
    ModelError
        if there is no tokenizer, or it has no token to pad with.
    """
    if tokenizer is None:
        raise ModelError(f"model '{name}': reads text but has no tokenizer; give one: tokenizer=...")
    made = copy(tokenizer)
    made.padding_side = made.truncation_side = "right"
    if made.pad_token_id is None:
        if made.eos_token is None:
            raise ModelError(f"model '{name}': its tokenizer has neither a padding nor an end token; add one")
        made.pad_token = made.eos_token
    return made


def _content(tokenizer: Any) -> str:
    """The content of a tokenizer's files as text, "" for None."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return words + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
