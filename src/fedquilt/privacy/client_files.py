"""What a client keeps on its site's disk beside the memories of its runs: one folder a client, one book in it.

A book is a JSON file that is read whole, checked, and replaced under a lock. A damaged one lets nothing out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.core.disk import private_folder
from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId
from fedquilt.record.files import explained, write_json

FORMAT = 1


class Kind(NamedTuple):
    """One kind of book.

    Attributes
    ----------
    name : its folder below the site's, and its file there.
    check : raises ValueError, KeyError, TypeError or AttributeError if what was read is no such book.
    refused : what happens without it, as in "nothing is released".
    unknown : what nobody knows any more if it is damaged.
    """

    name: str
    check: Callable[[Any], None]
    refused: str
    unknown: str

    @property
    def file(self) -> str:
        """The book's file in the folder of its client."""
        return f"{self.name}.json"


def client_folder(root: Path, kind: Kind, client: ClientId) -> Path:
    """The folder of a client's book, below the folder of its site's memories."""
    return root / kind.name / f"client-{client:03d}"


def client_folders(root: Path, kind: Kind) -> list[Path]:
    """The folders of all clients of a site that have such a book, in the clients' order."""
    return [path.parent for path in sorted(root.glob(f"{kind.name}/*/{kind.file}"))]


def read_book(folder: Path, kind: Kind, empty: dict[str, Any]) -> dict[str, Any]:
    """Read and check the book in ``folder``; ``empty`` if there is none yet.

    Raises
    ------
    RunError
        if it cannot be read or is damaged.
    """
    path = folder / kind.file
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return empty
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); without it {kind.refused}") from error
    try:
        book = json.loads(content)
        if book["format"] != FORMAT:
            raise ValueError(f"format {book['format']}")
        kind.check(book)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path}: damaged ({error}); {kind.unknown}, so {kind.refused}; restore the file from a copy"
        ) from error
    return dict(book)


def write_book(folder: Path, kind: Kind, book: dict[str, Any]) -> None:
    """Replace the book in ``folder``, readable only by its owner."""
    write_json(folder / kind.file, book, private=True)


@contextmanager
def changing(folder: Path, what_is_safe: str, then: str) -> Iterator[None]:
    """Make ``folder``, and keep other processes out of this block: a node may work for several runs at the same time.

    An OSError in the block becomes a RunError that says ``what_is_safe`` and what may be done ``then``.
    """
    with explained(folder, lambda: what_is_safe, then):
        private_folder(folder)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.name != "nt":  # Windows has no flock; a node there must work for one run at a time
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
