"""All randomness of fedquilt: one seed and independent, named child streams.

A stream is a value: a seed and a path of names. ``rng.child("round", 3, "client", 7)`` is the same stream wherever and
whenever it is made. The order of clients, the number of workers and the enabled features therefore change no other
draw. No other module creates a random generator of torch or numpy.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fedquilt.core.collector import paused

with paused():  # commands that need torch import it here first
    import torch


@dataclass(frozen=True)
class Rng:
    """A named random stream: ``seed`` (any int) and the path of names that leads to it."""

    seed: int
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        # a numpy integer (from a partition or cohort) or a path read from JSON must give the very same stream
        names = (str(name) if isinstance(name, str) else int(operator.index(name)) for name in self.path)
        object.__setattr__(self, "seed", int(operator.index(self.seed)))
        object.__setattr__(self, "path", tuple(names))

    def child(self, *names: str | int) -> Rng:
        """The child stream with these ``names``."""
        return Rng(self.seed, self.path + names)

    def integer(self, bits: int = 63) -> int:
        """The stream's own integer in ``[0, 2**bits)``, for libraries that take a seed; the same at every call."""
        # repr keeps 1 and "1" apart, and a length prefix is not needed: repr of a tuple is unambiguous
        text = repr((self.seed, self.path)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big") % (1 << bits)

    def sealed(self) -> Rng:
        """A stream derived from this one that does not reveal this one's seed or path, to be sent to a client.

        Its seed is a one-way function of both. A seed that can be guessed, such as that of a known run file, can still
        be confirmed by trying it.
        """
        text = repr(("sealed", self.seed, self.path)).encode()
        return Rng(int.from_bytes(hashlib.blake2b(text, digest_size=32).digest(), "big"))

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator of this device, at the start of this stream.

        On the CPU it keeps 32 bits of its seed, so that all streams can be tried: not for what must stay secret.
        """
        return torch.Generator(device).manual_seed(self.integer())

    def numpy(self, bits: int = 63) -> np.random.Generator:
        """A fresh numpy generator at the start of this stream, seeded with an integer of so many bits."""
        return np.random.default_rng(self.integer(bits))

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run library code that draws from torch's global generators (dropout, weight initialisation) on this stream.

        The state of the global generators is restored afterwards, so that nothing outside the block is affected.
        """
        device_type = "mps" if torch.backends.mps.is_available() and not torch.cuda.is_available() else "cuda"
        # without an accelerator torch.manual_seed would format the call stack for each kind of one, to no end
        seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        with torch.random.fork_rng(device_type=device_type):
            seed(self.integer())
            yield


def secret() -> Rng:
    """A stream that cannot be reproduced: its seed comes from the operating system, never from a run's seed.

    Only for noise that protects privacy.
    """
    return Rng(int.from_bytes(os.urandom(32), "big"))
