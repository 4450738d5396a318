"""Loading the models of a config: device, sharing between groups, and architecture names."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.config.sections import values_of
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.data.table import Table
from fedquilt.data.tabular import Preprocessor
from fedquilt.experiment.bases import base_dtype
from fedquilt.experiment.data import AssignedRows, table_here
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.experiment.features import features_of, refuse_idle_columns
from fedquilt.models.hf import load_model
from fedquilt.models.labels import refuse_foreign
from fedquilt.models.load_own import load_own
from fedquilt.models.loaded import Loaded


def device_of(name: str) -> torch.device:
    """The torch device of a config's ``device``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises
    ------
    ConfigError
        if this machine does not have the device.
    """
    found = [kind for kind, there in (("cuda", torch.cuda.is_available()), ("mps", _has_mps())) if there] + ["cpu"]
    if name == "auto":
        return torch.device(found[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in found:
        raise ConfigError(f"device = '{name}': not on this machine; allowed here: auto, {', '.join(found)}")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def max_new_tokens(config: Config) -> int:
    """The largest number of tokens that a model generates for an answer, or for a method with a server of its own."""
    return 0 if config.data.answers is None and config.server is None else config.data.new_tokens


class Form(NamedTuple):
    """What of the data the form of a model depends on.

    ``classes`` are those of a classifier, one output for each; empty for a language model, or to keep the model's own
    head. ``features`` says how the columns of a table become the inputs; None for models that read no tables.
    """

    classes: tuple[str, ...] = ()
    features: Preprocessor | None = None


def kind_of(part: Part, form: Form) -> str:
    """A text of all settings that groups must have in common to train one adapter together."""
    config = part.config
    settings = [values_of(config.model), values_of(config.adapter), config.head.policy, list(form.classes)]
    return json.dumps([*settings, *([form.features.as_json()] if form.features else [])], sort_keys=True)


def architectures(parts: Sequence[Part], kinds: Sequence[str], loaded: Sequence[Loaded]) -> tuple[str, ...]:
    """The name of each group's architecture: that of the model, with the group's label added if it is ambiguous."""
    named: dict[str, str] = {}
    meanings: dict[str, set[str]] = {}
    for kind, model in zip(kinds, loaded, strict=True):
        meanings.setdefault(model.architecture, set()).add(kind)
    for part, kind, model in zip(parts, kinds, loaded, strict=True):
        several = len(meanings[model.architecture]) > 1
        apart = several and part.label  # without [[groups]] the clients have no label, and only the server has one
        named.setdefault(kind, f"{model.architecture}:{part.label}" if apart else model.architecture)
    return tuple(named[kind] for kind in kinds)


def share_base(loaded: Sequence[Loaded]) -> None:
    """Let frozen models with equal weights share their memory, in place; heads are not shared."""
    held: dict[tuple[str, torch.Size], list[torch.nn.Parameter]] = {}
    for model in {id(one): one for one in loaded}.values():
        for name, parameter in model.model.named_parameters():
            if name in model.head or parameter.is_meta:
                continue
            same = held.setdefault((name, parameter.shape), [])
            for other in same:
                if other.dtype == parameter.dtype and torch.equal(other, parameter):
                    parameter.data = other.data
                    break
            else:
                same.append(parameter)


def num_layers(config: Config) -> int:
    """The number of transformer blocks of the config's model; no weights are loaded."""
    return load(config, form_here(config), Rng(config.seed), meta=True).blocks.num_layers


def form_of(config: Config, table: Table | None, assigned: AssignedRows | None = None) -> Form:
    """The form of the model of a config with these rows; columns are fitted anew unless the rows are ``assigned``."""
    if not TASKS[config.model.task].has_classes:
        return Form()
    classes = (config.data.classes or ()) if table is None else table.classes
    return Form(classes, features_of(config, table) if assigned is None else assigned.features)


def form_here(config: Config) -> Form:
    """The form of the model of a config, by its data if that is on this machine."""
    task = TASKS[config.model.task]
    known = not task.has_classes or (config.data.classes is not None and task.reads != "table")
    return form_of(config, None if known else table_here(config))


def load(
    config: Config,
    form: Form,
    rng: Rng,
    *,
    meta: bool = False,
    trial: bool = False,
    new_tokens: int | None = None,
) -> Loaded:
    """Load the model of a config.

    Parameters
    ----------
    config : the config.
    form : what of the data the model's form depends on.
    rng : the random stream of the run.
    meta : whether to load only shapes.
    trial : whether to also try a forward pass.
    new_tokens : the largest number of tokens to generate; None for that of the config.
    """
    model = config.model
    own = config.objects.get(model.name)
    loaded = (load_model if own is None else partial(load_own, own))(
        model.name,
        model.task,
        num_classes=len(form.classes) or None,
        rng=rng.child("model"),
        classes=form.classes,
        features=form.features,
        stated=config.data.classes is not None,
        labels=model.labels or (),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        meta=meta,
        trial=trial,
        max_length=model.max_length,
        new_tokens=max_new_tokens(config) if new_tokens is None else new_tokens,
        as_decoder=KINDS[config.adapter.kind].trains_base,
        dtype=base_dtype(config),
        quantization=model.quantization,
        attention=model.attention,
    )
    if config.head.policy == "frozen":
        refuse_foreign(loaded.outputs, model.name)
    refuse_idle_columns(config.data, model.name, keeps=loaded.reading.features != form.features)
    return loaded


def load_all(
    groups: Sequence[Part],
    forms: Mapping[int, Form],
    rng: Rng,
    *,
    meta: bool = False,
    real: Collection[int] | None = None,
) -> tuple[Loaded, ...]:
    """Load the model of each group; groups that train one adapter together have the same object.

    Parameters
    ----------
    groups : the groups.
    forms : what of the data the form of each group's model depends on, by its number.
    rng : the random stream of the run.
    meta : whether to load only shapes.
    real : the numbers of the groups whose models get weights, None for all; the others are only shapes.
    """
    made: dict[str, Loaded] = {}
    frozen: list[Loaded] = []
    kinds = [kind_of(part, forms[part.place]) for part in groups]
    weighed = {kind for part, kind in zip(groups, kinds, strict=True) if real is None or part.place in real}
    for part, kind in zip(groups, kinds, strict=True):
        if kind not in made:
            shape = meta or kind not in weighed
            most = max(max_new_tokens(other.config) for other, own in zip(groups, kinds, strict=True) if own == kind)
            with naming_groups(part):
                made[kind] = load(part.config, forms[part.place], rng, meta=shape, new_tokens=most)
            if not shape:
                made[kind].model.to(device_of(part.config.device))
                frozen += [] if KINDS[part.config.adapter.kind].trains_base else [made[kind]]
                share_base(frozen)  # after each load, so that at most one superfluous copy is in memory
    return tuple(made[kind] for kind in kinds)
