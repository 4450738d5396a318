"""Reading and writing adapters in PEFT's format, without PEFT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedquilt.adapters.folders import read_folder, write_folder
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.model_card import beside
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.factors import BIAS, FACTORS, MAGNITUDE, modules_of
from fedquilt.core.types import Layout, Params

PEFT_TENSORS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MOST_PATTERNS = 5000
_PREFIX = "base_model.model."
_OWN = (*FACTORS, MAGNITUDE, BIAS)
# initialisations that leave the base unchanged; the others (pissa, olora, corda, ...) change the base too
_PLAIN_DRAWS = ("gaussian", "eva", "orthogonal")


def save_peft(
    folder: str | Path,
    params: Mapping[str, Tensor],
    model: nn.Module,
    layout: Layout,
    settings: LoraSettings,
    *,
    base_name: str,
    task: str,
    head: Collection[str] = (),
    revision: str | None = None,
    beyond: str | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write ``params`` as a folder for ``PeftModel.from_pretrained(base, folder)``; returns the folder.

    The folder is written atomically: ``adapter_model.safetensors`` and ``adapter_config.json``. The head, which is what
    the layout and ``head`` name of it, is saved whole because PEFT requires it, with the model's own values where
    ``params`` has none.

    Parameters
    ----------
    folder : the folder; an existing one is replaced.
    params : tensors of the layout; modules may be left out, and then have no adapter.
    model : the model that the tensors belong to, with or without adapters in it.
    layout : the tensors that ``params`` may hold.
    settings : ranks, scaling and modules.
    base_name : the pretrained model, as it is loaded.
    task : what it is fine-tuned for, such as ``"causal-lm"``.
    head : the names of all of the head's parameters.
    revision : the revision of the model on the hub, if one is named.
    beyond : the path of the first block of the base that ``model`` does not have; with it PEFT rejects the uncut base,
        which is another model. None if ``model`` has all blocks.
    classes : the names of the classes in the order of the outputs.

    Raises
    ------
    ModelError
        if one of two factors is missing, a rank differs from the settings, a tensor is not in the layout, or PEFT's
        config cannot express what is adapted or saved.
    RunError
        if the folder cannot be written.
    """
    folder = Path(folder)
    kept = tuple(layout.head | set(head))
    modules = _modules(params, kept, settings)
    if unknown := sorted(modules.keys() - set(modules_of(layout.depth))):
        raise ModelError(f"'{unknown[0]}.lora_A' is not a tensor of {layout.architecture}")
    where = peft_names(model, modules, kept, settings.targets or (), task)
    tensors = {_PREFIX + _peft_name(name): value for name, value in {**where.state, **params}.items()}
    config = {
        "peft_type": "LORA",
        "task_type": where.task_type,
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.use_dora,
        "lora_bias": settings.lora_bias,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "target_modules": list(where.targets),
        # PEFT looks for saved tensors of this block: if the base has it, they are missing and PEFT rejects the base
        "modules_to_save": [*where.saved, *([] if beyond is None else [beyond])] or None,
        "fan_in_fan_out": where.transposed,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    layers = None if beyond is None else int(beyond.rpartition(".")[2])
    texts = beside(base_name, task, classes, peft=True, revision=revision, layers=layers)
    write_folder(folder, (PEFT_TENSORS, tensors), (PEFT_CONFIG, config), texts)
    return folder


def load_peft(folder: str | Path, layout: Layout | None = None) -> tuple[Params, LoraSettings]:
    """The tensors in a PEFT folder by fedquilt's names, and the settings of the adapters.

    With a ``layout``, names and shapes must be those of the layout.

    Raises
    ------
    ModelError
        if a file is missing or damaged, the config holds options other than plain LoRA's, or names or shapes do not
        fit.
    """
    folder = Path(folder)
    again = "save the adapter again with PEFT's save_pretrained and safetensors"
    config, tensors = read_folder(folder, PEFT_TENSORS, PEFT_CONFIG, again)
    _check_kinds(folder, config)
    _refuse(folder, config)
    settings = _settings(folder, config, tensors)
    params: Params = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if name == key or "lora_embedding" in name:
            raise ModelError(
                f"{folder}: tensor '{key}' is no LoRA factor and no part of a head; save the adapter as plain LoRA"
            )
        if not tensor.is_floating_point():
            raise ModelError(f"{folder}: tensor '{key}' holds {tensor.dtype}, and weights are floating-point numbers")
        params[own_name(name)] = tensor
    kept = {name for name in params if not name.endswith(_OWN)}
    try:
        _modules(params, kept, settings)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    if layout is not None:
        _fit(folder, params, layout)
    return params, settings


def _peft_name(name: str) -> str:
    """PEFT's name of a tensor, without the prefix."""
    if name.endswith(f".{BIAS}"):
        return name.removesuffix(BIAS) + f"{FACTORS[1]}.bias"
    return f"{name}.weight" if name.endswith(FACTORS) else name


def own_name(name: str) -> str:
    """Fedquilt's name of a tensor that PEFT calls so: the inverse of ``_peft_name``."""
    if name.endswith(f".{FACTORS[1]}.bias"):
        return name.removesuffix(f"{FACTORS[1]}.bias") + BIAS
    bare = name.removesuffix(".weight")
    return bare if bare.endswith(FACTORS) else name


def _modules(params: Mapping[str, Tensor], head: Collection[str], settings: LoraSettings) -> dict[str, int]:
    """The rank of every adapted module, in order, after a check that each has both factors, of its rank."""
    ranks: dict[str, int] = {}
    for name in params:
        module, _, factor = name.rpartition(".")
        if name in head:
            continue
        if factor not in _OWN:
            raise ModelError(f"tensor '{name}' is neither a low-rank factor nor part of the head")
        a, b = params.get(f"{module}.lora_A"), params.get(f"{module}.lora_B")
        if a is None or b is None:
            raise ModelError(
                f"module '{module}' has {name.rpartition('.')[2]} but not the other factor; both are needed"
            )
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"module '{module}': lora_A is {tuple(a.shape)} and lora_B {tuple(b.shape)}; "
                "they must be (r, d_in) and (d_out, r)"
            )
        if a.shape[0] != settings.rank_of(module):
            raise ModelError(
                f"module '{module}' has rank {a.shape[0]}, but the settings say {settings.rank_of(module)}"
            )
        magnitude = params.get(f"{module}.{MAGNITUDE}")
        if (magnitude is not None) != settings.use_dora:
            there = "a magnitude" if magnitude is not None else "no magnitude"
            raise ModelError(f"module '{module}' has {there}, but the settings say use_dora = {settings.use_dora}")
        if magnitude is not None and tuple(magnitude.shape) != (b.shape[0],):
            raise ModelError(
                f"module '{module}': {MAGNITUDE} is {tuple(magnitude.shape)}; it must be {(b.shape[0],)}, one number "
                "for each output feature"
            )
        bias = params.get(f"{module}.{BIAS}")
        if (bias is not None) != settings.lora_bias or (bias is not None and tuple(bias.shape) != (b.shape[0],)):
            there = "no bias" if bias is None else f"a bias {tuple(bias.shape)}"
            raise ModelError(
                f"module '{module}' has {there}, and the settings say lora_bias = {settings.lora_bias}; a bias has one "
                "number for each output feature"
            )
        ranks[module] = a.shape[0]
    return ranks


