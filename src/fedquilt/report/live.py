"""The report page of runs that go on, served to browsers, which server-sent events tell when to load it again.

No other module imports starlette and uvicorn.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from types import FrameType
from typing import TYPE_CHECKING

from fedquilt.report.following import FINISHED, Following, Page, Seen
from fedquilt.report.guard import Guard, allowed_hosts

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_WEB = files("fedquilt.report") / "web"
_FILES = {
    "": ("live.html", "text/html"),
    "live.css": ("live.css", "text/css"),
    "live.js": ("live.js", "text/javascript"),
}
_ALIVE = 15.0  # seconds after which a stream without events says that it is still there
_CHUNK = 1 << 16  # bytes of a page that are handed over at once: a slow reader must not fill the memory
_SHARE = 4.0  # a page is made at most once in so many times as it takes to make it
_MOST = 200  # connections at once
_IDLE = 5.0  # seconds in which a connection must send a whole request; it is closed then, so that its place is free
_LAST = 1.0  # seconds in which browsers may ask for the last page


class Live:
    """The page of some runs, kept up to date.

    Parameters
    ----------
    following
        The runs.
    every
        Seconds between two looks at their folders.
    told
        Called with what is seen whenever the state of the runs changes.
    until_done
        Whether ``watch`` returns once all runs are finished.
    """

    def __init__(
        self,
        following: Following,
        every: float = 1.0,
        told: Callable[[Seen], None] | None = None,
        until_done: bool = False,
    ) -> None:
        self._following, self._every, self._told, self._until_done = following, every, told, until_done
        self.seen = following.seen
        self._news, self._over, self._making = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._made: tuple[int, Page] | None = None
        self._seconds = 0.0  # that making a page takes

    async def watch(self) -> None:
        """Look at the folders until closed."""
        while not self._over.is_set():
            before, seen = self.seen, await asyncio.to_thread(self._following.look)
            if seen.version != before.version:
                self.seen = seen
                self._news.set()
                self._news = asyncio.Event()
                if self._told and (seen.state != before.state or before.version == 0):
                    self._told(seen)
            if self._until_done and seen.state == FINISHED:
                return
            await _within(self._over, max(self._every, _SHARE * self._seconds))

    async def last_asked(self) -> None:
        """Wait until browsers have had the time to ask for the last page, and it is made."""
        await asyncio.sleep(_LAST)
        async with self._making:
            pass

    def close(self) -> None:
        """End ``watch`` and all streams."""
        self._over.set()
        self._news.set()

    def app(self, allowed: Callable[[str], bool]) -> Guard:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = [Route(f"/{path}", self._file, methods=["GET"]) for path in _FILES]
        routes += [Route("/page", self._page, methods=["GET"]), Route("/events", self._events, methods=["GET"])]
        made: Starlette = Starlette(routes=routes)
        return Guard(made, allowed)

    async def _file(self, request: Request) -> Response:
        from starlette.responses import Response

        name, kind = _FILES[request.url.path.removeprefix("/")]
        return Response((_WEB / name).read_bytes(), media_type=kind)

    async def _page(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        async with self._making:  # one at a time, for all who ask
            if self._made is None or self._made[0] != self.seen.version:
                version, began = self.seen.version, time.perf_counter()
                self._made = version, await asyncio.to_thread(self._following.page)
                self._seconds = time.perf_counter() - began
            content, policy = self._made[1]
        headers = {"content-security-policy": f"{policy}; frame-ancestors 'self'", "x-frame-options": "SAMEORIGIN"}
        return StreamingResponse(_chunks(content), media_type="text/html", headers=headers)

    async def _events(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        """Events for one reader, who is told the latest only: what a slow one has missed is not kept."""
        sent = None
        while True:
            news = self._news
            if self.seen != sent:
                sent = self.seen
                yield f"event: changed\nid: {sent.version}\ndata: {json.dumps(sent._asdict())}\n\n"
            if self._over.is_set():
                return
            if not await _within(news, _ALIVE):
                yield ": still here\n\n"


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; returns whether it came in time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _chunks(content: bytes) -> Iterator[memoryview]:
    whole = memoryview(content)
    for begin in range(0, len(whole), _CHUNK):
        yield whole[begin : begin + _CHUNK]


def serve(
    following: Following,
    listening: socket.socket,
    host: str,
    *,
    every: float = 1.0,
    told: Callable[[Seen], None] | None = None,
    until_done: bool = False,
) -> None:
    """Serve the page of runs until a signal ends it, or with ``until_done`` until all runs are finished.

    Parameters
    ----------
    following
        The runs.
    listening
        The socket, which is closed at the end.
    host
        The host that it listens at, as it was asked for.
    every
        Seconds between two looks at the runs' folders.
    told
        Called with what is seen whenever the state of the runs changes.
    until_done
        Whether to end once all runs are finished.

    Raises
    ------
    KeyboardInterrupt
        if an interrupt ended it.
    """
    with listening:
        asyncio.run(_served(Live(following, every, told, until_done), listening, host))


async def _served(live: Live, listening: socket.socket, host: str) -> None:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    loop = asyncio.get_running_loop()

    class Impatient(H11Protocol):
        """HTTP, in which a connection that sends no request is closed; uvicorn itself waits for ever for the first."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(_IDLE, self._close_idle, None)

        def on_response_complete(self) -> None:
            self.loop.call_later(_IDLE, self._close_idle, self.cycle)
            super().on_response_complete()

        def _close_idle(self, last: object) -> None:
            if self.cycle is last:  # no request has come since
                self.transport.close()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            loop.call_soon_threadsafe(live.close)  # streams never end by themselves

    config = uvicorn.Config(
        live.app(allowed_hosts(host, listening.getsockname()[1])),
        log_config=None,
        log_level="critical",  # an interrupted answer is no error to tell of
        access_log=False,
        http=Impatient,
        ws="none",
        lifespan="off",
        server_header=False,
        limit_concurrency=_MOST,
        timeout_graceful_shutdown=2,
    )
    server = Server(config)

    async def watch() -> None:
        try:
            await live.watch()
            await live.last_asked()
        finally:
            live.close()
            server.should_exit = True

    watching = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[listening])
    finally:
        live.close()
        watching.cancel()
    if watching.done() and not watching.cancelled():
        watching.result()
