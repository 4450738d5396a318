"""The entries of PEFT's config that select a model's adapted and saved modules under PEFT's matching rules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedquilt.adapters.families import ends_in
from fedquilt.adapters.lora.module import LoraLinear, is_transposed
from fedquilt.adapters.mixture.module import MixtureLinear
from fedquilt.adapters.sites import BANK
from fedquilt.core.errors import ModelError
from fedquilt.core.tasks import TASKS

_ROOT = "base_model.model."  # where a PeftModel keeps the model
_ALWAYS = ("classifier", "score")  # modules that PEFT also saves with SEQ_CLS
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class PeftNames:
    """The entries of an ``adapter_config.json`` that select exactly the right modules of a model.

    Attributes
    ----------
    targets : the value of ``target_modules``.
    saved : the value of ``modules_to_save``.
    task_type : the value of ``task_type``.
    state : all tensors of the saved modules, with buffers, as they are in the model: PEFT requires every one.
    transposed : the value of ``fan_in_fan_out``; PEFT corrects it if a model has modules of both kinds.
    """

    targets: tuple[str, ...]
    saved: tuple[str, ...]
    task_type: str | None
    state: Mapping[str, Tensor]
    transposed: bool


def peft_names(
    model: nn.Module, adapted: Collection[str], head: Collection[str], endings: Collection[str], task: str
) -> PeftNames:
    """The entries with which PEFT adapts these modules and saves the parameters ``head`` with the adapter.

    Parameters
    ----------
    model : the model, with or without adapters in it.
    adapted : the paths of the adapted modules.
    head : the names of the head's parameters.
    endings : short names of the adapted modules; full paths are used instead if these match other modules too.
    task : what the model is fine-tuned for, such as ``"causal-lm"``.

    Raises
    ------
    ModelError
        if PEFT's config cannot express this; says why.
    """
    modules = bare_modules(model)
    wanted = _whole_modules(modules, head)
    saved, task_type = _saved(modules, wanted, TASKS[task].peft_type)
    found = {path for path in modules if ends_in(path, *endings)}
    targets = tuple(sorted(endings)) if endings and found == set(adapted) else tuple(sorted(adapted))
    caught = {path for path in modules if ends_in(path, *targets)} - set(adapted)
    if caught:
        raise ModelError(
            f"{type(model).__name__} cannot be exported: PEFT would adapt '{min(caught)}' too, whose path ends with "
            "that of an adapted module; choose other adapter.targets"
        )
    state = {f"{path}.{name}": value for path in wanted for name, value in modules[path].state_dict().items()}
    return PeftNames(targets, saved, task_type, state, any(is_transposed(modules[path]) for path in adapted))


def bare_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of the model without its adapters, by path; one that is used twice is listed under both paths."""

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        own = module.base if isinstance(module, LoraLinear | MixtureLinear) else module
        yield path, own
        for name, child in own.named_children():
            if path or name != BANK:
                yield from walk(child, f"{path}.{name}" if path else name)

    return dict(walk(model, ""))


def _whole_modules(modules: Mapping[str, nn.Module], head: Collection[str]) -> tuple[str, ...]:
    """The outermost modules that hold only parameters of the head and that the model calls."""

    def is_whole(path: str) -> bool:
        own = (f"{path}.{name}" for name, _ in modules[path].named_parameters())
        return not isinstance(modules[path], _NEVER_CALLED) and all(name in head for name in own)

    chosen: list[str] = []
    for name in head:
        above = [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 1)]
        outermost = next(filter(is_whole, above), None)
        if outermost is None:
            raise ModelError(
                f"head parameter '{name}' sits on {'the model itself' if not above else f'{above[-1]!r}'}, beside what "
                "is not the head's; PEFT can only save whole modules"
            )
        chosen.append(outermost)
    return tuple(dict.fromkeys(chosen))


def _saved(
    modules: Mapping[str, nn.Module], wanted: Collection[str], task_type: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Entries of ``modules_to_save`` that match exactly the wanted modules, and the task type for which they do."""

    def caught(words: Collection[str], prefix: str = "") -> set[str]:
        # PEFT compares the end of the text, not whole parts of the path: "head" also matches "lm_head"
        return {path for path in modules if any(f"{prefix}{path}".endswith(word) for word in words)}

    if task_type == "SEQ_CLS":
        # for this task PEFT matches a second time, with the paths in its own wrapper
        words = tuple(path if caught([path]) == {path} else _ROOT + path for path in wanted)
        if caught((*words, *_ALWAYS), _ROOT) == set(wanted):
            return tuple(sorted(words)), task_type
        task_type = None
    for path in wanted:
        if others := caught([path]) - {path}:
            raise ModelError(
                f"the adapter cannot be exported: PEFT would save '{min(others)}' with the head's module '{path}', "
                "because it saves all whose path ends so; use a model whose head has a name of its own"
            )
    return tuple(sorted(wanted)), task_type
