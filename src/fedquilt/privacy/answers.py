"""The account of a site's answers: the queries that a client has answered after its runs, and about which rows.

Answers leave a party without being part of any run's record, so the party counts them itself, in a file beside its
memories. The same rows in the same order get the same answer again from the same model, noise included, which is no
further answer; a row that is asked about among other rows is one more noisy vector of this row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId
from fedquilt.privacy.account import composed_epsilon
from fedquilt.privacy.client_files import (
    FORMAT,
    Kind,
    changing,
    client_folder,
    client_folders,
    read_book,
    write_book,
)

if TYPE_CHECKING:
    from torch import Tensor


class Noise(NamedTuple):
    """The noise of every embedding in an answer, as a multiple of its bound (0 for none), and the delta of epsilons."""

    multiplier: float
    delta: float


class Answers:
    """The answers of one client, in its own ``folder``, which is made with the first one.

    ``most`` is the largest number of answers that its site allows, over all runs; None for no bound.
    """

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder, self.most = folder, most

    def count(self, run: str, rows: Sequence[str], noise: Noise, answer: Mapping[str, Tensor]) -> None:
        """Count an answer before it is sent; one that was sent before is not counted again.

        Parameters
        ----------
        run
            The key of the run that the query is of.
        rows
            A digest of each row in their order, empty for a row that the client does not hold.
        noise
            The noise of the answer.
        answer
            The tensors of the answer: one about the same rows from an earlier model is another answer.

        Raises
        ------
        RunError
            if the site allows no further answer, or the disk refuses: then nothing may be sent.
        """
        key = _key(run, rows, answer)
        with changing(self.folder, "the query was not answered", "it may be asked again"):
            book = self._read()
            if key in book["answers"]:
                return
            if self.most is not None and len(book["answers"]) >= self.most:
                raise RunError(
                    f"this site has answered {len(book['answers'])} queries, and max_queries={self.most} in its "
                    "node's config allows no more; only the site can raise it"
                )
            book["answers"].append(key)
            of_run = book["runs"].setdefault(run, {**noise._asdict(), "rows": {}})
            for row in filter(None, rows):
                of_run["rows"][row] = of_run["rows"].get(row, 0) + 1
            write_book(self.folder, ANSWERS, book)

    def summary(self) -> dict[str, Any]:
        """Summarise the account.

        The keys are the numbers of ``answers``, ``runs`` and ``rows``, the largest number of ``answers_about_a_row``,
        and ``epsilon_of_a_row``, what the answers about any one row say about this row, at ``delta`` (None if any run
        had no noise on embeddings).
        """
        book = self._read()
        runs = book["runs"].values()
        counts: dict[str, list[tuple[int, float]]] = {}
        for of_run in runs:
            for row, count in of_run["rows"].items():
                counts.setdefault(row, []).append((count, of_run["multiplier"]))
        delta = min((of_run["delta"] for of_run in runs), default=1e-5)
        return {
            "answers": len(book["answers"]),
            "runs": len(book["runs"]),
            "rows": len(counts),
            "answers_about_a_row": max((sum(count for count, _ in own) for own in counts.values()), default=0),
            "epsilon_of_a_row": _epsilon({tuple(own) for own in counts.values()}, delta),
            "delta": delta,
        }

    def _read(self) -> dict[str, Any]:
        return read_book(self.folder, ANSWERS, {"format": FORMAT, "answers": [], "runs": {}})


def answers_folder(root: Path, client: ClientId) -> Path:
    """The folder of a client's account of answers in the site's folder of memories."""
    return client_folder(root, ANSWERS, client)


def all_answers(root: Path) -> dict[str, dict[str, Any]]:
    """Summarise the answers of every client of a site, by name; empty if there are none.

    Raises
    ------
    RunError
        if an account cannot be read.
    """
    return {folder.name: Answers(folder).summary() for folder in client_folders(root, ANSWERS)}


def _key(run: str, rows: Sequence[str], answer: Mapping[str, Tensor]) -> str:
    from torch import uint8  # the account is also shown where nothing is computed

    digest = hashlib.blake2b(json.dumps([run, *rows]).encode(), digest_size=16)
    for name, tensor in sorted(answer.items()):
        digest.update(json.dumps([name, *tensor.shape]).encode())
        digest.update(tensor.detach().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()


def _epsilon(kinds: Iterable[tuple[tuple[int, float], ...]], delta: float) -> float | None:
    """The largest epsilon of a row whose answers were so many with such noise; None without a bound."""
    found = [
        composed_epsilon([noise / math.sqrt(count) for count, noise in own], delta)
        if all(noise for _, noise in own)
        else math.inf
        for own in kinds
    ]
    most = max(found, default=0.0)
    return most if math.isfinite(most) else None


def _check(book: Any) -> None:
    if not isinstance(book["answers"], list):
        raise ValueError("its answers")
    for of_run in book["runs"].values():
        if not (of_run["multiplier"] >= 0 and 0 < of_run["delta"] < 1 and sum(of_run["rows"].values()) >= 0):
            raise ValueError(f"the noise {of_run['multiplier']}")


ANSWERS = Kind("answers", _check, "no query is answered", "how many queries this client has answered is unknown")
