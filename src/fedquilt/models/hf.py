"""Models by name, through Hugging Face transformers; no other module imports it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import huggingface_hub.utils
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import cached_file

from fedquilt.core.errors import ConfigError, FedquiltError, ModelError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.data.load import with_classes
from fedquilt.data.table import Columns, Table
from fedquilt.models import text
from fedquilt.models.digest import digest
from fedquilt.models.head import check_body, draw, head_of, outside_base, sized_by_classes
from fedquilt.models.image import encode_images, image_preparer, pixels_of
from fedquilt.models.labels import UNNAMED, Outputs, named_by, outputs_of
from fedquilt.models.layers import default_targets, find_blocks
from fedquilt.models.locate import FORMS, Source, find_source, refuse_idle
from fedquilt.models.reading import Reading, greedy, text_reading, unread
from fedquilt.models.shapes import Values
from fedquilt.models.stand_in import make_decoder, shortened, stand_in
from fedquilt.models.whole_files import UNCHANGED, AsItCame, as_it_came

PREPROCESSOR = "preprocessor_config.json"

TASKS: dict[str, Any] = {
    "image-classification": transformers.AutoModelForImageClassification,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}


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
) -> Loaded:
    """The model called ``name`` for ``task``, frozen, with its blocks, head, default targets, encoder and preparer.

    ``name``: one of ``source.BUILTIN`` (shipped, such as ``"glyph-vit"``), ``"tiny:<architecture>"`` (random;
    ``"tiny:vit?layers=12&width=64"``), a local folder, ``"package:<python package>/<folder>"``, a hub name, or with
    ``meta`` also ``"shape:<published shape>"``; ``"?layers=N"`` behind a built-in name, a folder or a hub name takes
    the first N blocks only.
    ``task``: image-classification, sequence-classification or causal-lm. ``num_classes`` None keeps the head as it is;
    a head of another number of classes, or none, is drawn from ``rng.child("head")``. ``classes`` are the data's names
    of them, and join the data with the base's own names: see ``labels.outputs_of``, with ``stated`` and ``labels`` (its
    ``told``). ``meta`` builds shapes without weights: it reads the config only; with ``trial`` also the
    tokenizer, and a small random model is tried in the real one's place. ``max_length`` is in tokens, and at most
    ``new_tokens`` will be written behind a prompt. What the model can take is tried; see ``reading.text_reading``.
    An encoder that can be a decoder is turned into one with ``as_decoder``. Weights are read from safetensors only.

    Raises
    ------
    ModelError
        if the name, its files or its architecture will not do; one line that says why and what to do.
    """
    if task not in TASKS:
        raise ConfigError(
            f"model.task is '{task}'{suggestion(task, list(TASKS))}; it must be one of {', '.join(TASKS)}"
        )
    if num_classes is not None and num_classes < 2:
        raise ModelError(f"model '{name}': a classifier needs at least 2 classes, the data has {num_classes}")
    source = find_source(name, meta, max_length)
    refuse_idle(source, revision, trust_remote_code)
    options = {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    with _quiet(), _explained(source):
        config = _config(source, task, options)
        make = partial(model_from, task=task, trust_remote_code=trust_remote_code)
        if as_decoder and task == "causal-lm":
            make_decoder(config, make, rng.child("stand-in"))
        outputs, written_in = UNNAMED, getattr(config, "dtype", None)
        if task != "causal-lm" and classes:
            outputs = outputs_of(classes, () if source.values else named_by(config), told=labels, stated=stated)
        resized = task != "causal-lm" and num_classes is not None and config.num_labels != num_classes
        if resized:
            config.num_labels = num_classes
        missing, absent = set[str](), set[str]()
        tokenizer = None
        if meta:
            with torch.device("meta"):
                model = make(config)
        elif source.values is not None:
            with rng.scope():
                model = make(config)
            missing = absent = set(outside_base(model))
        else:
            # transformers draws what the weights lack; the head is drawn once more below, module by module
            with rng.child("head").scope():
                model, absent, mismatched = _read_weights(source, config, task, resized, dtype, options)
            missing = absent | mismatched
        if task != "image-classification" and (trial or not meta):
            tokenizer = _tokenizer(source, config, options)
        came = as_it_came(model, task, tokenizer, written_in)
        if tokenizer is not None:
            model.config.pad_token_id = _padding(source, tokenizer)
        preprocessor = _preprocessor(source, meta, revision) if task == "image-classification" else {}
    blocks = find_blocks(model)
    head = () if task == "causal-lm" else head_of(source.name, model, missing)
    if source.location is not None:
        check_body(source.name, model, missing - set(head))
    if outputs.foreign:
        sized = sized_by_classes(model, head, make)
        outputs = outputs.where(type(model).__name__ in (config.architectures or ()) if meta else not absent & sized)
        missing |= sized if outputs.redrawn else set()
    outputs.written(model.config)
    draw(model, [name for name in head if name in missing], rng.child("head"))
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of past tokens serve generation only
    model.requires_grad_(False).eval()
    writes = task == "causal-lm" and tokenizer is not None
    if writes:
        model.generation_config = greedy(model.generation_config, tokenizer)
    if task == "image-classification":
        pixels = pixels_of(config, preprocessor)
        reading = Reading(partial(encode_images, size=pixels.size), image_preparer(pixels))
    elif tokenizer is None:
        reading = Reading(unread, text.prepare_text)
    else:
        with _quiet(), _explained(source):
            tried = _tried(model, make, rng) if meta else model
            reading = text_reading(model, tried, tokenizer, source.name, task, max_length, new_tokens)
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


def config_from(values: Values) -> Any:
    """The Hugging Face config of these values; they hold ``model_type`` and the config's keyword arguments."""
    return transformers.AutoConfig.for_model(**values)


