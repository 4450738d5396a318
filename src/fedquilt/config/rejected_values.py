"""Which values of a config are none that the user wrote."""

from __future__ import annotations

from fedquilt.config.toml import Key


class Spoilt(frozenset[Key]):
    """Keys of which the value is none that the user wrote: a default or another stand-in for what was wrong."""

    def touches(self, *names: str) -> bool:
        """Whether one of these keys, or one in a table of these, is spoilt; ``"clients"`` or ``"clients.budgets"``."""
        wanted = [tuple(name.split(".")) for name in names]
        keys = [tuple(map(str, key)) for key in self]
        return any(key[: len(name)] == name[: len(key)] for key in keys for name in wanted)

    def in_group(self, place: int) -> Spoilt:
        """What of the group at this place is spoilt, by the group's own keys."""
        return Spoilt(key[2:] for key in self if key[:2] == ("groups", place))

    def under(self, section: str) -> Spoilt:
        """The keys that are spoilt in this section, which is not so as a whole."""
        return Spoilt(key for key in self if len(key) > 1 and key[0] == section)
