"""The section [server] of a run file: a model and data that the server owns."""

from __future__ import annotations

from pydantic import BaseModel

from fedquilt.config.data import Data
from fedquilt.config.own_keys import OwnAdapter, OwnTraining
from fedquilt.config.rejected_values import Spoilt
from fedquilt.config.strict import STRICT
from fedquilt.core.endpoint import Endpoint
from fedquilt.core.model import Model
from fedquilt.core.server import Share
from fedquilt.core.settings import Count


class Server(BaseModel):
    """A model and data of the server's own, for methods that use them.

    ``model = {name = "arith-llama", task = "causal-lm"}``, or ``[server.model]`` below the section. Tables ``model``
    and ``data`` are the server's alone; of ``adapter`` and ``training`` the server replaces single keys. Only the
    process of the server loads this model and reads these rows: a site needs neither. In place of a model there may be
    an ``endpoint``: ``endpoint = {url = "https://host/v1", name = "large", key_env = "OPENAI_API_KEY"}``.
    """

    model_config = STRICT

    model: Model | None = None
    """The server's model, with the keys of [model]. It reads text."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible endpoint in place of a model, with the keys of [server.endpoint] below. It writes texts, and
    is neither trained nor scored."""
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
    chat: bool = False
    """Whether every model, the clients' too, reads a public question as the user's turn of a conversation, by its own
    chat template, or as plain text with roles if it has none. An endpoint is asked so anyway."""


_OF_A_MODEL = ("private", "adapter", "training", "batch_size")
"""Keys that an endpoint has no use for."""


def chat_problems(server: Server, rejected: Spoilt) -> list[str]:
    """Keys of the section that contradict ``chat``; keys that are spoilt are skipped."""
    if not server.chat or server.share != "private" or rejected.touches("chat", "share"):
        return []
    own = "texts of a client's own rows are prompts as its model reads them, which are no user's turn"
    return [f"server.chat = true: needs server.share = 'public', and this is 'private': {own}"]


def endpoint_problems(server: Server, rejected: Spoilt) -> list[str]:
    """Keys of the section that a model or an endpoint needs or has no use for; keys that are spoilt are skipped.

    ``rejected`` are the spoilt keys, relative to the section.
    """
    if rejected.touches("model", "endpoint"):
        return []
    if (server.model is None) == (server.endpoint is None):
        return ["server: give either server.model, which the server loads, or server.endpoint, which writes its texts"]
    if server.endpoint is None:
        return []
    given = {f"server.{key}": getattr(server, key) for key in _OF_A_MODEL if not rejected.touches(key)}
    if not rejected.touches("data"):
        given |= {f"server.data.{key}": getattr(server.data, key) for key in ("test", "test_limit")}
    return [
        f"{key}: no effect with server.endpoint, which is neither trained nor scored; leave it out"
        for key, value in given.items()
        if value is not None
    ]
