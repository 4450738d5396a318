"""Terminal output: progress bars on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from fedquilt.report.round_text import left_text, notices, round_text

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


class Shown:
    """Progress of a run: rounds, clients, steps and time left on a terminal; one line per round if piped."""

    def __init__(self, quiet: bool = False) -> None:
        self.live = errors.is_terminal and not quiet
        self.quiet = quiet
        self.name, self.total = "", 0
        self.ends = (0.0, 1)  # when everything will be done, and the number of unfinished runs
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),  # a terminal of 80 columns also holds the note
            MofNCompleteColumn(),
            TimeLeft(self.time_left),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
            disable=not self.live,
        )

    def __enter__(self) -> Shown:
        self.bars.start()
        self._rounds = self.bars.add_task("rounds", total=None, note="")
        self._clients = self.bars.add_task("clients", total=None, note="", visible=False)
        self._steps = self.bars.add_task("steps", total=None, note="", visible=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, name: str, first: int, rounds: int) -> None:
        self.name, self.total = name, rounds
        self.bars.reset(self._rounds, total=rounds, completed=first, description=name)

    def client(self, exchange: str, number: int, of: int) -> None:
        words = f"clients ({exchange})"
        self.bars.update(self._clients, completed=number, total=of, description=words, visible=True)

    def step(self, number: int, of: int) -> None:
        self.bars.update(self._steps, completed=number, total=of, visible=True)

    def runs(self, number: int, of: int | None) -> None:
        """Show the number of finished runs in place of rounds, for runs in parallel; None if the total is unknown."""
        self.bars.update(self._rounds, completed=number, total=of, description="runs")

    def forecast(self, seen: Forecast) -> None:
        self.ends = (time.monotonic() + seen.left, seen.runs)

    def time_left(self) -> str:
        """Return a text of the time that is left by the latest estimate, less what has passed since."""
        return left_text(self.ends[0] - time.monotonic(), self.ends[1])

    def round(self, line: Mapping[str, Any]) -> None:
        self.bars.update(self._rounds, completed=line["round"] + 1, note=round_text(line, brief=True))
        for text in notices(line):
            self._print(f"{self.name}: round {line['round'] + 1}/{self.total}: {text}")
        if not self.live and not self.quiet:
            self._print(f"{self.name}: round {line['round'] + 1}/{self.total}: {round_text(line)}")

    def say(self, text: str) -> None:
        """Print a permanent line above the bars, unless quiet."""
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def step_bar(name: str) -> Iterator[Callable[[int, int, float], None]]:
    """Yield ``report(step, steps, loss)``: a bar of one training on a terminal, a line every 200 steps elsewhere."""
    with Bars(*Bars.get_default_columns(), console=errors, disable=not errors.is_terminal) as bars:
        task = bars.add_task(name, total=None)

        def report(step: int, steps: int, loss: float) -> None:
            bars.update(task, completed=step, total=steps, description=f"{name}, loss {loss:.3f}")
            if not errors.is_terminal and (step % 200 == 0 or step == steps):
                errors.print(f"{name}: step {step}/{steps}, loss {loss:.3f}", highlight=False)

        yield report


def show_table(rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table whose first row is its heading; numbers are right-aligned, and a piped table is never folded."""
    heading, *body = rows
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    for number, name in enumerate(heading):
        numeric = number > 0 and all(re.fullmatch(r"[\d,.]+( \w+|%)?", row[number]) for row in body)
        # what does not fit is folded: half a number would be a wrong number
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    screen = out if out.is_terminal else Console(file=out.file, width=1000)
    screen.print(table)


def show_json(value: Any) -> None:
    """Print the value as JSON on standard output."""
    print(json.dumps(value, indent=2))
