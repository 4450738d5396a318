"""Federated fine-tuning of foundation models across heterogeneous clients.

Ten lines that fine-tune a small vision transformer on handwritten digits across twelve non-IID clients::

    import fedquilt

    digits = {
        "model": {"name": "glyph-vit", "task": "image-classification"},
        "data": {"source": "sklearn:digits", "proxy": 100},
        "partition": {"scheme": "pathological", "num_clients": 12, "classes_per_client": 2},
    }
    run = fedquilt.run(digits, method="fed-hello", rounds=5)
    print(run.table())
    run.plot().savefig("digits.png")
    model = run.model()  # an nn.Module with the trained adapter in it

Functions
---------
run, compare
    Run one federation; run several methods on the same data and seeds.
check, plan
    Find every problem of a config; say what each client would train, send and need.
open_run
    Read a run that lies in a folder.
load_adapter
    Put a trained adapter into a model.
register
    Make a method of your own known by a name.

Classes
-------
Run, Comparison
    What a run, or a comparison, left: tables, curves, plots, adapters, models.
OwnModel
    A module of your own, and what of it cannot be found by looking at it.

``fedquilt.Config`` is a checked config, ``fedquilt.Rows`` a list of dictionaries that shows itself as a table.
Importing the package takes no time: torch and all else are loaded when one of these names is used first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

__all__ = [
    "Comparison",
    "OwnModel",
    "Run",
    "check",
    "compare",
    "load_adapter",
    "open_run",
    "plan",
    "register",
    "run",
]

_HOMES = {
    **dict.fromkeys(("Comparison", "Rows", "Run", "check", "compare", "open_run", "plan", "run"), "fedquilt.api"),
    "Config": "fedquilt.config.schema",
    "OwnModel": "fedquilt.models.own",
    "register": "fedquilt.methods.registry",
    "load_adapter": "fedquilt.models.saved_adapter",
}
"""The module of each name, which is imported when the name is asked for first."""

if TYPE_CHECKING:
    from fedquilt.api import Comparison, Run, check, compare, open_run, plan, run
    from fedquilt.api import Rows as Rows
    from fedquilt.config.schema import Config as Config
    from fedquilt.methods.registry import register
    from fedquilt.models.own import OwnModel
    from fedquilt.models.saved_adapter import load_adapter


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedquilt' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
