"""A look at data whose layout nobody has described: what it holds, and which column is probably what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.data.columns import is_nothing
from fedquilt.data.loaders import expanded, part_of
from fedquilt.data.readers.by_location import read_location
from fedquilt.data.readers.raw_columns import Raw

_LABELS = ("label", "labels", "class", "target", "category", "outcome", "diagnosis", "sentiment", "y")
_TEXTS = (
    "text",
    "texts",
    "sentence",
    "review",
    "content",
    "note",
    "notes",
    "document",
    "comment",
    "question",
    "prompt",
)
_IMAGES = ("image", "images", "img", "picture", "photo", "pixels")
_SITES = ("site", "client", "client_id", "hospital", "clinic", "centre", "center", "bank", "institution", "user")
_COMPLETIONS = ("output", "completion", "answer", "response", "messages")
_FEW = 20  # classes of a column that is taken for the label though its name does not say so
_LONG = 25  # mean characters of a column that is taken for the text though its name does not say so
_SHOWN = 8  # classes that a remark names
_MANY_SITES = 1000


@dataclass(frozen=True)
class Look:
    """What a source holds.

    Attributes
    ----------
    num_rows : the number of rows.
    columns : the names of its columns.
    image, text, label, site, completion : the column that is probably the image, the text, the class, the client id
        or the completion; None where there is none.
    classes : the number of rows of each class; empty without a label.
    sites : the number of rows of each client id; empty without any.
    no_label, no_text, no_site : the numbers of rows without a label, with an empty text and without a client id.
    absent : the classes that a client id has no row of, by client id.
    words : the largest number of words of a text.
    ids : the columns that only tell rows apart.
    """

    num_rows: int
    columns: tuple[str, ...]
    image: str | None
    text: str | None
    label: str | None
    site: str | None
    completion: str | None
    classes: Mapping[str, int]
    sites: Mapping[str, int]
    no_label: int
    no_text: int
    no_site: int
    absent: Mapping[str, tuple[str, ...]]
    words: int
    ids: tuple[str, ...]

    def roles(self) -> str:
        """Which column is taken for what."""
        named = {"image": self.image, "text": self.text, "label": self.label, "site": self.site}
        named |= {"completion": None if self.label else self.completion}
        return ", ".join(f"{role}: {name}" for role, name in named.items() if name) or "no column is known by its name"

    def remarks(self) -> list[str]:
        """What of the rows is left out, missing or long, as sentences."""
        made = []
        if self.no_label:
            made.append(f"{self.no_label} of {self.num_rows} rows have no label and are left out")
        if self.no_text:
            made.append(f"{self.no_text} of {self.num_rows} rows have an empty text and are left out")
        if self.no_site:
            made.append(f"{self.no_site} of {self.num_rows} rows have no '{self.site}' and are left out")
        made += [
            f"site '{site}' has no row of class {', '.join(map(repr, none[:_SHOWN]))}"
            f"{f' and {len(none) - _SHOWN} others' if len(none) > _SHOWN else ''}"
            for site, none in self.absent.items()
        ]
        if self.words:
            made.append(f"the longest text has {self.words} words; texts of more tokens than model.max_length are cut")
        return made


def look(source: str, *, label: str | None = None, text: str | None = None, site: str | None = None) -> Look:
    """Look at the rows of a source, of its training split where it has several.

    Parameters
    ----------
    source
        A file, a folder or any other source of ``load_table``.
    label, text, site
        The columns of the class, the text and the client id; "" for none, guessed from names and values if left out.

    Raises
    ------
    DataError
        if the source cannot be read or holds no rows, or a named column is not there.
    """
    location, part = part_of(expanded(source))
    splits = read_location(location, source, {*_LABELS, *_TEXTS, *filter(None, (label, text, site))})
    if part is not None and part not in splits:
        raise DataError(
            f"'{source}': there is no '{part}'{suggestion(part, [*splits])}; there are: {', '.join(splits)}"
        )
    raw = splits[part] if part is not None else splits.get("train") or next(iter(splits.values()))
    if raw.num_rows == 0:
        raise DataError(f"'{source}': holds no rows; give data with a header and at least one row for each class")
    for name in filter(None, (label, text, site)):
        if name not in raw.names:
            raise DataError(
                f"'{source}' has no column '{name}'{suggestion(name, raw.names)}; columns: {', '.join(raw.names)}"
            )
    held = {name: _values(raw, name) for name in raw.names if name != _named(raw, _IMAGES)}
    image, completion = _named(raw, _IMAGES), _named(raw, _COMPLETIONS)
    if site is None:
        site = next((name for name in _all_named(raw, _SITES) if name != label and _is_shared(held[name])), None)
    if text is None and image is None:
        text = _text_of(raw, held, {label, site})
    if label is None:
        label = _label_of(raw, held, {site, text, image, completion})
    site, text, label = site or None, text or None, label or None
    labels = [] if label is None else held[label]
    texts = [] if text is None else held[text]
    owners = [] if site is None else held[site]
    lacking = {row for cells in (labels, texts, owners) for row, cell in enumerate(cells) if _empty(cell)}
    used = [row for row in range(raw.num_rows) if row not in lacking]
    classes = Counter(str(labels[row]) for row in used) if label else Counter[str]()
    sites = Counter(str(held[site][row]) for row in used) if site else Counter[str]()
    pairs = {(str(held[site][row]), str(labels[row])) for row in used} if site and label else set()
    absent = {one: tuple(name for name in sorted(classes) if (one, name) not in pairs) for one in sorted(sites)}
    return Look(
        num_rows=raw.num_rows,
        columns=raw.names,
        image=image,
        text=text,
        label=label,
        site=site,
        completion=completion,
        classes=dict(sorted(classes.items())),
        sites=dict(sorted(sites.items())),
        no_label=sum(map(_empty, labels)),
        no_text=sum(map(_empty, texts)),
        no_site=sum(map(_empty, owners)),
        absent={one: none for one, none in absent.items() if none and label},
        words=max((len(str(value).split()) for value in texts), default=0),
        ids=tuple(
            name for name, cells in held.items() if name not in (label, text, site) and _tells_apart(name, cells)
        ),
    )


def absent_columns(source: str, named: Mapping[str, str]) -> list[str]:
    """Messages on the keys of [data] that name a column which the source has not.

    Raises
    ------
    DataError
        if the source cannot be read.
    """
    location, part = part_of(expanded(source))
    splits = read_location(location, source, {*named.values()})
    raw = splits.get(part or "train") or next(iter(splits.values()))
    return [
        f"data.{key} = '{name}': '{source}' has no such column{suggestion(name, raw.names)}; columns: "
        f"{', '.join(raw.names)}"
        for key, name in named.items()
        if name not in raw.names
    ]


def _values(raw: Raw, name: str) -> list[Any]:
    """The cells of a column; a class number of a source that names its classes is the class's name."""
    values = raw.read(name)
    cells = values.tolist() if isinstance(values, np.ndarray) else list(values)
    names = raw.class_names.get(name)
    return [names[cell] if names and isinstance(cell, int) and 0 <= cell < len(names) else cell for cell in cells]


