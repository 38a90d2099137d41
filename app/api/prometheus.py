"""What Prometheus reads of this API's own requests; of queues and workers: durable_console.web.prometheus."""

from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.types import ASGIApp, Receive, Scope, Send

# RFC 9110, section 9.3, and PATCH.
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}


def instrument(app: FastAPI) -> None:
    """Count the requests of an application: those that were answered, their durations, and those that run."""
    Instrumentator(excluded_handlers=["/metrics$"], should_instrument_requests_inprogress=True).instrument(app)
    app.add_middleware(_KnownMethods)


class _KnownMethods:
    """Stands in front of what counts: each method has counters of its own, and a client can invent any number."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in METHODS:
            scope = {**scope, "method": "OTHER"}
        await self.app(scope, receive, send)