def model_from(config: Any, task: str, trust_remote_code: bool = False) -> Any:
    """A model of this config with weights drawn from torch's global generator, on torch's default device."""
    return TASKS[task].from_config(config, trust_remote_code=trust_remote_code)


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
    with _quiet(), came.restored(model, tokenizer) as tensors:
        model.save_pretrained(folder, state_dict=tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    came.mark(folder)
    if preprocessor:
        (folder / PREPROCESSOR).write_text(json.dumps(dict(preprocessor), indent=2) + "\n", "utf-8")


def _config(source: Source, task: str, options: dict[str, Any]) -> Any:
    """The model's config, once its architecture is known to offer ``task``."""
    if source.values is not None:
        config = config_from(source.values)
    else:
        location = str(source.location)
        if source.local and not (Path(location) / "config.json").is_file():
            raise ModelError(
                f"model '{source.name}': the folder {location} has no config.json; save it with save_pretrained"
            )
        raw, _ = transformers.PreTrainedConfig.get_config_dict(location, revision=options.get("revision"))
        kind = raw.get("model_type")
        if kind not in transformers.CONFIG_MAPPING and not options["trust_remote_code"]:
            if "auto_map" in raw:
                raise ModelError(
                    f"model '{source.name}' brings Python code of its own; read it, and if you trust it set "
                    "model.trust_remote_code = true"
                )
            raise ModelError(
                f"model '{source.name}': its config.json has model_type {kind!r}, which transformers "
                f"{transformers.__version__} does not know; upgrade transformers or choose another model"
            )
        config = transformers.AutoConfig.from_pretrained(location, **options)
        if source.layers is not None:
            _shorten(config, source)
    offered = [name for name, auto in TASKS.items() if type(config) in auto._model_mapping]
    if task not in offered and not options["trust_remote_code"]:
        raise ModelError(
            f"model '{source.name}': a {config.model_type} model offers no {task}; "
            f"model.task can be: {', '.join(offered) or 'none'}"
        )
    return config


def _shorten(config: Any, source: Source) -> None:
    whole = getattr(config, "num_hidden_layers", 0)
    if source.layers is None or source.layers > whole:
        raise ModelError(f"model '{source.name}': the model has {whole} blocks; take at most that many")
    shortened(config, source.layers)  # the weights of the others are then left unread


def _read_weights(
    source: Source, config: Any, task: str, resized: bool, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, set[str], set[str]]:
    """The model with its weights, and the names of the parameters that these lack, and have in another shape."""
    if source.local:
        folder = Path(str(source.location))
        if not any(folder.glob("*.safetensors")):
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            there = f"only {', '.join(pickled)}, a pickle that can run code" if pickled else "no weights"
            raise ModelError(
                f"model '{source.name}': {folder} holds {there}; fedquilt reads model.safetensors: "
                "save the model again with save_pretrained"
            )
    model, told = TASKS[task].from_pretrained(
        source.location,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=resized,
        **options,
    )
    return model, set(told["missing_keys"]), {entry[0] for entry in told["mismatched_keys"]}


def _tokenizer(source: Source, config: Any, options: dict[str, Any]) -> Any:
    if source.values is not None:
        bert_like = config.model_type in ("bert", "distilbert")
        inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if config.model_type == "bert" else [])
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=text.byte_tokenizer(start_and_end=bert_like),
            pad_token=text.SPECIAL[0],
            bos_token=text.SPECIAL[1],
            eos_token=text.SPECIAL[2],
            unk_token=text.SPECIAL[3],
            model_input_names=inputs,
            padding_side="right",
        )
    advice = "put tokenizer.json and tokenizer_config.json beside the weights"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.location, **options)
    except Exception as error:
        raise ModelError(
            f"model '{source.name}' has no tokenizer that can be read ({_first_line(error)}); {advice}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one where there is none
        raise ModelError(f"model '{source.name}' has no tokenizer that can be read (it knows no words); {advice}")
    return tokenizer


def _padding(source: Source, tokenizer: Any) -> int:
    """The number of the tokenizer's padding token, once it pads on the right."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model '{source.name}': its tokenizer has neither a padding nor an end token; add one and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id)


def _preprocessor(source: Source, meta: bool, revision: str | None) -> dict[str, Any]:
    """What preprocessor_config.json says, or nothing where there is none."""
    if source.location is None or meta:
        return {}
    path: str | None = str(Path(source.location) / PREPROCESSOR)
    if not source.local:
        path = cached_file(
            source.location, PREPROCESSOR, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    return json.loads(Path(path).read_text("utf-8")) if path and Path(path).is_file() else {}


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what transformers, the hub or safetensors raise into one line for the user."""
    try:
        yield
    except FedquiltError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"model '{source.name}': one of its safetensors files is damaged ({_first_line(error)}); "
            "download or save it again"
        ) from error
    except Exception as error:
        advice = "look at the files in it" if source.local else f"look at the name and the connection; {FORMS}"
        raise ModelError(f"model '{source.name}' cannot be loaded: {_first_line(error)}; {advice}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, warnings about new heads or notes on retries while a model loads."""
    ours, hub = transformers.utils.logging, huggingface_hub.utils.logging
    before = ours.get_verbosity(), hub.get_verbosity(), ours.is_progress_bar_enabled()
    try:
        ours.set_verbosity_error()
        hub.set_verbosity_error()
        ours.disable_progress_bar()
        yield
    finally:
        ours.set_verbosity(before[0])
        hub.set_verbosity(before[1])
        if before[2]:
            ours.enable_progress_bar()
