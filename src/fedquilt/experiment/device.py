"""The device of a config."""

from __future__ import annotations

import torch

from fedquilt.core.errors import ConfigError


def device_of(name: str) -> torch.device:
    """The torch device of a config's ``device``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises
    ------
    ConfigError
        if the device is not there.
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
