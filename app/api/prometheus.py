"""Metrics of this API's own requests; for those of queues and workers see durable_console.web.prometheus."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import Scope

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


def count(scope: Scope, status: int, seconds: float) -> None:
    """Count a request that was answered, by its route; those without one together."""
    # The router has put it there.
    handler = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in METHODS else "OTHER"
    requests, histogram = _metrics(handler, method, f"{status // 100}xx")
    requests.inc()
    histogram.observe(seconds)


@cache
def _metrics(handler: str, method: str, status: str) -> tuple[Counter, Histogram]:
    """Return the counters of one kind of request; finding them by their labels takes longer than counting."""
    return REQUESTS.labels(handler, method, status), SECONDS.labels(handler, method)
