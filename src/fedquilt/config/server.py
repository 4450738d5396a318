"""The section [server] of a run file: a model and data that the server owns."""

from __future__ import annotations

from pydantic import BaseModel

from fedquilt.config.data import Data
from fedquilt.config.own_keys import OwnAdapter, OwnTraining
from fedquilt.config.strict import STRICT
from fedquilt.core.model import Model
from fedquilt.core.server import Share
from fedquilt.core.settings import Count


class Server(BaseModel):
    """A model and data of the server's own, for methods that use them.

    ``model = {name = "arith-llama", task = "causal-lm"}``, or ``[server.model]`` below the section. Tables ``model``
    and ``data`` are the server's alone; of ``adapter`` and ``training`` the server replaces single keys. Only the
    process of the server loads this model and reads these rows: a site needs neither.
    """

    model_config = STRICT

    model: Model
    """The server's model, with the keys of [model]. It reads text."""
    data: Data
    """Public questions, with the keys of [data]: a method may send them to every client. They have answers if the
    source has completions."""
    private: Data | None = None
    """Rows of the server's own, which are never sent: it trains on them, and its score is that on their test rows. If
    left out, ``data`` takes their place."""
    adapter: OwnAdapter | None = None
    """Keys of [adapter] for the server's model."""
    training: OwnTraining | None = None
    """Keys of [training] for the server's model, except ``proximal`` and ``precision``: the first is about clients, the
    second one for all."""
    batch_size: Count | None = None
    """Rows of a forward pass when the server's model is evaluated or generates; ``evaluation.batch_size`` if left
    out."""
    share: Share = "public"
    """Texts of a client that a method may send: ``public``, only public questions and what the client's model makes of
    them; ``private``, also what it writes about the client's own rows. Trained tensors are not texts: what of them is
    sent is said by the method."""
