"""Terminal output: progress bars on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedquilt.cli.now import EVERY, Heartbeat, Now, now_left
from fedquilt.report.layout import laid_out
from fedquilt.report.round_text import notices, round_text

if TYPE_CHECKING:
    from fedquilt.experiment.forecast import Forecast

out = Console()
errors = Console(stderr=True)


class TimeLeft(ProgressColumn):
    """A text in the first row of the bars."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        """Return the text, which is empty in all other rows."""
        return Text(self._text() if task.id == 0 else "")


class Known(MofNCompleteColumn):
    """How much of a row is done; empty while it is not known of how much."""

    def render(self, task: Task) -> Text:
        """Return the two numbers, or an empty text."""
        return Text("") if task.total is None else super().render(task)


class Shown:
    """Progress of runs: bars and the time left on a terminal; lines if piped, one per round and now and then.

    Runs that follow one another are shown in the same row, with the clients and steps below it; runs in parallel have a
    row each, below that of the finished ones.

    Parameters
    ----------
    quiet
        Show only what must be known, such as dropped clients.
    every
        Seconds without a line after which one is printed, if piped; longer in runs that take long.
    """

    def __init__(self, quiet: bool = False, every: float = EVERY) -> None:
        self.live = errors.is_terminal and not quiet
        self.quiet = quiet
        self.now = Now()
        self.ends: tuple[float, int] | None = None  # when all will be done, and the number of unfinished runs
        self._rows: dict[str, TaskID] | None = None  # of runs in parallel
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),  # a terminal of 80 columns also holds the note
            Known(),
            TimeLeft(self.time_left),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
            disable=not self.live,
        )
        self._beat = Heartbeat(self._words, self._print, every)

    def __enter__(self) -> Shown:
        self.bars.start()
        self._rounds = self.bars.add_task("rounds", total=None, note="", visible=False)
        self._clients = self.bars.add_task("clients", total=None, note="", visible=False)
        self._steps = self.bars.add_task("steps", total=None, note="", visible=False)
        self._stage: TaskID | None = None
        if not self.live and not self.quiet:
            self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beat.stop()
        self.bars.stop()

    def started(self, name: str, first: int, rounds: int) -> None:
        self.now.started(name, first, rounds)
        self._work()
        if self._rows is None:
            self.bars.reset(self._rounds, total=rounds, completed=first, description=name, visible=True)
        else:
            self._rows[name] = self.bars.add_task(name, total=rounds, completed=first, note="")

    def stage(self, name: str, text: str) -> None:
        self.now.stage(name, text)
        if self._rows is None:
            self._work()
            self._stage = self.bars.add_task(text, total=None, note="")
        elif name in self._rows:
            self.bars.update(self._rows[name], note=text)

    def client(self, exchange: str, number: int, of: int) -> None:
        self.now.client(exchange, number, of)
        self._work()
        words = f"clients ({exchange})"
        self.bars.update(self._clients, completed=number, total=of, description=words, visible=True)

    def step(self, number: int, of: int) -> None:
        self.now.step(number, of)
        self._work()
        self.bars.update(self._steps, completed=number, total=of, visible=True)

    def runs(self, number: int, of: int) -> None:
        self.now.runs(number, of)
        self._rows = {} if self._rows is None else self._rows
        self.bars.update(self._rounds, completed=number, total=of, description="runs", visible=True)

    def forecast(self, seen: Forecast) -> None:
        self.ends = (time.monotonic() + seen.left, seen.runs)

    def round(self, line: Mapping[str, Any]) -> None:
        self.now.round(line)
        self._work()
        row = self._rounds if self._rows is None else self._rows.get(line["run"], self._rounds)
        self.bars.update(row, completed=line["round"] + 1, note=round_text(line, brief=True))
        begin = f"{line['run']}: round {line['round'] + 1}/{line['rounds']}"
        for text in notices(line):
            self._print(f"{begin}: {text}")
        if not self.live and not self.quiet:
            self._print(f"{begin}: {round_text(line)}")

    def ended(self, name: str) -> None:
        self.now.ended(name)
        self._work()
        if self._rows is not None and name in self._rows:
            self.bars.remove_task(self._rows.pop(name))

    def say(self, text: str) -> None:
        """Print a permanent line above the bars, unless quiet."""
        if not self.quiet:
            self._print(text)

    def _work(self) -> None:
        """Remove the row of what was done while no client worked."""
        if self._stage is not None:
            self.bars.remove_task(self._stage)
            self._stage = None

    def time_left(self) -> str:
        """Return a text of the time that is left by the latest estimate, less what has passed since."""
        return "" if self.ends is None else now_left(self.ends[0] - time.monotonic(), self.ends[1])

    def _words(self) -> str:
        return ", ".join(filter(None, [self.now.text(), self.time_left()]))

    def _print(self, text: str) -> None:
        self._beat.reset()
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def step_bar(name: str, every: float = EVERY) -> Iterator[Callable[[int, int, float], None]]:
    """Yield ``report(step, steps, loss)``: a bar of one training on a terminal, a line now and then elsewhere."""
    began, words, left = time.monotonic(), name, ""

    def say(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), Known(), TimeLeft(lambda: left))
    beat = Heartbeat(lambda: "" if errors.is_terminal else ", ".join(filter(None, [words, left])), say, every)
    with Bars(*columns, console=errors, disable=not errors.is_terminal) as bars, beat:
        task = bars.add_task(name, total=None)

        def report(step: int, steps: int, loss: float) -> None:
            nonlocal words, left
            words = f"{name}: step {step}/{steps}, loss {loss:.3f}"
            left = now_left((time.monotonic() - began) / step * (steps - step)) if 0 < step < steps else ""
            bars.update(task, completed=step, total=steps, description=f"{name}, loss {loss:.3f}")
            if not errors.is_terminal and (step % 200 == 0 or step == steps):
                beat.reset()
                say(words)

        yield report


def show_table(rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table whose first row is its heading, as wide as the terminal; a piped table is never folded."""
    text = laid_out(rows, terminal_width())
    out.print(
        text if title is None else f"{title}:\n\n{text}", "", sep="\n", markup=False, highlight=False, soft_wrap=True
    )


def terminal_width() -> int | None:
    """The number of columns of the terminal; None where output is piped."""
    return out.width if out.is_terminal else None


def show_json(value: Any) -> None:
    """Print the value as JSON on standard output."""
    print(json.dumps(value, indent=2))
