"""A server's language model behind an address: the settings of an endpoint, which are ``[server] endpoint``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Gt, Le

from fedquilt.core.settings import Few, Text

_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint with the OpenAI-compatible interface of chat completions, which writes texts for the server."""

    url: Text
    """Address up to the version, such as ``https://api.openai.com/v1``; ``/chat/completions`` is added. ``http`` only
    without a key, or on this machine."""
    name: Text
    """Name of the model, as the endpoint knows it."""
    key_env: Text | None = None
    """Name of the environment variable that holds the key, such as ``OPENAI_API_KEY``. The key itself never stands in a
    run file, a record or a message. If left out, no key is sent."""
    system: Text = "Continue the text: write the steps of the solution briefly, and end with the answer."
    """Instruction that precedes every question."""
    concurrency: Few = 4
    """Number of requests at a time."""
    timeout: Annotated[float, Gt(0), Le(3600)] = 60.0
    """Seconds in which a request must be answered."""
    retries: Annotated[int, Le(20)] = 5
    """Number of repetitions of a request that was answered with 429 or 5xx, or not at all; they wait ever longer."""

    def __post_init__(self) -> None:
        """Refuse an address that is none, holds a password, or would let a key be read on its way."""
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be at least 0")
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("url is no address; give one as in https://host/v1") from None
        if "@" in parts.netloc:
            raise ValueError("url holds a name or password; give the key by key_env, and leave them out")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ValueError(f"url is '{self.url}'; give an address as in https://host/v1")
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", self.key_env):
            raise ValueError("key_env is not the name of an environment variable; it never holds the key itself")
        if parts.scheme == "http" and self.key_env is not None and host not in _HERE:
            raise ValueError(f"url is '{self.url}': the key could be read on its way; give https, or no key_env")
