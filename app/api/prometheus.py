"""Metrics of this API's own requests; for those of queues and workers see durable_console.web.prometheus."""

import time
from functools import cache

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# RFC 9110, section 9.3, and PATCH. Each method has counters of its own, and a client can invent any number.
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
SCRAPES = "/metrics"
# Seconds; the alerts and dashboards look at half a second and at one.
BUCKETS = (0.01, 0.05, 0.1, 0.5, 1)

# The names are those of prometheus-fastapi-instrumentator, which matches all routes a second time for each request.
REQUESTS = Counter("http_requests", "Requests that were answered.", ["handler", "method", "status"])
SECONDS = Histogram(
    "http_request_duration_seconds", "Seconds until an answer was sent.", ["handler", "method"], buckets=BUCKETS
)
RUNNING = Gauge("http_requests_inprogress", "Requests that run.", multiprocess_mode="livesum")


class RequestMetrics:
    """Counts requests by their route, those without one together."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of ``app``."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and count the responses."""
        if scope["type"] != "http" or scope["path"] == SCRAPES:
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        RUNNING.inc()
        try:
            await self.app(scope, receive, send_and_look)
        finally:
            RUNNING.dec()
            # The router has put it there.
            handler = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            requests, seconds = _metrics(handler, method, f"{status // 100}xx")
            requests.inc()
            seconds.observe(time.perf_counter() - began)


@cache
def _metrics(handler: str, method: str, status: str) -> tuple[Counter, Histogram]:
    """Return the counters of one kind of request; finding them by their labels takes longer than counting."""
    return REQUESTS.labels(handler, method, status), SECONDS.labels(handler, method)