def _empty(value: Any) -> bool:
    return is_nothing(value) or (isinstance(value, str) and not value.strip())


def _all_named(raw: Raw, names: Sequence[str]) -> Iterable[str]:
    known = {name.casefold(): name for name in raw.names}
    return (known[name] for name in names if name in known)


def _named(raw: Raw, names: Sequence[str]) -> str | None:
    return next(iter(_all_named(raw, names)), None)


def _kinds(values: Sequence[Any]) -> set[str]:
    """The distinct values as text; a list or table in a cell counts as a value of its own."""
    return {str(value) for value in values if not _empty(value)}


def _is_shared(values: Sequence[Any]) -> bool:
    """Whether a column names the clients of the rows: several ids, each of several rows."""
    return 2 <= len(_kinds(values)) <= min(_MANY_SITES, max(2, len(values) // 5))


def _tells_apart(name: str, values: Sequence[Any]) -> bool:
    """Whether almost every row has a value of its own that is no measurement, as text or in a column of ids."""
    named = name.casefold().endswith("id") or name.casefold() == "index"
    numbers = all(_is_number(value) for value in values if not _empty(value))
    return (named or not numbers) and len(_kinds(values)) > 0.9 * len(values)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _text_of(raw: Raw, held: Mapping[str, Sequence[Any]], apart: set[str | None]) -> str | None:
    if named := next((name for name in _all_named(raw, _TEXTS) if name not in apart), None):
        return named

    def length(name: str) -> float:
        texts = [value for value in held[name] if isinstance(value, str) and " " in value.strip()]
        return sum(map(len, texts)) / max(1, len(held[name]))

    long = [name for name in held if name not in apart and length(name) >= _LONG]
    return max(long, key=length, default=None)


def _label_of(raw: Raw, held: Mapping[str, Sequence[Any]], apart: set[str | None]) -> str | None:
    if named := next((name for name in _all_named(raw, _LABELS) if name not in apart), None):
        return named
    few = [name for name in held if name not in apart and name != "is_train" and 2 <= len(_kinds(held[name])) <= _FEW]
    return few[-1] if few else None
