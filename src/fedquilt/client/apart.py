"""Training of a model of two parts, each as if the other were not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedquilt.adapters.common.inject import CommonAdapters
from fedquilt.adapters.sites import is_shared
from fedquilt.core.worker import Fitted, Phase


def trained_apart(adapters: CommonAdapters, phases: Sequence[Phase], train: Callable[[list[Phase]], Fitted]) -> Fitted:
    """What ``train`` makes of the phases for each part in turn, together.

    Every part makes all steps of the round, with the same batches, in those phases that train something of it. Metrics
    are the means over the parts that were trained, and the sum of their steps.

    Parameters
    ----------
    adapters : the adapters in the model.
    phases : the phases of one cycle; they may train tensors of both parts.
    train : ``train(phases)`` trains the model, of which one part alone is there.
    """
    found = []
    for part in adapters.present:
        with adapters.alone(part):
            if own := _of(part, phases):
                found.append(train(own))
    if not found:
        return train([])
    metrics = {name: sum(one.metrics[name] for one in found) / len(found) for name in found[0].metrics}
    steps = sum(one.metrics["steps"] for one in found)
    params = {name: tensor for one in found for name, tensor in one.params.items()}
    return Fitted(params, found[0].num_examples, {**metrics, "steps": steps})


def _of(part: str, phases: Sequence[Phase]) -> list[Phase]:
    """The phases with the tensors of this part alone, without those that have none."""
    common = part == "common"
    own = (replace(each, names=frozenset(n for n in each.names if is_shared(n) == common)) for each in phases)
    return [each for each in own if each.names]
