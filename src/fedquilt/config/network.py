"""The section [network] of a run file."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, field_validator

from fedquilt.config.strict import STRICT
from fedquilt.core.settings import Rate

_KEY = r"ecdsa-sha2-nistp(256|384|521) [A-Za-z0-9+/]{80,300}={0,2}( [^\r\n]{0,200})?$"


class Network(BaseModel):
    """Compression of messages, and time limits. The time limits apply to Flower only."""

    model_config = STRICT

    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Number type of sent tensors, both ways and on every engine; ``float32`` sends them without rounding. Uploads have
    error feedback (except with ``privacy.mode = "central"``)."""
    timeout: Rate = 3600.0
    """Seconds that an exchange waits for replies; a client that takes longer is dropped from it."""
    wait: Rate = 300.0
    """Seconds that clients have to join before training starts. It then starts without those that did not join or do
    not match, if ``quorum`` and ``defence.min_cohort`` can be met."""
    grace: Rate | None = None
    """Seconds that an exchange still waits for stragglers once ``quorum`` and ``defence.min_cohort`` are met; until
    ``timeout`` if left out. The same holds for joining at the start, with ``wait`` in place of ``timeout``."""
    node_keys: tuple[str, ...] = ()
    """Public keys of the clients' nodes, in client order, each the line of its ``.pub`` file: a node that claims the
    partition of another is rejected. If left out, a partition belongs to the first node that claims it."""

    @field_validator("node_keys")
    @classmethod
    def _are_of_one_node_each(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for number, key in enumerate(keys):
            if not re.fullmatch(_KEY, key):
                raise ValueError(
                    f"entry {number} is {key[:40]!r}, not the line of a public key; give that of the node's .pub, as "
                    "in 'ecdsa-sha2-nistp384 AAAA...'"
                )
        seen = [key.split()[1] for key in keys]
        for number, key in enumerate(seen):
            if key in seen[:number]:
                raise ValueError(f"clients {seen.index(key)} and {number} have one key; each has one of its own")
        return keys
