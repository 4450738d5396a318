"""Models by name, frozen and ready to be adapted, with what is needed to feed them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.core.errors import ConfigError, ModelError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.data.load import with_classes
from fedquilt.data.table import Columns, Table
from fedquilt.models import text
from fedquilt.models.head import check_body, draw, head_of, outside_base, sized_by_classes
from fedquilt.models.hf_files import (
    PREPROCESSOR,
    TASKS,
    explained,
    model_from,
    padding_token,
    quiet,
    read_config,
    read_preprocessor,
    read_tokenizer,
    read_weights,
)
from fedquilt.models.image import encode_images, image_preparer, pixels_of
from fedquilt.models.labels import UNNAMED, Outputs, named_by, outputs_of
from fedquilt.models.layers import default_targets, find_blocks
from fedquilt.models.locate import Source, find_source, refuse_idle
from fedquilt.models.reading import Reading, greedy, text_reading, unread
from fedquilt.models.stand_in import make_decoder, stand_in
from fedquilt.models.weights_digest import digest
from fedquilt.models.whole_files import UNCHANGED, AsItCame, as_it_came


@dataclass(frozen=True)
class Loaded:
    """A model ready to be adapted, with what is needed to feed it.

    ``model`` is frozen, in eval mode, on the CPU or on meta. ``architecture`` is its type and size (``"vit-12x64"``).
    ``head`` are the parameter names of the classification head, () for causal LM; ``fresh_head`` says whether the head
    was drawn anew because the weights hold none for that many classes. ``targets`` are the default modules to adapt.
    ``encode`` turns a Table into columns, ``prepare`` a batch of columns into the model's keyword arguments without
    labels. ``digest`` is the sha256 of all weights, "" on meta, where ``fresh_head`` is not known and False. ``decode``
    gives the text of a language model's tokens, without its special ones; the model's ``generate`` is greedy. ``save``
    writes the whole model as it now is, with its tokenizer, into a folder that ``from_pretrained`` reads; what training
    alone wants is not in it. ``reading`` tells more of how it reads. ``outputs`` are a classifier's classes, in the
    order of its outputs: ``encode`` numbers labels by them.
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


