"""Finding where a model comes from by its name."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from fedquilt.core.enclosed import BUILTIN
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.shell import pip_install
from fedquilt.core.types import IN_MEMORY
from fedquilt.models.shapes import Values, mlp, published, tiny
from fedquilt.models.text import NUM_TOKENS

MODELS = "FEDQUILT_MODELS"
"""The environment variable that names a folder with local copies of models on the hub."""

FORMS = (
    f"a model is a built-in name ({', '.join(BUILTIN)}), 'mlp' for tables (or 'mlp?layers=3&width=64'), "
    "'tiny:<architecture>', a local folder, "
    "'package:<python package>/<folder>' or a hub name such as 'google/vit-base-patch16-224-in21k'; '?layers=N' after "
    "any but 'tiny:' keeps only the first N blocks; the environment variable FEDQUILT_MODELS names a folder with local "
    "copies of hub models"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes
    ----------
    name
        The name in the run file.
    values
        The values of a config, for a model without files.
    location
        A folder, or a name on the hub.
    local
        Whether ``location`` is a folder.
    on_hub
        Whether the name is one on the hub; then a folder is a local copy.
    layers
        Keep only so many transformer blocks, the first ones; None for all.
    """

    name: str
    values: Values | None = None
    location: str | None = None
    local: bool = False
    layers: int | None = None
    on_hub: bool = False


def find_source(name: str, meta: bool, max_length: int) -> Source:
    """Find where the model called ``name`` comes from.

    ``name`` is one of ``BUILTIN``, ``"mlp?layers=3&width=64"`` (for tables, random weights),
    ``"tiny:<architecture>"`` (random weights, as in ``"tiny:vit?layers=12&width=64"``), a local folder,
    ``"package:<python package>/<folder>"``, a hub name, or with ``meta`` also ``"shape:<published shape>"``.
    ``"?layers=N"`` after a built-in name, a folder or a hub name keeps only the first N blocks.
    A hub name stands for a folder if the environment variable ``FEDQUILT_MODELS`` names a folder with a local copy (see
    ``local_copy``). ``max_length`` is the number of positions that a tiny model needs at least.

    Raises
    ------
    ModelError
        if the name has none of these forms, or what it names does not exist.
    """
    if name.startswith(IN_MEMORY):
        raise ModelError(
            f"model '{name}': is an object of the Python program that began the run; give it again: "
            "fedquilt.open_run(folder, model=...)"
        )
    if is_mlp(name):
        return Source(name, values=mlp(name))
    whole, layers = whole_of(name)
    if layers is not None:
        return replace(find_source(whole, meta, max_length), name=name, layers=layers)
    form, _, rest = name.partition(":")
    if name in BUILTIN:
        folder = Path(str(resources.files("fedquilt"))) / "assets" / name
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the built-in model '{name}' is not in this installation ({folder}); install fedquilt again"
            )
        return Source(name, location=str(folder), local=True)
    if form == "tiny":
        values = tiny(rest, vocab_size=NUM_TOKENS, positions=max(512, max_length))
        if "vocab_size" in values:
            values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return Source(name, values=values)
    if form == "shape":
        if not meta:
            raise ModelError(f"model '{name}' is a shape without weights and serves only to plan; {FORMS}")
        return Source(name, values=published(rest))
    if form == "package":
        return Source(name, location=str(_folder_in_package(name, rest)), local=True)
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # also False if no folder can have this name
        return Source(name, location=str(folder), local=True)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ModelError(f"model '{name}': there is no such folder; {FORMS}")
    copy = local_copy(name)
    return Source(name, location=name if copy is None else str(copy), local=copy is not None, on_hub=True)


def local_copy(name: str) -> Path | None:
    """The folder with the local copy of the model called ``name`` on the hub, or None.

    For ``org/name`` it is ``$FEDQUILT_MODELS/org/name``, or else ``$FEDQUILT_MODELS/name``. Records and exported
    adapters hold the name, not the folder, so that they are valid on other machines.

    Raises
    ------
    ModelError
        if the environment variable names no folder.
    """
    place = os.environ.get(MODELS)
    if not place:
        return None
    root = Path(place).expanduser()
    if not root.is_dir():
        raise ModelError(
            f"model '{name}': the environment variable {MODELS} is '{place}', and there is no such folder; set it to "
            "the folder that holds the local copies of models, or unset it"
        )
    return next((found for own in (name, name.rpartition("/")[2]) if (found := root / own).is_dir()), None)


def refuse_idle(source: Source, revision: str | None, trust_remote_code: bool) -> None:
    """Raise ConfigError if ``revision`` or ``trust_remote_code`` has no effect for this source.

    Raises
    ------
    ConfigError
        names each of the two keys that has no effect.
    """
    problems = []
    if revision is not None and not source.on_hub:
        problems.append(
            f"model.revision = {revision!r}: applies only to names on the hub, and model.name = '{source.name}' is "
            "not one; leave it out"
        )
    if trust_remote_code and source.values is not None:
        problems.append(
            f"model.trust_remote_code = true: model.name = '{source.name}' has no code of its own; leave it out"
        )
    if problems:
        raise ConfigError(problems)


def is_mlp(name: str) -> bool:
    """Whether this is the name of an MLP for tables, with or without sizes."""
    return name.partition("?")[0] == "mlp"


def whole_of(name: str) -> tuple[str, int | None]:
    """Split a name into the part before ``?layers=N``, and N (None for all blocks).

    Raises
    ------
    ModelError
        if anything else follows the question mark.
    """
    if name.partition(":")[0] in ("tiny", "shape") or is_mlp(name) or "?" not in name:
        return name, None
    whole, _, cut = name.rpartition("?")
    key, _, number = cut.partition("=")
    if key != "layers" or not re.fullmatch("[0-9]{1,9}", number) or int(number) < 1:
        raise ModelError(
            f"model '{name}': '?{cut}' is not known; allowed after a name is '?layers=N' for the first N blocks"
        )
    return whole, int(number)


def _folder_in_package(name: str, rest: str) -> Path:
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model '{name}': the Python package '{package}' is not installed; if it is one to trust, install it with: "
            f"{pip_install('--no-deps', package)}"
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ModelError(f"model '{name}': the package '{package}' has no folder '{inside}' ({folder})")
    return folder
