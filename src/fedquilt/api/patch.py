"""A Hugging Face Trainer as a client of a federation, in two lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from fedquilt.core.errors import ConfigError

if TYPE_CHECKING:
    from fedquilt.experiment.trainer_site import Patched


def patch(
    trainer: Any | Callable[[Mapping[str, Any]], Any],
    *,
    optimizer: Literal["kept", "reset"] = "kept",
    examples: int | None = None,
) -> Patched:
    """Make a ``transformers.Trainer``, or one that derives from it such as TRL's ``SFTTrainer``, a federated client.

    Its script stays as it is: the model with its adapter, rows, collator, arguments, loss and callbacks are the
    Trainer's own. A round is a part of its ``train()``; the steps of ``args.max_steps`` or ``args.num_train_epochs``
    are divided among the run's rounds. The script is named by the node's config, as ``trainer``; see
    ``docs/guide/patch.md``.

    Parameters
    ----------
    trainer
        The Trainer, or a function that makes it from the config of the site's node.
    optimizer
        ``"kept"``: the optimiser goes on with its state from round to round. ``"reset"``: it starts anew in each round,
        as usual in federated averaging.
    examples
        The number of training rows, by which replies are weighed; the length of ``train_dataset`` if left out.

    Raises
    ------
    ConfigError
        if the Trainer is none, or one of its settings is not for rounds.
    """
    from fedquilt.experiment.trainer_site import Patched
    from fedquilt.trainer.rounds import is_trainer, refuse_unusable

    if optimizer not in ("kept", "reset"):
        raise ConfigError(f"optimizer = {optimizer!r}: must be 'kept' or 'reset'")
    if examples is not None and (not isinstance(examples, int) or isinstance(examples, bool) or examples < 1):
        raise ConfigError(f"examples = {examples!r}: must be a whole number from 1")
    if is_trainer(trainer):
        refuse_unusable(trainer)
        return Patched(lambda node: trainer, optimizer, examples)
    if not callable(trainer):
        raise ConfigError(f"fedquilt.patch: got {type(trainer).__name__}; give a transformers.Trainer")
    return Patched(trainer, optimizer, examples)
