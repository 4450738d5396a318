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
    Find all problems of a config; plan the layers, communication and memory of each client.
open_run
    Open the folder of a run.
patch
    Make a Hugging Face Trainer the client of a federation.
load_adapter
    Put a trained adapter into a model.
features
    The inputs of an exported model of tables for rows.
register
    Register your own method under a name.

Classes
-------
Run, Comparison
    The results of a run or a comparison: tables, curves, plots, adapters, models.
OwnModel
    Your own module, with the information that cannot be inferred from it.

``fedquilt.Config`` is a checked config, ``fedquilt.Rows`` a list of dictionaries that is displayed as a table.
Importing the package is fast: torch and other packages are imported at the first use of one of these names.
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
    "features",
    "load_adapter",
    "open_run",
    "patch",
    "plan",
    "register",
    "run",
]

_HOMES = {
    **dict.fromkeys(
        ("Comparison", "Rows", "Run", "check", "compare", "open_run", "patch", "plan", "run"), "fedquilt.api"
    ),
    "Config": "fedquilt.config.schema",
    "OwnModel": "fedquilt.models.own",
    "register": "fedquilt.methods.registry",
    "features": "fedquilt.models.features",
    "load_adapter": "fedquilt.models.saved_adapter",
}
"""The module of each name, which is imported at the first use of the name."""

if TYPE_CHECKING:
    from fedquilt.api import Comparison, Run, check, compare, open_run, patch, plan, run
    from fedquilt.api import Rows as Rows
    from fedquilt.config.schema import Config as Config
    from fedquilt.methods.registry import register
    from fedquilt.models.features import features
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
