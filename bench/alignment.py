"""Private alignment of three parties' files over Flower: real processes on loopback, TLS and node authentication.

    python bench/alignment.py                             # private set intersection of 100,000 rows at each party
    python bench/alignment.py --alignment keyed-hash

Each party reads the ids of its own file; the active party is the server. It prints the seconds of each exchange and the
bytes each way. Then every party's rows are compared with Python's intersection of the files, and every message that
passed the server, in either direction, is searched for every id: as text, in other encodings, as a hash that nobody
needs a key for, and as the unblinded point of the curve. It exits with 1 if the rows are wrong or an id is found.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "contract"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "engine" / "flower"))

import torch
from aligned_parties import KEY, Party, counting
from in_process_grid import cards_of
from wire_audit import content_of, leaks

from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Profile
from fedquilt.data.ids import id_list
from fedquilt.engine.flower.client import Site, client_app, memory_folder
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.engine.flower.processes import tail
from fedquilt.engine.flower.strategy import MethodStrategy
from fedquilt.vertical.alignment.exchanges import Held
from fedquilt.vertical.alignment.wrapper import aligned_rows, with_alignment

PARTIES = ("active", "0", "1")
RUN = "0123456789abcdef"
AT_ONCE = 20_000
"""Ids that are searched for at once; the traces of more would need gigabytes."""

PYPROJECT = """\
[project]
name = "alignment"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedquilt"
fab-include = ["app/*.py"]

[tool.flwr.app.components]
serverapp = "app.server:app"
clientapp = "app.site:app"

[tool.flwr.app.config]
"""

SIDE = """\
import sys
from pathlib import Path

sys.path.insert(0, {bench!r})

import alignment

app = alignment.{side}(Path({folder!r}))
"""


def write_files(folder: Path, rows: int, shared: float) -> None:
    """Write a file for each party: ``shared`` of its rows are everybody's, the others its own or one other party's."""
    common = round(rows * shared)
    own = (rows - common) // 2
    for number, party in enumerate(PARTIES):
        # halves of what is not common overlap with the next party's
        numbers = [*range(common), *range(common + number * own, common + number * own + rows - common)]
        order = torch.randperm(rows, generator=Rng(1, (party,)).torch()).tolist()
        with (folder / f"{party}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["customer", "value"])
            writer.writerows([f"customer-{numbers[row]:09d}", row] for row in order)


def ids_of(folder: Path, party: str) -> tuple[str, ...]:
    """Return the ids of a party's file."""
    path = folder / f"{party}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return id_list((row["customer"] for row in csv.DictReader(file)), path, "customer")


def profiles(folder: Path) -> tuple[Profile, ...]:
    """Return what the server knows about the passive parties."""
    rows = json.loads((folder / "options.json").read_text())["rows"]
    return tuple(Profile(number, rows, "none", Budget(0), "rows") for number in range(len(PARTIES) - 1))


def method_of(folder: Path, own: Held | None) -> Method:
    """Return the alignment, with one exchange behind it."""
    return with_alignment(counting(), json.loads((folder / "options.json").read_text())["alignment"], own)


