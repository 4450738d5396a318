"""The software versions and the machine that a run used."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("fedquilt", "torch", "transformers", "datasets", "safetensors", "numpy", "flwr")


def environment(**more: Any) -> dict[str, Any]:
    """Collect versions, platform, processors, torch's threads and the time (UTC), and add the entries of ``more``."""
    import torch

    # torch names its build, such as +cu130, which not all metadata do
    return {
        "versions": {**_versions(), "torch": str(torch.__version__)},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


@cache
def _versions() -> dict[str, str]:
    """The versions of Python and of the packages that are installed, which a process reads once."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # flwr is optional
            versions[name] = version(name)
    return versions
