"""What is there of a run that stopped: whether it is finished, how far it may go back, and how it goes on."""

from __future__ import annotations

from fedquilt.config.schema import Config
from fedquilt.core.errors import RunError
from fedquilt.core.shell import command
from fedquilt.record import Record, read_result


def is_finished(record: Record) -> bool:
    """Whether a run has a result; raises RunError if files of it were changed."""
    if read_result(record.folder) is None:
        return False
    record.check()
    return True


def refuse_to_go_back(record: Record, config: Config, to: int) -> None:
    """Raise RunError if the rounds from ``to`` on must not be discarded, because they cost privacy budget."""
    if config.privacy.mode != "none" and to < record.next_round:
        raise RunError(
            f"{record.folder}: cannot go back with privacy.mode = '{config.privacy.mode}': what rounds {to + 1} to "
            f"{record.next_round} released stays released, and running them again would spend as much once more; start "
            "a new run"
        )


def advice(record: Record, config: Config) -> str:
    """Advice after a failed round: what the folder holds, and what may help."""
    held = "no earlier round is kept"
    if record.has_checkpoint:
        held = f"{record.folder / 'checkpoint.json'} holds the earlier rounds"
    rate = f"if losses are not finite, lower training.learning_rate ({config.training.learning_rate:g})"
    earlier = {number: finite for number, finite in record.kept.items() if number < record.next_round}
    sound = [number for number, finite in earlier.items() if finite] or [*earlier]
    back = f"; to go back: {command('run', '--resume', record.folder, '--from', sound[-1])}" if sound else ""
    return f"{held}; {rate} or set training.clip_norm, in a new run{back}"
