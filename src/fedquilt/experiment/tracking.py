"""What trackers are sent of a run, and the one place where their failures are caught and their time is bounded.

Everything that is sent stands here: numbers of the record, and settings without names, paths and keys.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from fedquilt.config.load import resolved
from fedquilt.config.schema import Config
from fedquilt.core.track import Track
from fedquilt.experiment.trackers import TRACKERS, Tracked, Tracker
from fedquilt.record import Record, read_environment, read_rounds
from fedquilt.report.runs import bytes_of
from fedquilt.report.scores import score_of

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")  # of an environment variable's name
_SENT = ("method", "adapter", "training", "aggregation", "head")
_OTHERS = ("seed", "rounds", "partition.scheme", "partition.num_clients", "clients.cohort", "privacy.mode")
_MEASURES = {
    "clients/mean_accuracy": "clients-mean",
    "clients/worst_accuracy": "clients-worst",
    "clients/deviation_of_accuracy": "clients-deviation",
    "received/mean_accuracy": "received-mean",
}

_SECONDS = 30.0  # that the run waits for a tracker: once, since nobody waits for one that was late before
_LAST_SECONDS = 60.0  # that it waits for one to send what is left when the run ends


class _OwnThread:
    """A thread that does one call after another, so that a call that never returns holds nobody up."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._free = Event()
        self._free.set()
        Thread(target=self._work, daemon=True).start()

    def begin(self, call: Callable[[], object]) -> None:
        """Begin a call; the thread must be free."""
        self._free.clear()
        self._calls.put(call)

    def is_free(self, seconds: float) -> bool:
        """Return whether the last call ends within so many seconds; raises what it raised."""
        free = self._free.wait(seconds)
        if free and (error := self._error) is not None:
            self._error = None
            raise error
        return free

    def end(self) -> None:
        """End the thread once it is free."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # raised where the call is waited for
                self._error = error
            self._free.set()


class Tracking:
    """The trackers of a run.

    Parameters
    ----------
    track
        The settings.
    run
        The run.
    say
        Receives what the user should know.
    bytes_before
        The bytes that were sent in the rounds before.
    """

    def __init__(self, track: Track, run: Tracked, say: Callable[[str], None], bytes_before: int = 0) -> None:
        self._clients, self._say, self._bytes = track.clients, say, bytes_before
        self._following: dict[str, Tracker] = {}
        self._failed: dict[str, str] = {}
        self._late: set[str] = set()
        self._finished = False
        self._threads: dict[str, _OwnThread] = {name: _OwnThread() for name in track.trackers}
        for name in track.trackers:
            self._call(name, partial(self._begin, name, run))
            if name in self._following:
                say(f"{name} follows the run: {without_secrets(self._following[name].shown)}")

    def _begin(self, name: str, run: Tracked) -> None:
        self._following[name] = TRACKERS[name](run)

    def round(self, line: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Send the numbers of a finished round; ``names`` are those of clients."""
        self._bytes += sum(bytes_of(line))
        total = {"bytes/total": float(self._bytes)}
        self._log(line["round"] + 1, lambda: numbers_of(line, names, self._clients) | total)

    def ended(self, rounds: int, ended: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Send the scores of the final model; ``ended`` is ``round_record.final_record``."""

        def numbers() -> dict[str, float]:
            scores = scores_of({"evaluation": ended["final"], "exchanges": []}, names, self._clients)
            return {f"final/{name}": value for name, value in scores.items()}

        self._log(rounds, numbers, _SECONDS)
        self._finished = True

    def close(self) -> None:
        """End all trackers."""
        for name, thread in [*self._threads.items()]:
            self._call(name, partial(self._end, name), _LAST_SECONDS, _LAST_SECONDS)
            thread.end()

    def failures(self) -> dict[str, Any]:
        """Return the part of the record that names trackers that failed since the last call, and why."""
        found, self._failed = self._failed, {}
        return {"tracking": found} if found else {}

    def _log(self, step: int, numbers: Callable[[], Mapping[str, float]], seconds_before: float = 0.0) -> None:
        for name in [*self._threads]:
            self._call(name, partial(self._send, name, step, numbers), seconds_before)

    def _send(self, name: str, step: int, numbers: Callable[[], Mapping[str, float]]) -> None:
        self._following[name].log(step, numbers())

    def _end(self, name: str) -> None:
        self._following[name].end(self._finished)

    def _call(
        self, name: str, call: Callable[[], object], seconds_before: float = 0.0, seconds: float | None = None
    ) -> None:
        """Have a tracker's thread do a call, or leave it out if the thread is not free in time.

        The run waits for the end of the call for so many seconds; by default only if the tracker was never late.
        If a call fails in whatever way, the tracker is given up; the run goes on in any case.
        """
        thread = self._threads[name]
        if seconds is None:
            seconds = 0.0 if name in self._late else _SECONDS
        try:
            if not thread.is_free(seconds_before):
                return
            thread.begin(call)
            if not thread.is_free(seconds):
                self._is_late(name, seconds)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit, and the panics of libraries in Rust
            del self._threads[name]
            thread.end()
            text = without_secrets(str(error)).strip()
            reason = f"{type(error).__name__}: {(text.splitlines() or ['no message'])[0][:300]}"
            self._failed[name] = reason
            self._say(f"warning: {name} follows the run no more ({reason}); the run goes on, and its record is whole")

    def _is_late(self, name: str, seconds: float) -> None:
        if name in self._late:
            return
        self._late.add(name)
        self._failed[name] = f"did not answer within {seconds:g} s; what it could not take since was left out"
        self._say(
            f"warning: {name} did not answer within {seconds:g} s; the run goes on without waiting for it, and its "
            f"record is whole. Rounds that end while {name} is still busy are missing there"
        )


def without_secrets(text: str) -> str:
    """A text for people and records without the passwords of addresses, and without keys of the environment."""
    text = _CREDENTIALS.sub("", text)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, f"${name}")
    return text


@contextmanager
def tracking(config: Config, record: Record, start: int, say: Callable[[str], None]) -> Iterator[Tracking]:
    """Yield the trackers of a run that goes on with round ``start``, and end them."""
    around = read_environment(record.folder)
    before = [line for line in read_rounds(record.folder) if line["round"] < start] if start else []
    run = Tracked(
        key=hashlib.sha256(str(around.get("run_key")).encode()).hexdigest()[:16],  # the key itself is for sites alone
        project=config.track.project,
        name=record.folder.name,
        group=config.name,
        folder=Path(config.track.folder),
        settings=settings_of(config),
        first=start + 1,
    )
    made = Tracking(config.track, run, say, sum(sum(bytes_of(line)) for line in before))
    try:
        yield made
    finally:
        made.close()


def settings_of(config: Config) -> dict[str, Any]:
    """The settings of a run that are sent: numbers and choices, without names of sites, paths, texts and keys."""
    keys = resolved(config)
    found = {f"{section}.{key}": value for section in _SENT for key, value in keys[section].items()}
    for name in _OTHERS:
        section, _, key = name.rpartition(".")
        found[name] = (keys[section] if section else keys)[key]
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str)}


def numbers_of(line: Mapping[str, Any], names: Mapping[str, str], clients: bool) -> dict[str, float]:
    """The numbers of a round by name; those of single clients and groups only if ``clients``."""
    replied = {client: sent for exchange in line["exchanges"] for client, sent in exchange["clients"].items()}
    losses = [
        sent["metrics"]["loss"]
        for exchange in line["exchanges"]
        for sent in exchange["clients"].values()
        if "loss" in sent["metrics"]
    ]
    up, down = bytes_of(line)
    numbers: dict[str, Any] = {
        "bytes/up": up,
        "bytes/down": down,
        "clients/replied": len(replied),
        "clients/dropped": sum(len(exchange["dropped"]) for exchange in line["exchanges"]),
        "seconds/round": line["seconds"],
        "seconds/evaluation": line["evaluation_seconds"],
        "learning_rate": line["learning_rate"],
        "privacy/epsilon": (line.get("privacy") or {}).get("epsilon"),
        "train/loss": sum(losses) / len(losses) if losses else None,
    }
    return {**_numeric(numbers), **scores_of(line, names, clients)}


def scores_of(line: Mapping[str, Any], names: Mapping[str, str], clients: bool) -> dict[str, float]:
    """The scores of an evaluated round by name."""
    scores = line["evaluation"] or {}
    numbers: dict[str, Any] = {f"global/{key}": value for key, value in (scores.get("global") or {}).items()}
    numbers |= {f"server/{key}": value for key, value in (scores.get("server") or {}).items()}
    numbers |= {name: score_of(line, "accuracy", who) for name, who in _MEASURES.items()}
    groups = {label: own for label, own in (scores.get("groups") or {}).items() if own}
    if measured := [own["accuracy"] for own in groups.values() if own.get("accuracy") is not None]:
        numbers["groups/worst_accuracy"] = min(measured)
    if clients:
        numbers |= {
            f"group {_plain(label)}/{key}": value for label, own in groups.items() for key, value in own.items()
        }
        for client, own in (scores.get("clients") or {}).items():
            title = " ".join(["client", client, *([_plain(names[client])] if client in names else [])])
            numbers |= {f"{title}/{key}": value for key, value in own.items()}
    return _numeric(numbers)


def _numeric(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _plain(name: object) -> str:
    """A name as every tracker takes it."""
    return re.sub(r"[^\w.-]", "_", str(name))[:100]
