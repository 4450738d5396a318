"""A loaded model with what is needed to feed, adapt and save it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from fedquilt.core.types import Blocks
from fedquilt.data.loaders import with_classes
from fedquilt.data.table import Columns, Table
from fedquilt.models.labels import UNNAMED, Outputs
from fedquilt.models.reading import Reading


@dataclass(frozen=True)
class Loaded:
    """A model ready to be adapted, with what is needed to feed it.

    Attributes
    ----------
    model
        The model: frozen, in eval mode, on the CPU or the meta device.
    blocks
        The path and number of its transformer blocks.
    architecture
        Its type and size, such as ``"vit-12x64"``.
    head
        The parameter names of the classification head; () for a causal language model.
    targets
        The modules that are adapted by default.
    encode
        Turns a table into columns; labels are numbered by ``outputs``.
    prepare
        Turns a batch of columns into the model's keyword arguments without labels.
    digest
        The sha256 (hex) of all weights; "" on the meta device.
    fresh_head
        Whether the head was initialised because the weights have none for these classes; False on the meta device.
    save
        Writes the whole model and its tokenizer into a folder that ``from_pretrained`` reads, without the settings that
        only training needs.
    reading
        The encoder, the preparer and the limits of the model.
    decode
        The text of token numbers without special tokens, for language models; their ``generate`` is greedy.
    outputs
        The classes of a classifier, in the order of its outputs.
    """

    model: nn.Module
    blocks: Blocks
    architecture: str
    head: tuple[str, ...]
    targets: tuple[str, ...]
    encode: Callable[[Table], Columns]
    prepare: Callable[[Columns], dict[str, Tensor]]
    digest: str
    fresh_head: bool
    save: Callable[[Path], None]
    reading: Reading
    decode: Callable[[Sequence[int]], str] | None = None
    outputs: Outputs = UNNAMED


def numbered_by(encode: Callable[[Table], Columns], classes: Sequence[str]) -> Callable[[Table], Columns]:
    """``encode`` with labels numbered by ``classes``, those of the model's outputs; ``encode`` itself without any."""
    return partial(_numbered, encode, classes) if classes else encode


def _numbered(encode: Callable[[Table], Columns], classes: Sequence[str], table: Table) -> Columns:
    return encode(with_classes(table, classes, "the data", "the model's outputs do not have"))
