"""Marks for config values that replace wrong ones of the run file."""

from __future__ import annotations

from fedquilt.config.toml import Key


class Spoilt(frozenset[Key]):
    """The keys whose wrong value was replaced by a default or another stand-in."""

    def touches(self, *names: str) -> bool:
        """Whether one of these keys, or one in a table of these, is spoilt; ``"clients"`` or ``"clients.budgets"``."""
        wanted = [tuple(name.split(".")) for name in names]
        keys = [tuple(map(str, key)) for key in self]
        return any(key[: len(name)] == name[: len(key)] for key in keys for name in wanted)

    def in_group(self, place: int) -> Spoilt:
        """The spoilt keys of the group with this number, relative to the group."""
        return Spoilt(key[2:] for key in self if key[:2] == ("groups", place))

    def in_server(self) -> Spoilt:
        """The spoilt keys of the server's section, relative to it; the section itself is the key ``()``."""
        return Spoilt(key[1:] for key in self if key[:1] == ("server",))

    def under(self, section: str) -> Spoilt:
        """The spoilt keys inside this section."""
        return Spoilt(key for key in self if len(key) > 1 and key[0] == section)
