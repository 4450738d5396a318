"""Which class each output of a classifier is: the data's names joined with the base model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedquilt.core.errors import ConfigError
from fedquilt.data.classes import numbered, places


class Outputs(NamedTuple):
    """The classes of a model's outputs, in their order.

    ``classes`` are the data's names, ``names`` what an exported model calls them. ``foreign`` says why the base's own
    head is not one of these classes, "" if it is or there is none. ``redrawn``: it has as many outputs but of other
    classes, so that it must be drawn anew.
    """

    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    foreign: str = ""
    redrawn: bool = False

    def where(self, has_head: bool) -> Outputs:
        """The same where the base's weights hold a head, or hold none, which then can be of no other classes."""
        return self if has_head else self._replace(foreign="", redrawn=False)

    def written(self, config: Any) -> None:
        """Puts the names into a model's config, where there are any."""
        if self.names:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: place for place, name in enumerate(self.names)}


UNNAMED = Outputs()
"""Of a model whose classes nobody has named."""


def named_by(config: Any) -> tuple[str, ...]:
    """What a config says of its outputs, in their order; () if it has no name for each of them."""
    told: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    by_place = {int(key): str(name) for key, name in told.items()}
    return tuple(by_place[place] for place in sorted(by_place)) if set(by_place) == set(range(len(by_place))) else ()


def outputs_of(
    classes: Sequence[str], own: Sequence[str], *, told: Sequence[str] = (), stated: bool = False
) -> Outputs:
    """The outputs of a model for ``classes``, the data's, where ``own`` are the names of the base's outputs.

    Names decide, and the base's order is kept: where both have the same classes, output ``i`` is what the base calls
    its output ``i``. ``told`` is what the run file says that the base's outputs are, in place of ``own``. Where the
    base's names are numbers only, its outputs are in the data's order; ``stated`` says that the user gave that order.

    Raises
    ------
    ConfigError
        if ``told`` has not one name for each output of the base, or they are not the data's classes.
    """
    classes, own = tuple(classes), tuple(own)
    if told and len(told) != len(own):
        raise ConfigError(
            f"model.labels names {len(told)} classes ({_listed(told)}), and the base has {len(own)} outputs; name each"
        )
    base = tuple(told) or own
    bare = numbered(base)
    found = places(classes, base)
    if len(base) == len(classes) and None not in found:
        order = sorted(range(len(classes)), key=lambda place: found[place] or 0)
        ordered = tuple(classes[place] for place in order)
        return Outputs(ordered, ordered if numbered(own) else own)
    if told:
        raise ConfigError(
            f"model.labels = {_listed(told)}: the data's classes are {_listed(classes)}; give the data's own names, in "
            "the order of the base's outputs"
        )
    if bare and len(base) == len(classes):
        reason = f"its outputs have no names, so which of them is which of {_listed(classes)} is not known"
        return Outputs(classes, classes, "" if stated else reason)
    shared = any(place is not None for place in found) and not bare
    reason = f"its outputs are {_listed(base)}, and the data's classes are {_listed(classes)}"
    if len(base) == len(classes):
        return Outputs(classes, classes, reason, redrawn=True)
    return Outputs(classes, classes, reason if shared else "")


def refuse_foreign(outputs: Outputs, name: str) -> None:
    """Nothing, if a head that nobody trains is one of these classes.

    Raises
    ------
    ConfigError
        if the base's own head is of other classes.
    """
    if outputs.foreign:
        raise ConfigError(
            f"head.policy = 'frozen': the head of model '{name}' stays as it is, and {outputs.foreign}; set "
            "head.policy = 'aggregate', name the classes in data.classes as the base does, or say in model.labels "
            "what the base's outputs are, in their order"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
