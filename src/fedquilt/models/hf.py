"""Loading models by name: frozen, ready to be adapted, with encoder and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from fedquilt.core.errors import ConfigError, ModelError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS, Task
from fedquilt.data.tabular import Preprocessor
from fedquilt.models import text
from fedquilt.models.features import cells_encoder, features_for, features_preparer
from fedquilt.models.head import check_body, draw, head_of, outside_base, resize, sized_by_classes
from fedquilt.models.hf_files import (
    FLASH,
    explained,
    model_from,
    padding_token,
    quiet,
    read_config,
    read_preprocessor,
    read_tokenizer,
    read_weights,
    set_attention,
)
from fedquilt.models.image import encode_images, image_preparer, pixels_of
from fedquilt.models.labels import UNNAMED, Outputs, named_by, outputs_of
from fedquilt.models.layers import default_targets, find_blocks
from fedquilt.models.loaded import Loaded, numbered_by
from fedquilt.models.locate import Source, find_source, refuse_idle
from fedquilt.models.precision import base_dtype, set_dtype
from fedquilt.models.quantization import quantize
from fedquilt.models.reading import Reading, greedy, text_reading, unread
from fedquilt.models.stand_in import make_decoder, stand_in_for
from fedquilt.models.weights_digest import digest
from fedquilt.models.whole_files import AsItCame, as_it_came, save_model


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
    dtype: torch.dtype | None = torch.float32,
    quantization: str = "none",
    attention: str = "auto",
    source: Source | None = None,
    features: Preprocessor | None = None,
) -> Loaded:
    """Load the model called ``name`` for ``task``: frozen, with its blocks, head, targets and encoder.

    Weights are read from safetensors only. The limits of a text model are found by trial (``reading.text_reading``).

    Parameters
    ----------
    name, source
        The name (see ``locate.find_source``), and where the model is if that does not follow from the name.
    task
        The name of a task in ``core.tasks.TASKS``.
    num_classes
        The outputs of the head; None keeps the head. A missing head is drawn from ``rng.child("head")``.
    rng
        The model's random stream.
    classes, stated, labels
        The data's class names, matched with the base's (``labels.outputs_of``).
    revision, trust_remote_code
        The revision on the hub, and whether Python code of the model may run.
    meta, trial
        Build shapes without weights from the config; with ``trial`` also read the tokenizer and try a small stand-in.
    max_length, new_tokens
        The most tokens of a row, and of a generated completion.
    as_decoder
        Turn an encoder that can be a decoder into one.
    dtype
        The type of the base's weights (``precision.base_dtype``); the head is float32.
    quantization, attention
        The keys of ``core.model.Model``.
    features
        How columns become the inputs of a model of tables; one that was saved keeps its own.

    Raises
    ------
    ModelError
        if the name, its files or its architecture cannot be used: one line with reason and remedy.
    """
    wanted = _task(name, task, num_classes)
    refuse_idle(source := source or find_source(name, meta, max_length), revision, trust_remote_code)
    options = {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    with quiet(), explained(source):
        config = read_config(source, task, options)
        features = features_for(source, config, features, revision) if wanted.reads == "table" else None
        make = partial(model_from, task=task, trust_remote_code=trust_remote_code)
        if as_decoder and wanted.writes:
            make_decoder(config, make, rng.child("stand-in"))
        outputs = UNNAMED
        if wanted.has_classes and classes:
            outputs = outputs_of(classes, () if source.values else named_by(config), labels=labels, stated=stated)
        resized = wanted.has_classes and resize(config, num_classes)
        set_attention(config, source, task, attention)
        dtype = base_dtype(dtype, config)
        weights = partial(read_weights, source, config, task, resized, dtype, options)
        files = _files(source, config, make, weights, task, options, rng, meta, trial, features)
    loaded = _loaded(source, files, outputs, task, rng, max_length, new_tokens, dtype, quantization)
    if attention == FLASH and not meta:  # only now: the trials above run on the CPU, which has no such attention
        files.model.set_attn_implementation(attention)
    return loaded


class _Files(NamedTuple):
    """A model with everything that was read of it.

    ``absent`` are the parameters that its weights lack, ``missing`` also those of another shape. ``of_class`` says, on
    the meta device, whether its files belong to a model of this class; None where the weights were read.
    """

    model: Any
    config: Any
    make: Callable[[Any], Any]
    absent: set[str]
    missing: set[str]
    of_class: bool | None
    tokenizer: Any
    preprocessor: Mapping[str, Any]
    came: AsItCame
    features: Preprocessor | None


def _files(
    source: Source,
    config: Any,
    make: Callable[[Any], Any],
    weights: Callable[[], tuple[Any, set[str], set[str]]],
    task: str,
    options: Mapping[str, Any],
    rng: Rng,
    meta: bool,
    trial: bool,
    features: Preprocessor | None,
) -> _Files:
    written_in = getattr(config, "dtype", None)
    model, absent, missing = _made(source, partial(make, config), weights, rng, meta)
    tokenizer = None
    if TASKS[task].reads == "text" and (trial or not meta):
        tokenizer = read_tokenizer(source, config, dict(options))
    came = as_it_came(model, task, tokenizer, written_in)
    if tokenizer is not None:
        model.config.pad_token_id = padding_token(source, tokenizer)
    preprocessor: Mapping[str, Any] = {} if features is None else features.as_json()
    if TASKS[task].reads == "image":
        preprocessor = read_preprocessor(source, meta, options.get("revision"))
    of_class = type(model).__name__ in (config.architectures or ()) if meta else None
    return _Files(model, config, make, absent, missing, of_class, tokenizer, preprocessor, came, features)


def _loaded(
    source: Source,
    files: _Files,
    outputs: Outputs,
    task: str,
    rng: Rng,
    max_length: int,
    new_tokens: int,
    dtype: torch.dtype,
    quantization: str,
) -> Loaded:
    model, tokenizer, preprocessor = files.model, files.tokenizer, files.preprocessor
    blocks = find_blocks(model)
    head, outputs, missing = _head(source, files, task, outputs)
    quantize(model, blocks, quantization, dtype)
    set_dtype(model, head, dtype)
    draw(model, [name for name in head if name in missing], rng.child("head"))
    writes = TASKS[task].writes and tokenizer is not None
    _freeze(model, tokenizer if writes else None)
    meta = files.of_class is not None
    tried = partial(stand_in_for, model, files.make, rng) if meta else lambda: model
    reading = _reading(source, files, tried, task, max_length, new_tokens, dtype)
    return Loaded(
        model=model,
        blocks=blocks,
        architecture=f"{files.config.model_type}-{blocks.num_layers}x{getattr(files.config, 'hidden_size', 0)}",
        head=head,
        targets=default_targets(model, blocks),
        encode=numbered_by(reading.encode, outputs.classes),
        prepare=reading.prepare,
        reading=reading,
        digest="" if meta else digest(model),
        fresh_head=bool(missing & set(head)),
        save=partial(save_model, model, tokenizer=tokenizer, preprocessor=preprocessor, came=files.came),
        decode=text.decoder(tokenizer) if writes else None,
        outputs=outputs,
    )


def _task(name: str, task: str, num_classes: int | None) -> Task:
    """The task called ``task``, once it is known that there is one and that the data has classes enough for it."""
    if task not in TASKS:
        raise ConfigError(
            f"model.task is '{task}'{suggestion(task, list(TASKS))}; it must be one of {', '.join(TASKS)}"
        )
    if num_classes is not None and num_classes < 2:
        raise ModelError(f"model '{name}': a classifier needs at least 2 classes, the data has {num_classes}")
    return TASKS[task]


def _made(
    source: Source,
    make: Callable[[], Any],
    read: Callable[[], tuple[Any, set[str], set[str]]],
    rng: Rng,
    meta: bool,
) -> tuple[Any, set[str], set[str]]:
    """The model, and the names of the parameters that its files lack; the second set adds those of another shape.

    Parameters
    ----------
    source
        Where the model is from.
    make, read
        Make the model with random weights, and read it from its files.
    rng
        The model's random stream.
    meta
        Build shapes without weights.
    """
    if meta:
        with torch.device("meta"):
            return make(), set(), set()
    if source.values is not None:
        with rng.scope():
            model = make()
        return model, set(outside_base(model)), set(outside_base(model))
    # transformers initialises what the weights lack; the head is initialised again later, module by module
    with rng.child("head").scope():
        model, absent, mismatched = read()
    return model, absent, absent | mismatched


def _head(source: Source, files: _Files, task: str, outputs: Outputs) -> tuple[tuple[str, ...], Outputs, set[str]]:
    """The parameter names of the head, the classes of its outputs, and the parameters to be initialised."""
    model, missing = files.model, files.missing
    head = head_of(source.name, model, missing) if TASKS[task].has_classes else ()
    if source.location is not None:
        check_body(source.name, model, missing - set(head))
    if outputs.foreign:
        sized = sized_by_classes(model, head, files.make)
        outputs = outputs.where(not files.absent & sized if files.of_class is None else files.of_class)
        missing = missing | (sized if outputs.redrawn else set())
    outputs.written(model.config)
    return head, outputs, missing


def _reading(
    source: Source,
    files: _Files,
    tried: Callable[[], Any],
    task: str,
    max_length: int,
    new_tokens: int,
    dtype: torch.dtype,
) -> Reading:
    """How the model reads images, tables, or text if there is a tokenizer; ``tried()`` is the model for trials."""
    model, tokenizer = files.model, files.tokenizer
    if TASKS[task].reads == "image":
        pixels = pixels_of(model.config, files.preprocessor)
        return Reading(partial(encode_images, size=pixels.size), image_preparer(pixels, dtype))
    if files.features is not None:
        return Reading(cells_encoder(files.features), features_preparer(dtype), features=files.features)
    if tokenizer is None:
        return Reading(unread, text.prepare_text)
    with quiet(), explained(source):
        return text_reading(model, tried(), tokenizer, source.name, task, max_length, new_tokens)


def _freeze(model: Any, tokenizer: Any) -> None:
    """Freeze the model and put it into eval mode; with a tokenizer, make its generation greedy."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # cached keys and values are only for generation
    model.requires_grad_(False).eval()
    if tokenizer is not None:
        model.generation_config = greedy(model.generation_config, tokenizer)
