"""A server's connections: ``uvicorn --http durable_console.web.connections:Protocol``.

uvicorn waits for a request's headers for ever and counts connections without a request against --limit-concurrency:
whoever opens enough of them and sends nothing keeps everybody else out. Here a connection has HEADERS_BUDGET for each
request's headers, running requests alone count against the limit, and where connections become too many, the one that
has waited longest without a request is closed: of the same client first, then of the client that has most of them.
"""

import asyncio
import resource
from collections import Counter
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from celery_durable.web.clients import counted_as

# Seconds in which a request's headers must have arrived, after the connection was made or the last answer was sent.
HEADERS_BUDGET = 10.0
# Seconds in which a client must read what is written to it, 64 KiB at a time.
READING_BUDGET = 10.0
# Connections of one process: from one client (a balancer opens 256 at most), and from all of them together.
MAX_PER_CLIENT = 400
MAX_CONNECTIONS = 800
# Files that the process may open: asyncio accepts the whole backlog of 2,048 connections before any is looked at.
OPEN_FILES = 4096

# Where an application's lifespan puts what lets waiting requests answer, for uvicorn, which ends it after all requests.
STOP = "stop_waiting"

OVERLOADED = b'{"detail":"The server has too many requests at the moment; try again later."}'


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < OPEN_FILES:
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_allow_open_files()


class Protocol(H11Protocol):
    """uvicorn's protocol, with limits for connections."""

    # Of this process: connections without a request, by the time since when, and connections by their client.
    _idle: ClassVar[dict["Protocol", float]] = {}
    _clients: ClassVar[Counter[str]] = Counter()

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **options: Any) -> None:
        """Take over uvicorn's arguments."""
        super().__init__(config, server_state, app_state, **options)
        if (limit := self.limit_concurrency) is not None:
            self.limit_concurrency = None  # uvicorn's own check counts idle connections, too
            self._limit, self._served = limit, self.app
            self.app = self._serve
        self._client = ""
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and close another one where there are too many."""
        super().connection_made(transport)
        self._client = counted_as(self.client[0]) if self.client else ""
        self._clients[self._client] += 1
        self._becomes_idle()
        self._timer = self.loop.call_later(HEADERS_BUDGET, self._check)
        if len(self.connections) > MAX_CONNECTIONS:
            self._longest_idle(max(self._clients, key=self._clients.__getitem__))._drop()  # noqa: SLF001 - of this class
        elif self._clients[self._client] > MAX_PER_CLIENT:
            self._longest_idle(self._client)._drop()  # noqa: SLF001

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._idle.pop(self, None)
        self._clients[self._client] -= 1
        if not self._clients[self._client]:
            del self._clients[self._client]
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let requests that wait for something answer now: the server stops, and waits for them."""
        if stop := self.app_state.get(STOP):
            stop()
        super().shutdown()

    def handle_events(self) -> None:
        """Notice when a request has begun."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of an unread body."""
        self._becomes_idle()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(READING_BUDGET, self._drop)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _should_upgrade(self) -> bool:
        """Speak HTTP alone, and do not log each client that requests another protocol."""
        return False

    def _becomes_idle(self) -> None:
        self._idle.pop(self, None)  # to the end
        self._idle[self] = self.loop.time()

    def _check(self) -> None:
        # One timer, set anew when it ends, costs a request nothing.
        since = self._idle.get(self)
        left = HEADERS_BUDGET - (self.loop.time() - since) if since is not None else HEADERS_BUDGET
        if left > 0:
            self._timer = self.loop.call_later(left, self._check)
        else:
            self._drop()

    def _longest_idle(self, client: str) -> "Protocol":
        """Return the connection of a client that is without a request for longest; this one if it has none."""
        return next((one for one in self._idle if one._client == client), self)  # noqa: SLF001

    def _drop(self) -> None:
        self._idle.pop(self, None)
        # What the client has not read is not waited for.
        self.transport.abort()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if len(self.tasks) <= self._limit:
            await self._served(scope, receive, send)
            return
        self.logger.warning("Exceeded concurrency limit.")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(OVERLOADED)).encode()),
            (b"retry-after", b"5"),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": OVERLOADED})