def load_model(
    name: str,
    task: str,
    *,
    num_classes: int | None,
    rng: Rng,
    classes: Sequence[str] = (),
    stated: bool = False,
    labels: Sequence[str] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
    meta: bool = False,
    trial: bool = False,
    max_length: int = 128,
    new_tokens: int = 0,
    as_decoder: bool = False,
    dtype: torch.dtype = torch.float32,
    source: Source | None = None,
) -> Loaded:
    """The model called ``name`` for ``task``, frozen, with its blocks, head, default targets, encoder and preparer.

    ``name``: what ``locate.find_source`` takes, unless ``source`` is where the model is. ``task``:
    image-classification, sequence-classification or causal-lm. ``num_classes`` None keeps the head as it is; one of
    another number of classes, or none, is drawn from ``rng.child("head")``. ``classes`` are the data's names of them,
    and join the data with the base's own names: see ``labels.outputs_of``, with ``stated`` and ``labels`` (its
    ``told``). ``meta`` builds shapes without weights from the config alone; with ``trial`` also the tokenizer is read,
    and a small random model tried in the real one's place. ``max_length`` is in tokens, and at most ``new_tokens`` are
    written behind a prompt. What the model can take is tried: ``reading.text_reading``. ``as_decoder`` turns an encoder
    that can be one into a decoder. Weights are read from safetensors only.

    Raises
    ------
    ModelError
        if the name, its files or its architecture will not do; one line that says why and what to do.
    """
    _refuse_wanted(name, task, num_classes)
    refuse_idle(source := source or find_source(name, meta, max_length), revision, trust_remote_code)
    options = {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    with quiet(), explained(source):
        config = read_config(source, task, options)
        make = partial(model_from, task=task, trust_remote_code=trust_remote_code)
        if as_decoder and task == "causal-lm":
            make_decoder(config, make, rng.child("stand-in"))
        written_in = getattr(config, "dtype", None)
        outputs = UNNAMED
        if task != "causal-lm" and classes:
            outputs = outputs_of(classes, () if source.values else named_by(config), told=labels, stated=stated)
        resized = task != "causal-lm" and _resized(config, num_classes)
        read = partial(read_weights, source, config, task, resized, dtype, options)
        model, absent, missing = _made(source, partial(make, config), read, rng, meta)
        tokenizer = None
        if task != "image-classification" and (trial or not meta):
            tokenizer = read_tokenizer(source, config, options)
        came = as_it_came(model, task, tokenizer, written_in)
        if tokenizer is not None:
            model.config.pad_token_id = padding_token(source, tokenizer)
        preprocessor = read_preprocessor(source, meta, revision) if task == "image-classification" else {}
    blocks = find_blocks(model)
    known = type(model).__name__ in (config.architectures or ()) if meta else None
    head, outputs, missing = _head(source, model, task, outputs, missing, absent, known, make)
    draw(model, [name for name in head if name in missing], rng.child("head"))
    writes = task == "causal-lm" and tokenizer is not None
    _freeze(model, tokenizer if writes else None)
    tried = partial(_tried, model, make, rng) if meta else lambda: model
    reading = _reading(source, model, tried, tokenizer, preprocessor, task, max_length, new_tokens)
    return Loaded(
        model=model,
        blocks=blocks,
        architecture=f"{config.model_type}-{blocks.num_layers}x{getattr(config, 'hidden_size', 0)}",
        head=head,
        targets=default_targets(model, blocks),
        encode=partial(_numbered, reading.encode, outputs.classes) if outputs.classes else reading.encode,
        prepare=reading.prepare,
        reading=reading,
        digest="" if meta else digest(model),
        fresh_head=bool(missing & set(head)),
        save=partial(save_model, model, tokenizer=tokenizer, preprocessor=preprocessor, came=came),
        decode=text.decoder(tokenizer) if writes else None,
        outputs=outputs,
    )


def _refuse_wanted(name: str, task: str, num_classes: int | None) -> None:
    if task not in TASKS:
        raise ConfigError(
            f"model.task is '{task}'{suggestion(task, list(TASKS))}; it must be one of {', '.join(TASKS)}"
        )
    if num_classes is not None and num_classes < 2:
        raise ModelError(f"model '{name}': a classifier needs at least 2 classes, the data has {num_classes}")


def _resized(config: Any, num_classes: int | None) -> bool:
    """Give the config an output for each class; whether it had another number of outputs."""
    if num_classes is None or config.num_labels == num_classes:
        return False
    config.num_labels = num_classes
    return True


def _made(
    source: Source,
    make: Callable[[], Any],
    read: Callable[[], tuple[Any, set[str], set[str]]],
    rng: Rng,
    meta: bool,
) -> tuple[Any, set[str], set[str]]:
    """The model with its weights, drawn weights or none, and the names of the parameters that its files lack.

    The second set has those too that the files have in another shape.

    Parameters
    ----------
    source
        Where the model is from.
    make, read
        Make it with weights from torch's generator, and read it from its files.
    rng
        The model's stream.
    meta
        Whether only shapes are wanted.
    """
    if meta:
        with torch.device("meta"):
            return make(), set(), set()
    if source.values is not None:
        with rng.scope():
            model = make()
        return model, set(outside_base(model)), set(outside_base(model))
    # transformers draws what the weights lack; the head is drawn once more later, module by module
    with rng.child("head").scope():
        model, absent, mismatched = read()
    return model, absent, absent | mismatched


def _head(
    source: Source,
    model: Any,
    task: str,
    outputs: Outputs,
    missing: set[str],
    absent: set[str],
    known: bool | None,
    make: Callable[[Any], Any],
) -> tuple[tuple[str, ...], Outputs, set[str]]:
    """The names of the head, its classes in the order of its outputs, and what of the model must be drawn.

    ``missing`` are the parameters that the model's files lack or have in another shape, ``absent`` those that they
    lack. ``known`` says, of a model without weights, whether its files are those of such a model.
    """
    head = () if task == "causal-lm" else head_of(source.name, model, missing)
    if source.location is not None:
        check_body(source.name, model, missing - set(head))
    if outputs.foreign:
        sized = sized_by_classes(model, head, make)
        outputs = outputs.where(not absent & sized if known is None else known)
        missing = missing | (sized if outputs.redrawn else set())
    outputs.written(model.config)
    return head, outputs, missing


def _reading(
    source: Source,
    model: Any,
    tried: Callable[[], Any],
    tokenizer: Any,
    preprocessor: Mapping[str, Any],
    task: str,
    max_length: int,
    new_tokens: int,
) -> Reading:
    """How the model reads images, or text if there is a tokenizer; errors name the source.

    ``tried()`` is the model to try in the place of ``model``, or None.
    """
    if task == "image-classification":
        pixels = pixels_of(model.config, preprocessor)
        return Reading(partial(encode_images, size=pixels.size), image_preparer(pixels))
    if tokenizer is None:
        return Reading(unread, text.prepare_text)
    with quiet(), explained(source):
        return text_reading(model, tried(), tokenizer, source.name, task, max_length, new_tokens)


def _freeze(model: Any, tokenizer: Any) -> None:
    """Make the model frozen and in eval mode; with a tokenizer it writes greedily."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of past tokens serve generation only
    model.requires_grad_(False).eval()
    if tokenizer is not None:
        model.generation_config = greedy(model.generation_config, tokenizer)


def _tried(model: Any, make: Callable[[Any], Any], rng: Rng) -> Any:
    """What is tried in the place of a model without weights, or None."""
    small = stand_in(model.config, make, rng.child("stand-in"))
    if small is not None and hasattr(small, "generation_config"):
        small.generation_config = model.generation_config
    return small


def _numbered(encode: Callable[[Table], Columns], classes: Sequence[str], table: Table) -> Columns:
    """The rows with labels that number the model's outputs."""
    return encode(with_classes(table, classes, "the data", "the model's outputs do not have"))


def save_model(
    model: Any,
    folder: Path,
    *,
    tokenizer: Any = None,
    preprocessor: Mapping[str, Any] = MappingProxyType({}),
    came: AsItCame = UNCHANGED,
) -> None:
    """Write a whole model, weights as safetensors, into a folder that ``load_model`` reads; but for its weights and
    classes as it came."""
    with quiet(), came.restored(model, tokenizer) as tensors:
        model.save_pretrained(folder, state_dict=tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    came.mark(folder)
    if preprocessor:
        (folder / PREPROCESSOR).write_text(json.dumps(dict(preprocessor), indent=2) + "\n", "utf-8")
