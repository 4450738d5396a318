"""Python's collector of cyclic garbage, which looks through every object that there is, again and again.

torch and transformers make 400,000 objects that stay. To look at all of them takes a fifth of a second.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Without the collector, for the import of a large library; it takes a quarter of that time and finds nothing.

    If objects are spared (``spared``, ``spare``), those of the library are so too.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count():
            gc.freeze()
        if before:
            gc.enable()


def spare() -> None:
    """Never look again through the objects that there are, in a process that is fedquilt's own."""
    gc.freeze()


@contextmanager
def spared() -> Iterator[None]:
    """Inside, the collector does not look through the objects that there were; afterwards through all again.

    Does nothing where objects are spared already, since they could not be told from the others.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
