"""A site on Flower whose client is a Hugging Face Trainer, which the site's own script has made.

The run file gives the method, the adapter and the rounds. The model, the rows, the loss, the optimiser and everything
else of the training are the script's; none of the site's data or code travels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch.nn import Parameter

from fedquilt.adapters.registry import KINDS
from fedquilt.config.load import parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.core.factors import at_rank
from fedquilt.core.types import ClientId, Layout, Params
from fedquilt.experiment.build import Experiment, shaped
from fedquilt.experiment.flower_site import cards, keeps_its_count, scored_on_site
from fedquilt.models.weights_digest import digest_of
from fedquilt.trainer.client import TrainerClient, resuming
from fedquilt.trainer.rounds import refuse_unusable
from fedquilt.trainer.tensors import base_of, copied, loaded, refuse_other, scales_of, trained_of

Made = Callable[[Mapping[str, Any]], Any]
"""Makes the Trainer of a site from the config of its node."""


@dataclass(frozen=True)
class Patched:
    """A Trainer that can be the client of a federation, see ``fedquilt.patch``.

    Attributes
    ----------
    made
        Gives the Trainer for the config of a node.
    optimizer
        Whether the optimiser's state is kept over rounds, or reset in each.
    examples
        The number of training rows, the weight of its replies; None for the length of the Trainer's dataset.
    """

    made: Made
    optimizer: Literal["kept", "reset"] = "kept"
    examples: int | None = None

    def client_app(self, run_file: Path | str) -> Any:
        """A Flower ClientApp of this Trainer for the run file, as the ``app`` of a Flower app of your own."""
        from fedquilt.experiment.flower import app_of, read

        config = read(Path(run_file))
        return app_of(lambda partition, node: site_of(config, self, partition, node))


def joined_script(config: Config, partition: ClientId, node: Mapping[str, Any]) -> Any:
    """The site of a node whose config names a script with a patched Trainer, as ``trainer``.

    Only the node's own config names it: the server cannot choose what a site executes.
    """
    return site_of(config, _of_script(Path(str(node["trainer"])).expanduser(), partition), partition, node)


def site_of(config: Config, patched: Patched, partition: ClientId, node: Mapping[str, Any]) -> Any:
    """The site of a partition whose client is the patched Trainer; made at the first call.

    Raises
    ------
    ConfigError
        if the Trainer and the run do not fit together; says which of the two to change.
    """
    if not 0 <= partition < config.partition.num_clients:
        raise ConfigError(
            f"partition-id = {partition}: the run has the partitions 0 to {config.partition.num_clients - 1}"
        )
    key = json.dumps([resolved(scored_on_site(config)), partition, sorted((k, str(v)) for k, v in node.items())])
    sites = _SITES.setdefault(id(patched), {})
    if key not in sites:
        sites[key] = (patched, _site(_shaped(json.dumps(resolved(scored_on_site(config)))), patched, partition, node))
    return sites[key][1]


_SITES: dict[int, dict[str, tuple[Patched, Any]]] = {}  # the Patched is held, so that no other one gets its id


@lru_cache(maxsize=4)
def _shaped(key: str) -> Experiment:
    return shaped(parse(json.loads(key)))


def _site(experiment: Experiment, patched: Patched, partition: ClientId, node: Mapping[str, Any]) -> Any:
    from fedquilt.engine.flower.client import Site

    refuse_method(experiment)
    group = experiment.group_of(partition)
    profile = next(one for one in experiment.federation.profiles if one.id == partition)
    trainer = patched.made(node)
    refuse_unusable(trainer)
    if group.config.model.quantization != "none":
        raise ConfigError(
            f"model.quantization = '{group.config.model.quantization}' is not for a patched Trainer, whose base is not "
            "quantised; set model.quantization = 'none' in the run file"
        )
    layout = at_rank(group.layout, profile.budget.rank)
    parameters = trained_of(trainer.model)
    refuse_other(parameters, layout)
    _refuse_scales(experiment, trainer.model, layout, profile.architecture)
    _begin_again(trainer, parameters)
    trainer.create_optimizer()  # of all its tensors, whatever a round will train
    profile = replace(profile, num_examples=_num_examples(trainer, patched.examples))
    card = cards(experiment)[partition] | {"base": digest_of(base_of(trainer.model))[:16]}
    if not keeps_its_count(group.config):
        card |= {"num_examples": profile.num_examples}
    method = resuming(experiment.method)
    ordered = {name: parameters[name] for name in layout.shapes}
    client = TrainerClient(
        profile,
        trainer,
        ordered,
        layout,
        copied(ordered),
        experiment.config.rounds,
        keep=patched.optimizer == "kept",
        model=method.model,
    )
    return Site(partition, client, method, card)


def refuse_method(experiment: Experiment) -> None:
    """Raise ConfigError if the run needs more of a client than tensors for tensors, with the reason."""
    traits, config = experiment.traits, experiment.config
    rule = traits.rule or experiment.federation.rule
    reasons = {
        "its parties hold other columns of the same rows": traits.vertical,
        "its server has a model of its own, and clients learn from texts": traits.needs_server,
        f"it needs adapters of the kind '{traits.needs}'": traits.needs not in ("tensors", "factors"),
        "it shares tensors between different architectures": traits.across,
        "its clients' models have only the layers that they train": traits.drops_layers,
        "it needs scores that clients compute from their rows": traits.sends_scores,
        "the server changes the base in every round": rule is not None and rule.changes_base,
        f"adapters of the kind '{config.adapter.kind}' are not PEFT's LoRA": (
            config.adapter.kind != "lora" and not KINDS[config.adapter.kind].trains_base
        ),
        "training.proximal adds a term to the loss": config.training.proximal > 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"method.name = '{config.method.name}' is not for a patched Trainer: {reason}; choose a method "
                "whose clients train and send the adapters that they receive"
            )


def _refuse_scales(experiment: Experiment, model: Any, layout: Layout, architecture: str) -> None:
    """Raise ConfigError unless the adapters' products have the factors that the server counts on."""
    wanted, scales = experiment.federation.scalings.get(architecture), scales_of(model)
    for name, shape in layout.shapes.items():
        module, _, factor = name.rpartition(".")
        if factor == "lora_A" and wanted is not None:
            theirs, ours = scales[module], wanted(module, shape[0])
            if not math.isclose(theirs, ours):
                raise ConfigError(
                    f"the trainer's adapter at '{module}' is scaled by {theirs:g}, and this run's by {ours:g}; "
                    "LoraConfig's lora_alpha (and use_rslora) must be the run file's adapter.alpha (and adapter.rslora)"
                )


