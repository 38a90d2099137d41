"""What each request gets besides its route: an id, security headers, and its place in the metrics.

One middleware for all of it: a layer for each took half of a small request's time.
"""

import os
import re
import time

from asgi_correlation_id import correlation_id
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import prometheus
from app.api.security import missing_key
from durable_console.web.headers import SecurityHeaders

REQUEST_ID = b"x-request-id"
SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class EachRequest:
    """Stands in front of the routes."""

    def __init__(self, app: ASGIApp, policies: dict[str, str]) -> None:
        """Stand in front of ``app``; ``policies`` are the content security policies of its pages, by their path."""
        self.app = app
        self._security = SecurityHeaders(app, policies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and add to the responses."""
        if scope["type"] != "http":
            # In front of the lifespan: an exception in there would log its trace.
            if scope["type"] == "lifespan" and (error := missing_key()):
                await receive()
                await send({"type": "lifespan.startup.failed", "message": error})
            else:
                await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        request_id = _request_id(scope)
        correlation_id.set(request_id.decode())
        headers = [*self._security.of(scope["path"]), (REQUEST_ID, request_id)]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        if scope["path"] == prometheus.SCRAPES:
            await self.app(scope, receive, send_with_headers)
            return
        prometheus.RUNNING.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            prometheus.RUNNING.dec()
            prometheus.count(scope, status, time.perf_counter() - began)


def _request_id(scope: Scope) -> bytes:
    """Return the id that a client or a balancer has given the request, a new one where that is odd or absent."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            if SANE_ID.fullmatch(value):
                return bytes(value)
            break
    return os.urandom(16).hex().encode()
