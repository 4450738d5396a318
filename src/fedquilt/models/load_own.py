"""Loading a model object, as ``hf`` loads a model by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from fedquilt.core.errors import ModelError
from fedquilt.core.tasks import TASKS
from fedquilt.data.tabular import Preprocessor
from fedquilt.models import text, text_limits
from fedquilt.models.features import cells_encoder, features_preparer
from fedquilt.models.hf import load_model
from fedquilt.models.image import Pixels, encode_images, image_preparer
from fedquilt.models.labels import UNNAMED, outputs_of
from fedquilt.models.layers import default_targets
from fedquilt.models.loaded import Loaded, numbered_by
from fedquilt.models.locate import Source
from fedquilt.models.own import OwnModel, dressed, padded, save_weights
from fedquilt.models.precision import set_dtype
from fedquilt.models.quantization import quantize
from fedquilt.models.reading import Reading
from fedquilt.models.weights_digest import digest
from fedquilt.models.words import word_finder


def load_own(own: OwnModel, name: str, task: str, **options: Any) -> Loaded:
    """Load the model object ``own``; ``name`` and ``options`` are as in ``hf.load_model``.

    Raises
    ------
    ModelError
        as in ``hf.load_model``; and for a module that is not a model of transformers, if the task is not a
        classification, or its blocks, its head or its tokenizer are unknown.
    """
    if own.is_pretrained:
        return load_model(name, task, source=Source(name, location=str(own.folder()), local=True), **options)
    meta, max_length, num_classes = options["meta"], options["max_length"], options["num_classes"]
    dtype = options["dtype"] or torch.float32
    classes: Sequence[str] = options["classes"]
    if not TASKS[task].has_classes:
        raise ModelError(
            f"model '{name}': a language model in memory must be a model of transformers, but "
            f"{type(own.module).__name__} is not; build it from a config of transformers"
        )
    model = own.copied(meta).requires_grad_(False).eval()
    blocks = own.found_blocks(model)
    head = own.found_head(model, blocks, num_classes)
    quantize(model, blocks, options["quantization"], dtype)
    set_dtype(model, head, dtype)
    outputs = outputs_of(classes, (), labels=options["labels"], stated=options["stated"]) if classes else UNNAMED
    about = {"num_labels": num_classes or 0}
    if TASKS[task].reads == "image":
        pixels = Pixels(own.image_size, own.num_channels(), own.mean, own.std)
        dressed(model, ("pixel_values",), **about, num_channels=pixels.num_channels, image_size=own.image_size)
        reading = Reading(partial(encode_images, size=own.image_size), image_preparer(pixels, dtype))
    elif TASKS[task].reads == "table":
        features: Preprocessor | None = options["features"]
        if features is None:
            raise ModelError(f"model '{name}': reads tables, and the columns of the data are not known")
        dressed(model, ("features",), **about, num_features=features.width)
        reading = Reading(cells_encoder(features), features_preparer(dtype), features=features)
    else:
        dressed(model, ("input_ids", "attention_mask"), **about, max_position_embeddings=max_length)
        reading = _text_reading(model, padded(own.tokenizer, name), name, max_length, meta)
    return Loaded(
        model=model,
        blocks=blocks,
        architecture=f"{type(model).__name__.lower()}-{blocks.num_layers}",
        head=head,
        targets=default_targets(model, blocks),
        encode=numbered_by(reading.encode, outputs.classes),
        prepare=reading.prepare,
        reading=reading,
        digest="" if meta else digest(model),
        fresh_head=False,
        save=partial(save_weights, model),
        outputs=outputs,
    )


def _text_reading(model: Any, tokenizer: Any, name: str, max_length: int, meta: bool) -> Reading:
    width = min(max_length, tokenizer.model_max_length)
    size = max((one.num_embeddings for one in model.modules() if isinstance(one, nn.Embedding)), default=None)
    encode = text.classification_encoder(tokenizer, width, size)
    if not meta:
        text_limits.refuse_moved_by_padding(model, encode, text.prepare_text, name)
    lost, words = text.lost_tokens(tokenizer, False), word_finder(tokenizer, name)
    return Reading(encode, text.prepare_text, width, lost, words=words)
