"""The clients of ``partition.json``: one object for each, or columns where there are many.

Up to ``MANY`` clients are a list of objects, as ``{"id": 3, "budget": 2, "train": [5, 8], "labels": {"cat": 2}}``. More
are ``{"count": 20000, "columns": {"id": {"numbers": "0 1 2 ..."}, ...}}``, with a column for each key:

    {"all": value}                      the same value for every client
    {"each": [value, ...]}              a value for each client
    {"each": [value, null, ...], "absent": "1 ..."}
                                        a value for each but those at these places, whose objects lack the key
    {"numbers": "0 1 2 ..."}            a whole number for each
    {"sizes": "2 1", "numbers": "5 8 3"}
                                        a list of whole numbers for each, here [5, 8] and [3]
    {"names": ["cat", "dog"], "sizes": "2 1", "keys": "0 1 1", "numbers": "5 8 3"}
                                        an object of whole numbers for each, here {"cat": 5, "dog": 8} and {"dog": 3}
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

MANY = 1000
"""The largest number of clients that are recorded one by one."""

Row = dict[str, Any]


_ABSENT = object()


class _Values:
    """A value for each client, any JSON value, or ``_ABSENT``."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values = list(values)

    def append(self, value: Any) -> None:
        self._values.append(value)

    def at(self, place: int) -> Any:
        return self._values[place]

    def as_json(self) -> dict[str, Any]:
        first = self._values[0]
        if absent := [place for place, value in enumerate(self._values) if value is _ABSENT]:
            return {"each": [None if value is _ABSENT else value for value in self._values], "absent": _text(absent)}
        if all(value == first for value in self._values):
            return {"all": first}
        if all(type(value) is int for value in self._values):
            return {"numbers": _text(self._values)}
        return {"each": self._values}


class _Same(_Values):
    """One value for all clients."""

    def at(self, place: int) -> Any:
        return self._values[0]


class _Lists:
    """A list of whole numbers for each client."""

    def __init__(self, sizes: Iterable[int] = (), numbers: Iterable[int] = ()) -> None:
        self._ends, self._numbers = array("q", accumulate(sizes, initial=0)), array("q", numbers)

    def append(self, value: Iterable[int]) -> None:
        self._numbers.extend(value)
        self._ends.append(len(self._numbers))

    def at(self, place: int) -> list[int]:
        return self._numbers[self._ends[place] : self._ends[place + 1]].tolist()

    def as_json(self) -> dict[str, Any]:
        return {"sizes": _text(end - start for start, end in pairwise(self._ends)), "numbers": _text(self._numbers)}


class _Counts:
    """Whole numbers by name for each client."""

    def __init__(self, names: Iterable[str] = (), keys: _Lists | None = None, numbers: _Lists | None = None) -> None:
        self._names = {name: number for number, name in enumerate(names)}
        self._keys, self._numbers = keys or _Lists(), numbers or _Lists()

    def append(self, value: Mapping[str, int]) -> None:
        self._keys.append([self._names.setdefault(name, len(self._names)) for name in value])
        self._numbers.append(value.values())

    def at(self, place: int) -> dict[str, int]:
        names = list(self._names)
        return {names[key]: count for key, count in zip(self._keys.at(place), self._numbers.at(place), strict=True)}

    def as_json(self) -> dict[str, Any]:
        keys = self._keys.as_json()["numbers"]
        return {"names": list(self._names), "keys": keys, **self._numbers.as_json()}


_Column = _Values | _Lists | _Counts


class ClientTable(Sequence[Row]):
    """The clients of a partition as objects, kept as columns."""

    def __init__(self, count: int, columns: Mapping[str, _Column]) -> None:
        self._count, self._columns = count, dict(columns)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> ClientTable:
        """The table of these objects, which are read one by one.

        Raises
        ------
        ValueError
            if some lack a key whose values are lists or objects.
        """
        count, columns = 0, dict[str, _Column]()
        for row in rows:
            columns |= {key: _column_of(value, count) for key, value in row.items() if key not in columns}
            for key, column in columns.items():
                if key not in row and not isinstance(column, _Values):
                    raise ValueError(f"client {count} has no '{key}', and those before it have")
                column.append(row.get(key, _ABSENT))
            count += 1
        return cls(count, columns)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClientTable:
        """The table that ``as_json`` describes."""
        return cls(int(value["count"]), {str(key): _read(column) for key, column in value["columns"].items()})

    def as_json(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {"count": self._count, "columns": {key: column.as_json() for key, column in self._columns.items()}}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, client: int) -> Row: ...

    @overload
    def __getitem__(self, client: slice) -> list[Row]: ...

    def __getitem__(self, client: Any) -> Any:
        if isinstance(client, slice):
            return [self[one] for one in range(*client.indices(self._count))]
        place = range(self._count)[client]
        values = ((key, column.at(place)) for key, column in self._columns.items())
        return {key: value for key, value in values if value is not _ABSENT}


def clients_of(rows: Iterable[Row], count: int) -> Sequence[Row]:
    """The clients of a partition as ``partition.json`` keeps them: a list, or columns if there are many."""
    return ClientTable.of(rows) if count > MANY else list(rows)


def as_stored(partition: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a partition as JSON values."""
    clients = partition.get("clients")
    return {**partition, **({"clients": clients.as_json()} if isinstance(clients, ClientTable) else {})}


def as_read(partition: dict[str, Any]) -> dict[str, Any]:
    """The record of a partition, from its JSON values: ``clients`` is a sequence of objects."""
    clients = partition.get("clients")
    return {**partition, "clients": ClientTable.from_json(clients)} if isinstance(clients, dict) else partition


def _column_of(value: Any, before: int) -> _Column:
    """A column for values like this one, which so many clients lack."""
    if not isinstance(value, list | dict):
        return _Values([_ABSENT] * before)
    if before:
        raise ValueError(f"client {before} has {value!r}, and those before it have nothing in its place")
    return _Lists() if isinstance(value, list) else _Counts()


def _read(column: Mapping[str, Any]) -> _Column:
    if "all" in column:
        return _Same([column["all"]])
    if "each" in column:
        absent = {*_numbers(column.get("absent", ""))}
        return _Values(_ABSENT if place in absent else value for place, value in enumerate(column["each"]))
    if "sizes" not in column:
        return _Values(_numbers(column["numbers"]))
    sizes = _numbers(column["sizes"])
    numbers = _Lists(sizes, _numbers(column["numbers"]))
    return _Counts(column["names"], _Lists(sizes, _numbers(column["keys"])), numbers) if "keys" in column else numbers


def _text(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]
