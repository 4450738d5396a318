"""The class of each output of a classifier: matching the data's class names with the base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedquilt.core.errors import ConfigError
from fedquilt.data.classes import matched, numbered


class Outputs(NamedTuple):
    """The classes of a model's outputs, in the order of the outputs.

    ``classes`` are the data's names, ``names`` those in an exported model. ``foreign`` is the reason why the base's own
    head does not classify these classes, "" if it does or there is no head. ``redrawn`` says that the base's head has
    the same number of outputs but other classes, and must be initialised anew.
    """

    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    foreign: str = ""
    redrawn: bool = False

    def where(self, has_head: bool) -> Outputs:
        """These outputs if the base's weights have a head; without a head, no other classes are in the way."""
        return self if has_head else self._replace(foreign="", redrawn=False)

    def written(self, config: Any) -> None:
        """Write the names into a model's config, if there are any."""
        if self.names:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: index for index, name in enumerate(self.names)}


UNNAMED = Outputs()
"""The outputs of a model without class names."""


def named_by(config: Any) -> tuple[str, ...]:
    """The names of a config's outputs, in their order; () if not every output has one."""
    names: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    by_index = {int(key): str(name) for key, name in names.items()}
    return tuple(by_index[index] for index in sorted(by_index)) if set(by_index) == set(range(len(by_index))) else ()


def outputs_of(
    classes: Sequence[str], own: Sequence[str], *, labels: Sequence[str] = (), stated: bool = False
) -> Outputs:
    """Match the data's ``classes`` with ``own``, the names of the base's outputs.

    Names decide, and the base keeps its order: if both have the same classes, output ``i`` is the class that the base
    names for its output ``i``. ``labels`` are the names of the base's outputs in the run file (``model.labels``), which
    replace ``own``. If the base's names are only numbers, its outputs are taken in the data's order, and ``stated``
    says that the user gave this order.

    Raises
    ------
    ConfigError
        if ``labels`` does not have one name for each output of the base, or its names are not the data's classes.
    """
    classes, own = tuple(classes), tuple(own)
    if labels and len(labels) != len(own):
        raise ConfigError(
            f"model.labels names {len(labels)} classes ({_listed(labels)}), but the base has {len(own)} outputs; name "
            "each"
        )
    base = tuple(labels) or own
    bare = numbered(base)
    found = matched(classes, base)
    if len(base) == len(classes) and None not in found:
        order = sorted(range(len(classes)), key=lambda index: found[index] or 0)
        ordered = tuple(classes[index] for index in order)
        return Outputs(ordered, ordered if numbered(own) else own)
    if labels:
        raise ConfigError(
            f"model.labels = {_listed(labels)}: the data's classes are {_listed(classes)}; give the data's own names, "
            "in the order of the base's outputs"
        )
    if bare and len(base) == len(classes):
        reason = f"its outputs have no names, so which of them is which of {_listed(classes)} is not known"
        return Outputs(classes, classes, "" if stated else reason)
    shared = any(index is not None for index in found) and not bare
    reason = f"its outputs are {_listed(base)}, and the data's classes are {_listed(classes)}"
    if len(base) == len(classes):
        return Outputs(classes, classes, reason, redrawn=True)
    return Outputs(classes, classes, reason if shared else "")


def refuse_foreign(outputs: Outputs, name: str) -> None:
    """Raise ConfigError if the base's head, which stays frozen, classifies other classes.

    Raises
    ------
    ConfigError
        gives the reason and the alternatives.
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