def _check_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError if a key of the config has a value of another type than PEFT writes, or null."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def table(value: Any) -> bool:
        return isinstance(value, dict) and len(value) <= MOST_PATTERNS and all(map(number, value.values()))

    kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
        "rank_pattern": (table, f"a table of at most {MOST_PATTERNS} paths and whole numbers"),
        "alpha_pattern": (table, f"a table of at most {MOST_PATTERNS} paths and numbers"),
        "target_modules": (lambda value: isinstance(value, str) or texts(value), "a list of names, or one pattern"),
        "modules_to_save": (texts, "a list of names"),
        "lora_alpha": (lambda value: not isinstance(value, bool), "a number"),
        "lora_dropout": (lambda value: isinstance(value, int | float), "a number"),
        "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
        "use_dora": (lambda value: isinstance(value, bool), "true or false"),
        "lora_bias": (lambda value: isinstance(value, bool), "true or false"),
        "init_lora_weights": (lambda value: isinstance(value, bool | str), "true, false or a name"),
    }
    for key, (holds, words) in kinds.items():
        if config.get(key) is not None and not holds(config[key]):
            raise ModelError(f"{folder}: {PEFT_CONFIG} is wrong: {key} = {config[key]!r:.80}; it must be {words}")


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError if the config asks for more than plain LoRA."""
    allowed: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_qalora": (False, None),
        "use_bdlora": (False, None),
        "layer_replication": (None,),
        "target_parameters": (None, []),
        "trainable_token_indices": (None,),
        "alora_invocation_tokens": (None,),
    }
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise ModelError(
                f"{folder}: adapter_config.json has {key} = {config[key]!r}; fedquilt reads plain LoRA ({values[0]!r})"
            )
    draw = config.get("init_lora_weights")
    if isinstance(draw, str) and draw.lower() not in _PLAIN_DRAWS:
        raise ModelError(
            f"{folder}: adapter_config.json has init_lora_weights = {draw!r}, which changes the base too; "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )


def _settings(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoraSettings:
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # one regular expression: the tensors show which modules it matched
        paths = [key.partition(".lora_A.")[0] for key in tensors if ".lora_A." in key]
        targets = [path.rpartition(".")[2] for path in paths]
    try:
        return LoraSettings(
            rank=config["r"],
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout") or 0.0),
            rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            lora_bias=bool(config.get("lora_bias")),
            targets=tuple(sorted(set(targets))) or None,
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )
    except KeyError as error:
        raise ModelError(f"{folder}: adapter_config.json has no {error}") from error
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{folder}: adapter_config.json is wrong: {error}") from error


def _fit(folder: Path, params: Mapping[str, Tensor], layout: Layout) -> None:
    for name in sorted(params.keys() ^ layout.depth.keys()):
        where = "is not in the model" if name in params else "is missing"
        raise ModelError(
            f"{folder}: tensor '{name}' {where} ({layout.architecture}); the adapter is of another model or targets"
        )
    for name, tensor in params.items():
        if tuple(tensor.shape) != tuple(layout.shapes[name]):
            raise ModelError(
                f"{folder}: tensor '{name}' is {tuple(tensor.shape)}, the model's is {tuple(layout.shapes[name])}"
            )
