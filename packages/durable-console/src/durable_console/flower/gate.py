"""In front of every route of Flower: password, read-only mode and security headers.

Flower's own password check leaves /metrics, static files and OPTIONS requests open. Its read-only mode is a line in
each handler; here the routes that a later version brings are covered too.
"""

import hashlib
import hmac
import math
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import flower.app
from flower.app import Flower
from flower.options import options
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.web import Application, OutputTransform, RequestHandler

from celery_durable.web.clients import Network, client_address, counted_as
from celery_durable.web.rate_limit import RateLimiter

READING_METHODS = {"GET", "HEAD", "OPTIONS"}
# The page of tasks asks for its rows by POST.
READING_POSTS = {"/tasks/datatable"}
# Set by proxies: who they speak for is not on this host, or need not be.
FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")
# A proxy on this host is believed, as by the API's server.
HERE = (ip_network("127.0.0.1"), ip_network("::1"))
# Seconds in which a request's headers, and its body, must have arrived.
HEADERS_BUDGET = 10.0
# Connections from one client, and from all of them together; people look at Flower, and a balancer for them.
MAX_PER_CLIENT = 64
MAX_CONNECTIONS = 256
# Bytes of a request's body: Flower's forms are small, and it reads a body before it asks for the password.
MAX_BODY = 64 * 1024
# The one script that stands in a page of Flower 2.2, as its template renders it.
INLINE_SCRIPT = "\nvar autorefresh = {};\n"


class _Server(HTTPServer):
    """Tornado's server, which would wait an hour for a request's headers and take connections without end."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Set the limits that tornado has."""
        kwargs |= {"idle_connection_timeout": HEADERS_BUDGET, "body_timeout": HEADERS_BUDGET, "max_body_size": MAX_BODY}
        super().initialize(*args, **kwargs)
        self._clients: dict[IOStream, str] = {}  # the oldest first

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection; where there are too many, the oldest of the same client or of all ends."""
        client = self._clients[stream] = counted_as(str(address[0]))
        same = [one for one, its_client in self._clients.items() if its_client == client]
        oldest = same[0] if len(same) > MAX_PER_CLIENT else next(iter(self._clients))
        if len(same) > MAX_PER_CLIENT or len(self._clients) > MAX_CONNECTIONS:
            del self._clients[oldest]
            oldest.close()
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection that has ended."""
        self._clients.pop(server_conn.stream, None)
        super().on_close(server_conn)


class _FailedLogins(RateLimiter):
    """Counts wrong passwords per address."""

    def wait(self, address: str) -> int:
        """Return the seconds for which an address is not asked for its password; 0 when it is."""
        left = math.ceil(self._window_ends - time.monotonic())
        return max(0, left) if self._hits[address] >= self._amount else 0


class _Denial(RequestHandler):
    def initialize(self, status: int, text: str, headers: dict[str, str]) -> None:
        """Take over what is to be answered."""
        self._status, self._text, self._headers_to_add = status, text, headers

    def check_xsrf_cookie(self) -> None:
        """Answer to a POST too, where tornado would find the cookie missing first."""

    def prepare(self) -> None:
        self.set_status(self._status)
        for name, value in self._headers_to_add.items():
            self.set_header(name, value)
        self.finish(self._text)


class _SecurityHeaders(OutputTransform):
    """Adds headers to each answer, static files and errors included."""

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002 - tornado's
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Tell the browser to load, frame and keep as little as possible."""
        script = INLINE_SCRIPT.format(int(options.auto_refresh)).encode()
        script_hash = b64encode(hashlib.sha256(script).digest()).decode()
        headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src 'self' 'sha256-{script_hash}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        headers["X-Frame-Options"] = "DENY"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers.setdefault("Cache-Control", "no-store")
        headers.pop("Server", None)
        return status_code, headers, chunk


def install(failed_login_limit: str, trusted_proxies: Sequence[Network]) -> None:
    """Ask the gate before Flower chooses a handler, and limit its connections.

    Args:
        failed_login_limit: how often one address may send a wrong password, like "30/minute".
        trusted_proxies: those whose X-Forwarded-For counts, besides this host's own.
    """
    failures, trusted = _FailedLogins(failed_login_limit), (*HERE, *trusted_proxies)

    def find_handler(served: Flower, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if _SecurityHeaders not in served.transforms:
            served.add_transform(_SecurityHeaders)
        if denial := _denial(request, failures, trusted):
            return served.get_handler_delegate(request, _Denial, denial)
        return Application.find_handler(served, request, **kwargs)

    Flower.find_handler = find_handler
    flower.app.HTTPServer = _Server


def _denial(request: HTTPServerRequest, failures: _FailedLogins, trusted: Sequence[Network]) -> dict[str, Any] | None:
    """Return the answer to a request that must not reach Flower, nothing for one that may."""
    path = _path(request)
    if options.basic_auth and not (path == "/healthcheck" and _is_local(request)):
        address, offered = _address(request, trusted), request.headers.get("Authorization", "")
        if offered and (seconds := failures.wait(address)):
            text = f"Too many wrong passwords; try again in {seconds} s."
            return {"status": 429, "text": text, "headers": {"Retry-After": str(seconds)}}
        if not _is_password(offered):
            if offered:
                failures.hit(address)
            headers = {"WWW-Authenticate": 'Basic realm="flower"'}
            return {"status": 401, "text": "Access denied", "headers": headers}
    reads = request.method in READING_METHODS or (request.method == "POST" and path in READING_POSTS)
    if options.read_only and not reads:
        return {"status": 403, "text": "Flower is read-only here (FLOWER_READ_ONLY).", "headers": {}}
    return None


def _path(request: HTTPServerRequest) -> str:
    prefix = (options.url_prefix or "").strip("/")
    path: str = request.path
    return path.removeprefix(f"/{prefix}") if prefix else path


def _is_local(request: HTTPServerRequest) -> bool:
    forwarded = any(name in request.headers for name in FORWARDING_HEADERS)
    return not forwarded and ip_address(str(request.remote_ip)).is_loopback


def _address(request: HTTPServerRequest, trusted: Sequence[Network]) -> str:
    """Return who counts as one client."""
    forwarded = ",".join(request.headers.get_list("X-Forwarded-For"))
    return counted_as(client_address(str(request.remote_ip), forwarded, trusted))


def _is_password(offered: str) -> bool:
    scheme, _, encoded = offered.partition(" ")
    try:
        given = b64decode(encoded, validate=True)
    except ValueError:
        return False
    known = [hmac.compare_digest(given, credentials.encode()) for credentials in options.basic_auth]
    return scheme == "Basic" and any(known)
