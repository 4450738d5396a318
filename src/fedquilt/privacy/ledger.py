"""The privacy ledger: a client's own record of its noisy replies, and its allowance of epsilon over all of them.

Under local differential privacy, each combination of run, round and exchange is answered once: a repeated request gets
the same bytes, noise included, or nothing. A request under another run key or round number is a release of its own and
counts against the allowance, which no order can change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedquilt.core.disk import sync_folder, write_bytes
from fedquilt.core.errors import FedquiltError, RunError
from fedquilt.core.loop import perform
from fedquilt.core.method import Exchange, Release
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.core.worker import Worker
from fedquilt.privacy.account import composed_epsilon
from fedquilt.privacy.client_files import changing, client_folder, client_folders, read_book, write_book
from fedquilt.privacy.ledger_book import (
    LEDGER,
    Allowance,
    Asked,
    as_tree,
    asked_of,
    empty_book,
    forget_old,
    from_tree,
    noise_multipliers,
)
from fedquilt.record.files import read_bytes
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

_SLACK = 1 + 1e-9  # floating-point sums of equal costs in another order differ in their last digits


class Ledger:
    """The releases of one client, kept in ``folder`` (made with the first release) or, without one, in memory.

    ``own`` is the allowance that the client's site has set. Without it, the first release fixes the allowance at the
    value in the run file, and no later run file changes it.
    """

    def __init__(self, folder: Path | None = None, own: Allowance | None = None) -> None:
        self.folder, self.own = folder, own
        self._book = empty_book()
        self._kept: dict[str, bytes] = {}

    def given(self, asked: Asked) -> tuple[Reply, Memory] | None:
        """Return the earlier answer to this request: the reply and the new memory; None if the request is new.

        Raises
        ------
        RunError
            if the earlier reply is no longer kept or is damaged, or the ledger cannot be read.
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
        """Raise RunError if one more such release would exceed the allowance; the error states both figures."""
        book = self._read()
        allowed = self._allowance(book, release)
        if allowed.epsilon is None:
            return
        noises = noise_multipliers(book)
        after = composed_epsilon([*noises, release.noise_multiplier], allowed.delta)
        if not after <= allowed.epsilon * _SLACK:
            raise RunError(
                f"this client's privacy allowance is spent: {len(noises)} releases have cost epsilon "
                f"{composed_epsilon(noises, allowed.delta):.4g} at delta {allowed.delta:g}, one more would make it "
                f"{after:.4g}, and {allowed.epsilon:.4g} is allowed; only its site can raise the allowance"
            )

    def release(self, asked: Asked, release: Release, reply: Reply, memory: Memory) -> tuple[Reply, Memory]:
        """Record a release on disk; returns the reply that may be sent, and the new memory.

        Raises
        ------
        RunError
            if the allowance would be exceeded, or the disk refuses: then nothing may be sent.
        """
        with self._writing():
            before = self.given(asked)  # another process of this node may have answered meanwhile
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

    def summary(self) -> dict[str, Any]:
        """Summarise the ledger: what was spent, and of which allowance.

        The keys are the counts ``releases`` and ``runs``, the epsilon ``spent`` (None: infinite), the allowed
        ``epsilon`` (None: no bound), ``delta``, and ``by``, who set the allowance.
        """
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
        return self._book if self.folder is None else read_book(self.folder, LEDGER, empty_book())

    def _write(self, book: dict[str, Any]) -> None:
        if self.folder is None:
            self._book = book
        else:
            write_book(self.folder, LEDGER, book)

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
        advice = "the round was answered before and is not answered again; restore the file from a copy"
        return read_bytes(self.folder / entry["file"], entry["sha256"], advice)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        with changing(self.folder, "nothing was released", "the order may be repeated"):
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
    """Run ``core.loop.perform``; under local privacy, return only replies that the ledger has recorded.

    Parameters
    ----------
    ledger
        The client's ledger.
    run
        The key of the run.
    exchange
        The exchange to perform; its ``release`` says whether, and with how much noise, it is private.
    client, client_id
        What the exchange's ``work`` is called with, and the client's number.
    order
        The order to the client.
    memory
        Gives the client's memory before the exchange.

    Returns
    -------
    The reply and the new memory, or a Failure; the memory is None where no work was done.
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
    """The folder of a client's ledger, below the folder of its site's memories."""
    return client_folder(root, LEDGER, client)


def ledgers(root: Path) -> dict[str, dict[str, Any]]:
    """Summarise the ledger of every client of a site, by name; empty if there is none.

    Raises
    ------
    RunError
        if a ledger cannot be read.
    """
    return {folder.name: Ledger(folder).summary() for folder in client_folders(root, LEDGER)}