_BEGINNINGS: WeakKeyDictionary[Any, Params] = WeakKeyDictionary()  # of Trainers that were a site's


def _begin_again(trainer: Any, parameters: Mapping[str, Parameter]) -> None:
    """Give a Trainer that was in another run of this process the tensors that it had before its first one."""
    beginning = _BEGINNINGS.get(trainer)
    if beginning is None or beginning.keys() != parameters.keys():
        _BEGINNINGS[trainer] = copied(parameters)
    else:
        loaded(parameters, beginning)


def _num_examples(trainer: Any, stated: int | None) -> int:
    if stated is not None:
        return stated
    try:
        return len(trainer.train_dataset)
    except TypeError as error:
        raise ConfigError(
            "the trainer's train_dataset has no length; say how many rows it has, the weight of the replies: "
            "fedquilt.patch(trainer, examples=1000)"
        ) from error


@lru_cache(maxsize=8)
def _of_script(file: Path, partition: ClientId) -> Patched:
    """The patched Trainer of a script, which is imported for this partition; it has none of its own by then."""
    if not file.is_file():
        raise ConfigError(f"trainer = '{file}' of the node's config: there is no such file")
    name = f"fedquilt_trainer_{hashlib.sha256(f'{file} {partition}'.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"trainer = '{file}' of the node's config: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # datasets fingerprints functions by their module
    try:
        spec.loader.exec_module(module)
    except FedquiltError:
        raise
    except (Exception, SystemExit) as error:  # whatever the script raises, the operator should read it
        raise ConfigError(f"trainer = '{file}' of the node's config: {type(error).__name__}: {error}") from error
    return _only(module, file)


def _only(module: ModuleType, file: Path) -> Patched:
    found = {id(value): value for value in vars(module).values() if isinstance(value, Patched)}
    if len(found) != 1:
        raise ConfigError(
            f"trainer = '{file}' of the node's config: the script has {len(found)} patched trainers at its top level; "
            "it must have one: federated = fedquilt.patch(trainer)"
        )
    return next(iter(found.values()))
