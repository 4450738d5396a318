"""The tensors of a Trainer's model by fedquilt's names: those that it trains, and those of its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.adapters.lora.peft_files import own_name
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import FACTORS, MAGNITUDE
from fedquilt.core.types import Layout, Params

_WRAPPED = "base_model.model."  # where a PeftModel keeps the model
_ADDED = (*FACTORS, MAGNITUDE, "lora_embedding_A", "lora_embedding_B", "lora_dropout", "modules_to_save")


def adapter_of(model: Any) -> str:
    """The name of a PeftModel's active adapter; "" for another model.

    Raises
    ------
    ConfigError
        if several are active.
    """
    if not hasattr(model, "peft_config"):
        return ""
    active = getattr(model, "active_adapters", ["default"])
    names = list(active() if callable(active) else active)
    if len(names) != 1:
        raise ConfigError(f"the trainer's model has the active adapters {', '.join(names)}; one can be federated")
    return str(names[0])


def trained_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a Trainer's model that have a gradient, by fedquilt's names, in the model's order."""
    adapter = adapter_of(model)
    return {_name(name, adapter): value for name, value in model.named_parameters() if value.requires_grad}


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model without its adapter, by the names that they had before it was put in."""
    if not adapter_of(model):
        return dict(model.state_dict())
    found = {}
    for name, tensor in model.state_dict().items():
        path = name.removeprefix(_WRAPPED)
        if not any(part in _ADDED for part in path.split(".")):
            found[path.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return found


def refuse_other(trained: Mapping[str, Tensor], layout: Layout) -> None:
    """Raise ConfigError unless the trained parameters are those of the layout, in names and shapes."""
    factors = [shape for name, shape in layout.shapes.items() if name.endswith(".lora_A")]
    if factors and not any(name.rpartition(".")[2] in FACTORS for name in trained):
        raise ConfigError(
            "the trainer trains no adapter, and this run does; fedquilt.patch adds none to a model that a Trainer has "
            f"already. Give SFTTrainer peft_config=LoraConfig(r={factors[0][0]}, ...), or make the Trainer with "
            "get_peft_model(model, LoraConfig(...)), with the values of the run file's [adapter]; to train all "
            "weights, set adapter.kind = 'full' in the run file"
        )
    more, missing = sorted(trained.keys() - layout.shapes.keys()), sorted(layout.shapes.keys() - trained.keys())
    if more or missing:
        words = [
            f"{what} {len(names)} tensors that {whose}, such as '{names[0]}'"
            for what, names, whose in (
                ("trains", more, "this run's adapter does not have"),
                ("does not train", missing, "this run's adapter has"),
            )
            if names
        ]
        raise ConfigError(
            f"the trainer's model {' and '.join(words)}; give LoraConfig the target_modules of the run file's "
            "adapter.targets (the query and value projections if left out), or change those"
        )
    for name, tensor in trained.items():
        if tuple(tensor.shape) != tuple(layout.shapes[name]):
            raise ConfigError(
                f"the trainer's tensor '{name}' is {tuple(tensor.shape)}, and this run's {tuple(layout.shapes[name])}; "
                "LoraConfig's r must be the run file's adapter.rank"
            )


def scales_of(model: nn.Module) -> dict[str, float]:
    """The factor of the product ``B A`` of every adapted module of a PeftModel, by module path."""
    adapter = adapter_of(model)
    return {
        path.removeprefix(_WRAPPED): float(scaling[adapter])
        for path, module in model.named_modules()
        if isinstance(scaling := getattr(module, "scaling", None), dict) and adapter in scaling
    }


def loaded(parameters: Mapping[str, nn.Parameter], params: Mapping[str, Tensor]) -> None:
    """Copy the values ``params`` into the parameters of the same names."""
    with torch.no_grad():
        for name, value in params.items():
            parameters[name].copy_(value)


def copied(parameters: Mapping[str, nn.Parameter]) -> Params:
    """Copies of the parameters' values on the CPU, in float32 where they have fewer bits."""
    return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in parameters.items()}


def _name(name: str, adapter: str) -> str:
    if not adapter:
        return name
    path = name.removeprefix(_WRAPPED).replace(f".modules_to_save.{adapter}.", ".")
    if f".{MAGNITUDE}.{adapter}." in path:
        return path.partition(f".{MAGNITUDE}.")[0] + f".{MAGNITUDE}"
    return own_name(path.replace(f".{adapter}.", ".", 1) if ".lora_" in path else path)
