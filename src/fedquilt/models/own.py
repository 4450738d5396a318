"""A model that the calling program holds, in place of a name: any ``nn.Module``, or one of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory
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
    """A model of your own, and what of it cannot be found by looking at it.

    A classifier may be any module with one ``nn.ModuleList`` of equal blocks. It is called with what its ``forward``
    names: images (float32, rows x channels x height x width) as ``pixel_values`` or its first parameter, text as
    ``input_ids`` and ``attention_mask`` or its first and second; and gives logits, or something with ``.logits``. It is
    copied, and stays as it is. A language model must be one of transformers.

    Parameters
    ----------
    module
        The model, with its weights and, for a classifier, an output for each class of the data, in their order.
    tokenizer
        For models of text, one of transformers' fast tokenizers.
    blocks
        The path of the list of blocks, such as ``"encoder.layers"``; found where there is only one.
    head
        The path of the classification head; if left out, the last linear layer outside the blocks.
    image_size
        Height and width of the images that it takes; those of the data if left out.
    channels
        Of its images; if left out, those of its first convolution, or 3.
    mean, std
        What is subtracted from pixels between 0 and 1, and what they are divided by.
    """

    module: nn.Module
    tokenizer: Any = None
    blocks: str | None = None
    head: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    _saved: list[TemporaryDirectory[str]] = field(default_factory=list, init=False, repr=False)

    @property
    def name(self) -> str:
        """What stands for the model in a config: its class, and a digest of its weights and of what is said here."""
        told = [self.blocks, self.head, self.image_size, self.channels, self.mean, self.std]
        parts = (digest(self.module), json.dumps(told), _told(self.tokenizer))
        total = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{IN_MEMORY}{type(self.module).__name__}-{total[:16]}"

    @property
    def is_pretrained(self) -> bool:
        """Whether transformers can save the model and read it back."""
        return hasattr(self.module, "save_pretrained") and hasattr(getattr(self.module, "config", None), "model_type")

    def folder(self) -> Path:
        """A folder with the files of a model of transformers, and its tokenizer; it lasts as long as this object."""
        if not self._saved:
            made: TemporaryDirectory[str] = TemporaryDirectory(prefix="fedquilt-model-")
            self.module.save_pretrained(made.name)  # type: ignore[operator]
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(made.name)
            self._saved.append(made)
        return Path(self._saved[0].name)

    def copied(self, meta: bool) -> Any:
        """A copy of the module; with ``meta`` its shapes alone, without a copy of the weights in between."""
        memo: dict[int, Any] = {}
        if meta:
            for parameter in self.module.parameters():
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            for buffer in self.module.buffers():
                memo[id(buffer)] = torch.empty_like(buffer, device="meta")
        made = deepcopy(self.module, memo)
        return made if meta else made.float().cpu()

    def found_blocks(self, model: nn.Module) -> Blocks:
        """Where the blocks of the module, or of a copy of it, are.

        Raises
        ------
        ModelError
            if ``blocks`` names no list of modules, or is left out and there is more than one such list.
        """
        if self.blocks is None:
            return find_blocks(model)
        lists = {path: one for path, one in model.named_modules() if isinstance(one, nn.ModuleList)}
        if self.blocks not in lists:
            told = ", ".join(f"'{path}'" for path in lists) or "none"
            raise ModelError(f"blocks = '{self.blocks}': names no nn.ModuleList of the model; there are: {told}")
        return Blocks(self.blocks, len(lists[self.blocks]))

    def found_head(self, model: nn.Module, blocks: Blocks, num_classes: int | None) -> tuple[str, ...]:
        """The names of the head's parameters.

        Raises
        ------
        ModelError
            if there is none, or it gives another number of outputs than there are classes.
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
                f"{type(model).__name__}: its head '{path}' gives {outputs} outputs, and the data has {num_classes} "
                "classes; build the model for as many, or name its head: fedquilt.OwnModel(model, head='...')"
            )
        return names

    def num_channels(self) -> int:
        """The channels of its images."""
        convolutions = (one.in_channels for one in self.module.modules() if isinstance(one, nn.Conv2d))
        return self.channels or next(convolutions, 3)


def own_model(model: Any, tokenizer: Any = None) -> OwnModel:
    """The model as an ``OwnModel``, with the tokenizer if one is given beside it."""
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
    """The copied module, which now is called and answers as a model of transformers; ``undressed`` undoes it.

    It takes ``inputs`` by name. What its own forward has no parameter of the same name for goes to its first ones, in
    their order, and an input for which there is none left is dropped.
    """
    own = model.forward
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    taken = [one.name for one in signature(own).parameters.values() if one.kind in kinds]
    places = {name: name for name in inputs if name in taken} or dict(zip(inputs, taken, strict=False))

    def forward(**given: Tensor) -> Any:
        made = own(**{places[name]: value for name, value in given.items() if name in places})
        made = made[0] if isinstance(made, tuple) else made
        return made if hasattr(made, "logits") else SimpleNamespace(logits=made)

    model.forward = forward
    added = {"main_input_name": inputs[0], "config": SimpleNamespace(model_type=type(model).__name__, **config)}
    for name, value in added.items():
        if not hasattr(model, name):
            setattr(model, name, value)
    return model


def undressed(model: nn.Module) -> nn.Module:
    """The module as its own class made it."""
    for name in ("forward", "main_input_name"):
        vars(model).pop(name, None)
    if isinstance(vars(model).get("config"), SimpleNamespace):
        del model.config
    return model


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write all weights of a module as safetensors, beside a file that says of which class it is."""
    told = {"class": type(model).__name__, "format": "fedquilt.own_model"}
    write_folder(folder, (WEIGHTS, model.state_dict()), ("own_model.json", told))


def padded(tokenizer: Any, name: str) -> Any:
    """A copy of the tokenizer that pads on the right.

    Raises
    ------
    ModelError
        if there is none, or it has no token to pad with.
    """
    if tokenizer is None:
        raise ModelError(f"model '{name}': reads text and comes without a tokenizer; give one: tokenizer=...")
    made = copy(tokenizer)
    made.padding_side = made.truncation_side = "right"
    if made.pad_token_id is None:
        if made.eos_token is None:
            raise ModelError(f"model '{name}': its tokenizer has neither a padding nor an end token; add one")
        made.pad_token = made.eos_token
    return made


def _told(tokenizer: Any) -> str:
    """All that a tokenizer's files would say, as text."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return words + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
