"""What every answer of the live page's server has in common: to whom it is given, and its headers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

_HERE = ("127.0.0.1", "localhost", "::1")

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""The headers of every answer; those of the report itself differ in who may frame it, which is the page around it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str, port: int) -> Callable[[str], bool]:
    """Return a function that tells whether a request's ``Host`` is that of a server at ``host`` and ``port``.

    A page of somebody else's can make a browser ask this server by a name of its own (DNS rebinding), but not by
    another name: an address or ``localhost``. A server that listens at all addresses accepts any address, and the
    name of this machine.
    """
    every = host in ("0.0.0.0", "::")
    names = {*_HERE, host.lower(), *([socket.gethostname().lower()] if every else [])}

    def allowed(asked: str) -> bool:
        name, bracket, rest = asked.lower().partition("]")
        if bracket:
            name, given = name.removeprefix("["), rest.removeprefix(":")
        else:
            name, _, given = name.partition(":")
        if (given or "80") != str(port) or (bool(bracket) != (":" in name)):
            return False
        return name in names or (every and _is_address(name))

    return allowed


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI application around another, which refuses foreign hosts and other methods than GET, and sets headers.

    Parameters
    ----------
    app
        The application.
    allowed
        Tells whether a ``Host`` is known.
    """

    def __init__(self, app: Any, allowed: Callable[[str], bool]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, with_headers)
        else:
            status, text = refusal
            head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
            await with_headers({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """The status and the text of a refusal; None if there is no reason for one."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            return 400, "a request needs one Host header"
        if not self._allowed(hosts[0]):
            return 403, "this server is not known by this name; open the address that fedquilt watch printed"
        if scope["method"] != "GET":
            return 405, "only GET is answered"
        return None
