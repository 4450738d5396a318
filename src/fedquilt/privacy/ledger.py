"""What a client has given away under local privacy: each noisy reply once, and an allowance over all of them.

The ledger is the client's own. A run, a round in it and an exchange are answered once: whoever asks again gets the same
bytes, noise and all, or nothing. What is asked under another run's key or another round's number is a release of its
own, and costs; no order can change what the allowance is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedquilt.core.disk import private_folder, sync_folder, write_bytes
from fedquilt.core.errors import FedquiltError, RunError
from fedquilt.core.loop import perform
from fedquilt.core.method import Exchange, Release
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.core.worker import Worker
from fedquilt.privacy.account import composed_epsilon
from fedquilt.privacy.ledger_book import (
    BOOK,
    Allowance,
    Asked,
    as_tree,
    asked_of,
    checked_book,
    empty_book,
    forget_old,
    from_tree,
    locked,
    noise_multipliers,
)
from fedquilt.record.files import explained, read_bytes, write_json
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

FOLDER = "ledger"
"""Where the ledgers of a site lie, beside the memories of its runs."""

_SLACK = 1 + 1e-9  # sums of the same cost in another order differ in their last digits


class Ledger:
    """The releases of one client, in ``folder``, which is made with the first; without one they end with the process.

    ``own`` is the allowance that the client's site has set. Without it, the first release fixes the allowance at what
    the run file then says, and no later run file changes it.
    """

    def __init__(self, folder: Path | None = None, own: Allowance | None = None) -> None:
        self.folder, self.own = folder, own
        self._book = empty_book()
        self._kept: dict[str, bytes] = {}

    def given(self, asked: Asked) -> tuple[Reply, Memory] | None:
        """What was answered when this was asked before: the reply and the memory that it left; None if it is new.

        Raises
        ------
        RunError
            if it was answered, and the reply is no longer kept or is damaged; or if the ledger cannot be read.
        """
        found = [one for one in self._read()["releases"] if asked_of(one) == asked]
        if not found:
            return None
        (entry,) = found
        if entry["file"] is None:
            raise RunError(
                f"round {asked.round + 1} was answered before, and its reply is no longer kept; a round is answered "
                "once, so that its noise cannot be averaged away"
            )
        return from_tree(tree_from_bytes(self._fetch(entry)))

    def refuse(self, release: Release) -> None:
        """Nothing, if one more such release stays within the allowance.

        Raises
        ------
        RunError
            if it does not; says what was spent and of how much.
        """
        book = self._read()
        allowed = self._allowance(book, release)
        if allowed.epsilon is None:
            return
        noises = noise_multipliers(book)
        after = composed_epsilon([*noises, release.noise_multiplier], allowed.delta)
        if not after <= allowed.epsilon * _SLACK:
            raise RunError(
                f"this client's privacy allowance is spent: {len(noises)} releases are worth epsilon "
                f"{composed_epsilon(noises, allowed.delta):.4g} at delta {allowed.delta:g}, one more would make it "
                f"{after:.4g}, and {allowed.epsilon:.4g} is allowed; its site alone can raise that"
            )

    def release(self, asked: Asked, release: Release, reply: Reply, memory: Memory) -> tuple[Reply, Memory]:
        """Note the release, safely on the disk when this returns; gives what may leave: the reply, and the new memory.

        Raises
        ------
        RunError
            if the allowance does not reach, or the disk refuses: then nothing may leave.
        """
        with self._writing():
            before = self.given(asked)  # another process of this node may have been quicker
            if before is not None:
                return before
            self.refuse(release)
            book = self._read()
            content = tree_to_bytes(as_tree(reply, memory), "release")
            name = f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.safetensors"
            self._keep(name, content)
            entry = {**asked._asdict(), "noise_multiplier": release.noise_multiplier, "file": name}
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            allowed = self._allowance(book, release)
            book["allowance"] = {**allowed._asdict(), "by": self._by(book)}
            book["releases"].append(entry)
            gone = forget_old(book["releases"], asked.run)
            self._write(book)
            for name in gone:
                self._drop(name)
        return reply, memory

    def told(self) -> dict[str, Any]:
        """What was spent, of how much: ``releases``, ``runs``, ``spent`` and ``epsilon`` (None for no bound), ``delta``
        and ``by``, who set the allowance."""
        book = self._read()
        noises, kept = noise_multipliers(book), book["allowance"]
        if self.own is not None:
            kept = {**self.own._asdict(), "by": "site"}
        delta = kept["delta"] if kept else 1e-5
        spent = composed_epsilon(noises, delta)
        return {
            "releases": len(noises),
            "runs": len({entry["run"] for entry in book["releases"]}),
            "spent": spent if math.isfinite(spent) else None,
            "epsilon": kept["epsilon"] if kept else None,
            "delta": delta,
            "by": kept["by"] if kept else None,
        }

    def _allowance(self, book: Mapping[str, Any], release: Release) -> Allowance:
        if self.own is not None:
            return self.own
        kept = book["allowance"]
        return Allowance(release.epsilon, release.delta) if kept is None else Allowance(kept["epsilon"], kept["delta"])

    def _by(self, book: Mapping[str, Any]) -> str:
        if self.own is not None:
            return "site"
        return "run file" if book["allowance"] is None else str(book["allowance"]["by"])

    # On the disk, or in this process ------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        if self.folder is None:
            return self._book
        path = self.folder / BOOK
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return empty_book()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); without it nothing is released") from error
        return checked_book(text, path)

    def _write(self, book: dict[str, Any]) -> None:
        if self.folder is None:
            self._book = book
        else:
            write_json(self.folder / BOOK, book, private=True)

    def _keep(self, name: str, content: bytes) -> None:
        if self.folder is None:
            self._kept[name] = content
        else:
            write_bytes(self.folder / name, content, private=True)
            sync_folder(self.folder)

    def _drop(self, name: str) -> None:
        if self.folder is None:
            self._kept.pop(name, None)
        else:
            (self.folder / name).unlink(missing_ok=True)

    def _fetch(self, entry: Mapping[str, Any]) -> bytes:
        if self.folder is None:
            return self._kept[entry["file"]]
        advice = "the round was answered, and is not answered anew; restore the file from a copy"
        return read_bytes(self.folder / entry["file"], entry["sha256"], advice)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        with explained(self.folder, lambda: "nothing was released", "the order may come again"):
            private_folder(self.folder)
            with locked(self.folder / "lock"):
                yield


def answered(
    ledger: Ledger,
    run: str,
    exchange: Exchange,
    client: Worker,
    client_id: ClientId,
    order: Order,
    memory: Callable[[], Memory],
) -> tuple[Reply | Failure, Memory | None]:
    """``core.loop.perform``, of which under local privacy nothing comes but what the ledger has noted.

    ``memory()`` is what the work starts from. The new memory is None where nothing was done.
    """
    if exchange.release is None:
        return perform(exchange, client, client_id, order, memory())
    asked = Asked(run, order.round, exchange.name)
    try:
        before = ledger.given(asked)
        if before is not None:
            return before
        ledger.refuse(exchange.release)
        reply, after = perform(exchange, client, client_id, order, memory())
        return (reply, after) if isinstance(reply, Failure) else ledger.release(asked, exchange.release, reply, after)
    except FedquiltError as error:
        return Failure(client_id, str(error)), None


def ledger_folder(root: Path, client: ClientId) -> Path:
    """Where the ledger of a client lies, below the folder of its site's memories."""
    return root / FOLDER / f"client-{client:03d}"


def ledgers(root: Path) -> dict[str, dict[str, Any]]:
    """What every client of a site has spent, by name; empty if there is no ledger.

    Raises
    ------
    RunError
        if a ledger cannot be read.
    """
    return {path.parent.name: Ledger(path.parent).told() for path in sorted(root.glob(f"{FOLDER}/*/{BOOK}"))}
