"""One round of a Trainer: its ``train()`` from where it stopped, up to the end of the round.

What the Trainer keeps between two rounds (optimiser, schedule, random state, callbacks, progress) are the files of its
own checkpoint without the weights. It writes and reads them itself, so every optimiser that it can resume is resumed.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import Trainer, TrainerCallback, set_seed

from fedquilt.core.errors import ConfigError, FedquiltError, TrainingError

log = logging.getLogger("flwr")  # Flower shows the lines of this logger to the site

Files = dict[str, Tensor]
"""The contents of a checkpoint's files, as bytes, by name."""

_STATE, _OPTIMIZER = "trainer_state.json", "optimizer.pt"


class Trained(NamedTuple):
    """What a round of a Trainer left: the mean loss of its steps, their number, and what it resumes from."""

    loss: float
    steps: int
    files: Files


def is_trainer(value: Any) -> bool:
    """Whether this is a Trainer of transformers, or derives from one."""
    return isinstance(value, Trainer)


def is_quantized(model: Any) -> bool:
    """Whether a model of transformers, also one in a PeftModel, has quantised weights."""
    config = getattr(model, "config", None)
    return bool(getattr(model, "is_quantized", False)) or getattr(config, "quantization_config", None) is not None


def refuse_unusable(trainer: Any) -> None:
    """Raise ConfigError for a Trainer whose rounds cannot be a part of one training, with the setting to change."""
    args = trainer.args
    reasons = {
        "args.load_best_model_at_end = True: the model after a round must be the one that was trained last; set it to "
        "False": args.load_best_model_at_end,
        "model_init: the model would be made anew in every round; give the trainer a model": trainer.model_init,
        "args.save_only_model = True: a round could not go on where the last one stopped; set it to False": (
            args.save_only_model
        ),
        "its model's base is quantised, and the server checks the base's weights; load the model without "
        "quantization_config (dtype=torch.bfloat16 halves its memory)": is_quantized(trainer.model),
        "it trains in several processes, or under DeepSpeed or FSDP; start it on one device": (
            args.world_size > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"the trainer cannot be federated: {reason}")


def trained(trainer: Any, number: int, rounds: int, files: Mapping[str, Tensor], *, keep: bool) -> Trained:
    """Train the model, which holds the round's tensors, for one of so many rounds.

    The trainer's own ``max_steps`` or ``num_train_epochs`` are divided evenly among the rounds, so that the schedule of
    the learning rate is that of the whole training. A client that missed rounds goes on at the schedule's place for
    this round.

    Parameters
    ----------
    trainer
        The Trainer.
    number, rounds
        The number of the round, from 0, and of all rounds.
    files
        What the round resumes from; empty in a client's first round.
    keep
        Whether the optimiser's state is kept from one round to the next.

    Raises
    ------
    TrainingError
        if there is no such round, there are fewer steps than rounds, or the trainer fails.
    """
    if not 0 <= number < rounds:  # the number is the server's, and the schedule would run on to it
        raise TrainingError(f"the order is of round {number + 1}, and the run has {rounds}")
    if not files:  # as in the Trainer's constructor, so that a round does not depend on what this process did before
        set_seed(trainer.args.seed)
        if trainer.optimizer is not None:
            trainer.optimizer.state.clear()
    stop = _Round(number, rounds, forget=not keep)
    trainer.add_callback(stop)
    try:
        with failures_kept_here(), tempfile.TemporaryDirectory(prefix="fedquilt-") as made:
            folder = Path(made) / "before"
            if files:
                with _only_here(trainer.args):
                    trainer.save_model(str(folder))
                for name, content in files.items():
                    (folder / name).write_bytes(content.numpy().tobytes())
            done = trainer.train(resume_from_checkpoint=str(folder) if files else None)
            kept = _checkpoint(trainer, Path(made) / "after")
    finally:
        trainer.remove_callback(stop)
    if not stop.steps:
        raise TrainingError("the trainer did no step in this round; it needs rows, and one step or more for each round")
    # the Trainer divides by the steps since its start, among them those that were only skipped
    loss = float(done.training_loss) * (stop.steps + stop.missed) / stop.steps
    return Trained(loss, stop.steps, kept)


def _checkpoint(trainer: Any, folder: Path) -> Files:
    """The files of the checkpoint that the Trainer writes, without weights."""
    args = trainer.args
    chosen, limit = args.output_dir, args.save_total_limit
    args.output_dir, args.save_total_limit = str(folder), None
    try:
        with _only_here(args):
            trainer._save_checkpoint(trainer.model, trial=None)
    finally:
        args.output_dir, args.save_total_limit = chosen, limit
    (made,) = folder.glob("checkpoint-*")
    wanted = [path for path in made.iterdir() if path.suffix in (".pt", ".pth") or path.name == _STATE]
    return {path.name: torch.from_numpy(np.fromfile(path, np.uint8)) for path in sorted(wanted)}


@contextmanager
def failures_kept_here() -> Iterator[None]:
    """Log what a Trainer raises at its site, and raise TrainingError without the text, which may hold a row.

    The reason of a failure travels to the server.
    """
    try:
        yield
    except FedquiltError:
        raise
    except Exception as error:  # whatever the user's script raises
        log.exception("the trainer failed")
        raise TrainingError(f"the trainer failed ({type(error).__name__}); the site's own log says why") from error


@contextmanager
def _only_here(args: Any) -> Iterator[None]:
    """What is saved inside the block is not pushed to the hub."""
    pushes, args.push_to_hub = args.push_to_hub, False
    try:
        yield
    finally:
        args.push_to_hub = pushes


class _Round(TrainerCallback):
    """Ends the training with the round. ``steps`` were done, and ``missed`` skipped before them."""

    def __init__(self, number: int, rounds: int, *, forget: bool) -> None:
        self.number, self.rounds, self.forget = number, rounds, forget
        self.steps = self.missed = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **others: Any
    ) -> None:
        if state.max_steps < self.rounds:
            raise TrainingError(
                f"the trainer does {state.max_steps} steps in all, fewer than the run's {self.rounds} rounds; raise "
                "args.max_steps or args.num_train_epochs"
            )
        self.missed = max(0, self._end(self.number - 1, state) - state.global_step)
        state.global_step += self.missed
        if not isinstance(lr_scheduler.scheduler if hasattr(lr_scheduler, "scheduler") else lr_scheduler, _UNTIMED):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # meant: steps were missed
                for _ in range(self.missed):
                    lr_scheduler.step()
        if self.forget:
            optimizer.state.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.steps += 1
        if state.global_step >= self._end(self.number, state):
            control.should_training_stop = True

    def _end(self, number: int, state: Any) -> int:
        return math.ceil(int(state.max_steps) * (number + 1) / self.rounds)


_UNTIMED = (ReduceLROnPlateau,)  # it follows a metric, and has no place for a step that was not done
