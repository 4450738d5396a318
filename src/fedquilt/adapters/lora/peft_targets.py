"""Where PEFT puts what an adapter folder holds: its own rules, by which words of a config find modules in a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedquilt.adapters.families import ends_in
from fedquilt.adapters.lora.module import LoraLinear, is_transposed
from fedquilt.adapters.mixture.inject import BANK
from fedquilt.adapters.mixture.module import MixtureLinear
from fedquilt.core.errors import ModelError
from fedquilt.core.tasks import TASKS

_ROOT = "base_model.model."  # where a PeftModel keeps the model
_ALWAYS = ("classifier", "score")  # what PEFT saves besides with SEQ_CLS
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class PeftNames:
    """The words of an ``adapter_config.json`` that mean the right modules of a model, and no other.

    ``targets`` for target_modules, ``saved`` for modules_to_save, ``task_type`` for the key of that name. ``state``
    are all tensors of the saved modules as they are in the model, buffers too: PEFT wants every one of them.
    ``transposed`` for fan_in_fan_out, which PEFT itself sets right where a model has modules of both kinds.
    """

    targets: tuple[str, ...]
    saved: tuple[str, ...]
    task_type: str | None
    state: Mapping[str, Tensor]
    transposed: bool


def peft_names(
    model: nn.Module, adapted: Collection[str], head: Collection[str], endings: Collection[str], task: str
) -> PeftNames:
    """How to tell PEFT that these modules are adapted and that the parameters ``head`` are the adapter's own.

    ``model`` is as it was loaded, or with adapters in it. ``endings`` are what people know the adapted modules by; full
    paths are told instead where these would also catch another module.

    Raises
    ------
    ModelError
        if PEFT has no words for it; says why.
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
    """All modules by path, as they are without adapters; one that is used twice stands under both paths."""

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        own = module.base if isinstance(module, LoraLinear | MixtureLinear) else module
        yield path, own
        for name, child in own.named_children():
            if path or name != BANK:
                yield from walk(child, f"{path}.{name}" if path else name)

    return dict(walk(model, ""))


def _whole_modules(modules: Mapping[str, nn.Module], head: Collection[str]) -> tuple[str, ...]:
    """The outermost modules that hold parameters of the head and no others, and that the model calls as a whole."""

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
    """Words for modules_to_save that catch the wanted modules alone, and the task type with which they do."""

    def caught(words: Collection[str], prefix: str = "") -> set[str]:
        # PEFT's rule is the end of the text, whatever stands before: "head" is also the end of "lm_head"
        return {path for path in modules if any(f"{prefix}{path}".endswith(word) for word in words)}

    if task_type == "SEQ_CLS":
        # here PEFT looks a second time, from above the model
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
