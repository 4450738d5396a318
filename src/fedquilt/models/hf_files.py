"""Reading a model's config, weights, tokenizer and preprocessor with transformers; only this and `mlp` import it.

transformers takes seconds to import, and is imported when the first model is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import huggingface_hub.utils
import torch
from safetensors import SafetensorError

from fedquilt.core.collector import paused
from fedquilt.core.errors import FedquiltError, ModelError
from fedquilt.core.tasks import TASKS
from fedquilt.models import text
from fedquilt.models.locate import FORMS, Source
from fedquilt.models.shapes import Values
from fedquilt.models.stand_in import shortened

PREPROCESSOR = "preprocessor_config.json"
FLASH = "flash_attention_2"
_SUPPORTED = {"sdpa": "_supports_sdpa", FLASH: "_supports_flash_attn"}


@cache
def _library() -> Any:
    """The library transformers, with fedquilt's model of tables among its architectures."""
    with paused():
        import transformers

        from fedquilt.models import mlp as mlp

    return transformers


def auto_class(task: str) -> Any:
    """The class of transformers that makes and loads models for a task."""
    name, library = TASKS[task].auto_class, _library()
    from fedquilt.models import mlp

    return getattr(library, name) if hasattr(library, name) else getattr(mlp, name)


def config_from(values: Values) -> Any:
    """The Hugging Face config with these values: ``model_type`` and the config's keyword arguments."""
    return _library().AutoConfig.for_model(**values)


def model_from(config: Any, task: str, trust_remote_code: bool = False) -> Any:
    """A model of this config with random weights from torch's global generator, on torch's default device."""
    return auto_class(task).from_config(config, trust_remote_code=trust_remote_code)


def read_config(source: Source, task: str, options: dict[str, Any]) -> Any:
    """Read the model's config, and check that its architecture supports ``task``.

    Raises
    ------
    ModelError
        if the files, the architecture or its support of the task are missing.
    """
    if source.values is not None:
        config = config_from(source.values)
    else:
        location = str(source.location)
        if source.local and not (Path(location) / "config.json").is_file():
            raise ModelError(
                f"model '{source.name}': the folder {location} has no config.json; save it with save_pretrained"
            )
        library = _library()
        raw, _ = library.PreTrainedConfig.get_config_dict(location, revision=options.get("revision"))
        kind = raw.get("model_type")
        if kind not in library.CONFIG_MAPPING and not options["trust_remote_code"]:
            if "auto_map" in raw:
                raise ModelError(
                    f"model '{source.name}' brings Python code of its own; read it, and if you trust it set "
                    "model.trust_remote_code = true"
                )
            raise ModelError(
                f"model '{source.name}': its config.json has model_type {kind!r}, which transformers "
                f"{library.__version__} does not know; upgrade transformers or choose another model"
            )
        config = library.AutoConfig.from_pretrained(location, **options)
        if source.layers is not None:
            _shorten(config, source)
    offered = [name for name in TASKS if type(config) in auto_class(name)._model_mapping]
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
    shortened(config, source.layers)  # the weights of the others are then not read


def set_attention(config: Any, source: Source, task: str, attention: str) -> None:
    """Set the implementation of attention in the config, in place; ``"auto"`` leaves it to transformers.

    Flash attention runs on GPUs only: the config gets ``"sdpa"`` for it, and the loaded model is changed later.

    Raises
    ------
    ModelError
        if transformers has no such implementation for this architecture.
    """
    if attention == "auto":
        return
    kinds = auto_class(task)._model_mapping
    kind = kinds.get(type(config), None)
    if kind is not None and attention in _SUPPORTED and not getattr(kind, _SUPPORTED[attention], False):
        raise ModelError(
            f"model '{source.name}': model.attention = '{attention}': transformers has no such attention for a "
            f"{config.model_type} model; set it to 'eager' or 'auto'"
        )
    config._attn_implementation = "sdpa" if attention == FLASH else attention


def read_weights(
    source: Source, config: Any, task: str, resized: bool, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, set[str], set[str]]:
    """Read the model with its weights.

    Parameters
    ----------
    source, config
        Where the model is from, and its config.
    task
        The name of a task.
    resized
        Whether the head has another number of outputs than in the files.
    dtype
        The type of the weights in memory.
    options
        ``trust_remote_code`` and perhaps ``revision``.

    Returns
    -------
    model, missing, mismatched
        The model, and the names of the parameters that the files lack or have in another shape.
    """
    if source.local:
        folder = Path(str(source.location))
        if not any(folder.glob("*.safetensors")):
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            there = f"only {', '.join(pickled)}, a pickle that can run code" if pickled else "no weights"
            raise ModelError(
                f"model '{source.name}': {folder} holds {there}; fedquilt reads model.safetensors: "
                "save the model again with save_pretrained"
            )
    model, report = auto_class(task).from_pretrained(
        source.location,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=resized,
        **options,
    )
    return model, set(report["missing_keys"]), {entry[0] for entry in report["mismatched_keys"]}


def read_tokenizer(source: Source, config: Any, options: dict[str, Any]) -> Any:
    """Read the model's tokenizer; a model without files has the byte tokenizer."""
    if source.values is not None:
        bert_like = config.model_type in ("bert", "distilbert")
        inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if config.model_type == "bert" else [])
        return _library().PreTrainedTokenizerFast(
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
        tokenizer = _library().AutoTokenizer.from_pretrained(source.location, **options)
    except Exception as error:
        raise ModelError(
            f"model '{source.name}' has no tokenizer that can be read ({_first_line(error)}); {advice}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one if there is none
        raise ModelError(f"model '{source.name}' has no tokenizer that can be read (its vocabulary is empty); {advice}")
    return tokenizer


def padding_token(source: Source, tokenizer: Any) -> int:
    """Make the tokenizer pad on the right, if need be with its end token; the number of its padding token."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model '{source.name}': its tokenizer has neither a padding nor an end token; add one and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id)


def read_preprocessor(source: Source, meta: bool, revision: str | None) -> dict[str, Any]:
    """Read preprocessor_config.json; empty if there is none."""
    if source.location is None or meta:
        return {}
    path: str | None = str(Path(source.location) / PREPROCESSOR)
    if not source.local:
        from transformers.utils.hub import cached_file

        path = cached_file(
            source.location, PREPROCESSOR, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    return json.loads(Path(path).read_text("utf-8")) if path and Path(path).is_file() else {}


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn exceptions of transformers, the hub and safetensors into a ModelError of one line."""
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
        advice = "check the files in it" if source.local else f"check the name and the connection; {FORMS}"
        raise ModelError(f"model '{source.name}' cannot be loaded: {_first_line(error)}; {advice}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, warnings about new heads and notes on retries while a model loads."""
    ours, hub = _library().utils.logging, huggingface_hub.utils.logging
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
