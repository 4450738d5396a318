"""The reference page of all keys of a run file, generated from the schema.

``python -m fedquilt.config.reference_page > docs/run-file.md`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedquilt.config.schema import SECTIONS, Config
from fedquilt.config.sections import fields_of
from fedquilt.core.endpoint import Endpoint

HEAD = """# The run file

A run is one TOML file. Keys that are left out have the defaults below; `fedquilt check FILE` names every mistake at
once. On the command line any key can be set behind the file: `fedquilt run my.toml training.steps=5 rounds=20`.
Such a value applies to every entry of `[[compare]]` and every group that does not set the key itself.

Every number has bounds; the error message for a value outside of them names them. A key without effect, such as
`training.momentum` with adamw, is an error too: leave it out. A file may have up to 1 MiB, 50,000 values and tables 16
levels deep.

An editor completes and checks a run file by its JSON schema: `fedquilt schema --out run-file.schema.json` writes it,
and the first line of a run file, `#:schema ./run-file.schema.json`, names it to editors that use Taplo (Even Better
TOML in VS Code, Zed, Neovim, Helix). It holds the settings of every method in `[method]` and of every scheme in
`[partition]`.

This page is generated from the schema (`python -m fedquilt.config.reference_page`), and a test compares the two.
"""


def page() -> str:
    """The page: one table of keys for the top of the file, one for each section and one for each list of tables."""
    fields = Config.model_fields
    apart = {name: field for name, field in fields.items() if name not in SECTIONS}
    lists = {name: item for name, field in apart.items() if (item := _item(field)) is not None}
    parts = [HEAD, "## Top of the file\n", _table(apart)]
    for name, section in SECTIONS.items():
        parts += [f"## [{name}]\n", f"{_plain(section.__doc__ or '')}\n", _table(fields_of(section))]
        if name == "server":
            parts += ["## [server.endpoint]\n", f"{_plain(Endpoint.__doc__ or '')}\n", _table(fields_of(Endpoint))]
    for name, entry in lists.items():
        parts += [f"## [[{name}]]\n", f"{_plain(entry.__doc__ or '')}\n", _table(entry.model_fields)]
    return "\n".join(parts)


def _item(field: FieldInfo) -> type[BaseModel] | None:
    """The type of the entries if the field is a list of tables, or else None."""
    kinds = get_args(field.annotation)
    return kinds[0] if kinds and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _table(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | {_default(field)} | {_words(field)} |" for name, field in fields.items()]
    return "\n".join(rows) + "\n"


def _words(field: FieldInfo) -> str:
    return _plain(field.description or "").replace("|", r"\|")


def _plain(docstring: str) -> str:
    return " ".join(docstring.replace("``", "`").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    return "left out" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(page(), end="")