def server(folder: Path) -> Any:
    """Return the server's app, which writes its result and all messages below ``folder``."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        began = time.perf_counter()
        own = Held(ids_of(folder, "active"), KEY)
        method, taken = timed(method_of(folder, own))
        listened_to(grid, folder / "messages")
        strategy = MethodStrategy(
            method, profiles(folder), cards_of(method, profiles(folder)), Rng(1), run=RUN, quorum=1.0
        )
        (done,) = strategy.rounds(grid, 1)
        exchanges = [
            {"name": moved.exchange, **taken[moved.exchange]}
            | {way: list(getattr(moved, way).values()) for way in ("bytes_down", "bytes_up")}
            for moved in done.traffic
        ]
        found = {"seconds": done.seconds, "exchanges": exchanges, "rows": done.state["alignment"]["rows"].tolist()}
        made = folder / "result.part"
        made.write_text(json.dumps({**found, "whole": time.perf_counter() - began}))
        made.rename(folder / "result.json")

    return app


def site(folder: Path) -> Any:
    """Return the app of a passive party."""
    found: dict[int, Site] = {}

    def join(partition: int, node: Any) -> Site:
        if partition not in found:
            method, own = method_of(folder, None), profiles(folder)
            party = Party(partition, ids_of(folder, str(partition)))
            found[partition] = Site(partition, party, method, cards_of(method, own)[partition])
        return found[partition]

    return client_app(join, folder / "sites")


def timed(method: Method) -> tuple[Method, dict[str, dict[str, float]]]:
    """Return the method, and the seconds of each exchange, which are filled in: all, and the active party's own work.

    The audit's writing of messages to disk falls into the former.
    """
    seconds: dict[str, dict[str, float]] = {}

    def clocked(exchange: Exchange) -> Exchange:
        began = 0.0

        def ask(*given: Any) -> Any:
            nonlocal began
            began = time.perf_counter()
            return exchange.ask(*given)

        def merge(state: Any, replies: Any) -> Any:
            arrived = iter([*replies])
            there = time.perf_counter()
            merged = exchange.merge(state, arrived)
            ended = time.perf_counter()
            seconds[exchange.name] = {"seconds": ended - began, "active": ended - there}
            return merged

        return exchange._replace(ask=ask, merge=merge)

    return method._replace(exchanges=tuple(clocked(own) for own in method.exchanges)), seconds


def listened_to(grid: Any, folder: Path) -> None:
    """Write the content of every message that the grid sends or gets into a file below ``folder``."""
    folder.mkdir()
    push, pull = grid.push_messages, grid.pull_messages

    def noted(messages: Any) -> list[Any]:
        held = list(messages)
        for message in held:
            (folder / f"{len([*folder.iterdir()]):04d}").write_bytes(content_of(message))
        return held

    grid.push_messages = lambda messages: push(noted(messages))
    grid.pull_messages = lambda ids: noted(pull(ids))


def run(folder: Path, seconds: float) -> dict[str, Any]:
    """Run the app on a federation of its own; return the server's result."""
    package = folder / "alignment-app" / "app"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").touch()
    bench = str(Path(__file__).resolve().parent)
    for side in ("server", "site"):
        (package / f"{side}.py").write_text(SIDE.format(bench=bench, side=side, folder=str(folder)))
    with Trial(folder / "trial", len(PARTIES) - 1) as trial:
        trial.ready()
        trial.flwr("run", str(package.parent), "trial")
        began = time.monotonic()
        while not (folder / "result.json").exists():
            if time.monotonic() - began > seconds:
                raise SystemExit(f"no result after {seconds:g} s: {tail(trial.process('superlink'), 40)}")
            time.sleep(0.5)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def wrong_rows(folder: Path, rows: list[int]) -> list[str]:
    """Return what is wrong with the parties' rows, in words."""
    ids = {party: ids_of(folder, party) for party in PARTIES}
    expected = set.intersection(*map(set, ids.values()))
    order = [ids["active"][row] for row in rows]
    wrong = [] if set(order) == expected and len(order) == len(expected) else ["active: another set than Python's"]
    for number in range(len(PARTIES) - 1):
        memory = MemoryStore(memory_folder(folder / "sites", RUN, number)).newest
        own = [ids[str(number)][row] for row in aligned_rows(memory).tolist()]
        wrong += [] if own == order else [f"client {number}: other rows or another order than the active party's"]
    return wrong


def audited(folder: Path, points: bool) -> tuple[int, int, int]:
    """Return how many traces of ids the messages hold, the number of messages and their bytes."""
    messages = [path.read_bytes() for path in sorted((folder / "messages").iterdir())]
    every = sorted({one for party in PARTIES for one in ids_of(folder, party)})
    found = sum(len(leaks(messages, some, points)) for some in _cut(every))
    planted = every[len(every) // 2]
    if not leaks([*messages[:1], b"x" + planted.encode()], [planted], points):
        raise SystemExit("the audit does not notice an id in a message")
    return found, len(messages), sum(map(len, messages))


def _cut(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start : start + AT_ONCE]


def printed(result: dict[str, Any], said: Callable[[str], None] = print) -> None:
    """Print the table."""
    said("| exchange | seconds | of them the active party alone | MB down, each party | MB up, each party |")
    said("|---|---|---|---|---|")
    for own in result["exchanges"]:
        down, up = ("; ".join(f"{size / 1e6:.2f}" for size in own[way]) for way in ("bytes_down", "bytes_up"))
        said(f"| {own['name']} | {own['seconds']:.1f} | {own['active']:.1f} | {down} | {up} |")
    down, up = (sum(sum(own[way]) for own in result["exchanges"]) / 1e6 for way in ("bytes_down", "bytes_up"))
    said(f"| all, both parties | {result['seconds']:.1f} | | {down:.2f} | {up:.2f} |")


def main() -> int:
    """Measure and print; return 1 if the rows are wrong or an id was found on the wire."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each party's file")
    parser.add_argument("--shared", type=float, default=0.2, help="share of the rows that all parties hold")
    parser.add_argument("--alignment", default="psi", choices=["psi", "keyed-hash"])
    parser.add_argument("--seconds", type=float, default=1200, help="time limit")
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignment-") as made:
        folder = Path(made).resolve()
        (folder / "options.json").write_text(json.dumps({"rows": words.rows, "alignment": words.alignment}))
        write_files(folder, words.rows, words.shared)
        load = os.getloadavg()[0]
        result = run(folder, words.seconds)
        wrong = wrong_rows(folder, result["rows"])
        found, messages, size = audited(folder, words.alignment == "psi")
    common = len(result.pop("rows"))
    audit = {"messages": messages, "bytes": size, "found": found, "wrong": wrong}
    if words.json:
        print(json.dumps({**result, "common": common, "load_before": load, "audit": audit}))
    else:
        print(f"{words.alignment}, {words.rows} rows at each of {len(PARTIES)} parties, load {load:.1f} before")
        printed(result)
        print(f"rows that all parties hold: {common}; {'; '.join(wrong) or 'as Python says, in one order'}")
        print(f"audit: {messages} messages, {size / 1e6:.2f} MB, {found} traces of ids")
    return 1 if wrong or found else 0


if __name__ == "__main__":
    sys.exit(main())
