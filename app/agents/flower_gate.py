"""In front of every route of Flower: password, read-only mode and security headers.

Flower's own password check leaves /metrics, static files and OPTIONS requests open. Its read-only mode is a line in
each handler; here the routes that a later version brings are covered too.
"""

import hashlib
import hmac
import math
import time
from base64 import b64decode, b64encode
from ipaddress import ip_address
from typing import Any

from flower.app import Flower
from flower.options import options
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import Application, OutputTransform, RequestHandler

from app.api.rate_limit import RateLimiter
from app.settings import get_settings

READING_METHODS = {"GET", "HEAD", "OPTIONS"}
# The page of tasks asks for its rows by POST.
READING_POSTS = {"/tasks/datatable"}
# Set by proxies: who they speak for is not on this host, or need not be.
FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")
LONGEST_ADDRESS = 45  # characters of an IPv6 address at most
# The one script that stands in a page of Flower 2.2, as its template renders it.
INLINE_SCRIPT = "\nvar autorefresh = {};\n"


class _FailedLogins(RateLimiter):
    """Counts wrong passwords per address."""

    def wait(self, address: str) -> int:
        """Return the seconds for which an address is not asked for its password; 0 when it is."""
        left = math.ceil(self._window_ends - time.monotonic())
        return max(0, left) if self._hits[address] >= self._amount else 0


class _Refusal(RequestHandler):
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


def install() -> None:
    """Ask the gate before Flower chooses a handler."""
    failures = _FailedLogins(get_settings().failed_login_limit)

    def find_handler(flower: Flower, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if _SecurityHeaders not in flower.transforms:
            flower.add_transform(_SecurityHeaders)
        if refusal := _refusal(request, failures):
            return flower.get_handler_delegate(request, _Refusal, refusal)
        return Application.find_handler(flower, request, **kwargs)

    Flower.find_handler = find_handler


def _refusal(request: HTTPServerRequest, failures: _FailedLogins) -> dict[str, Any] | None:
    """Return the answer to a request that must not reach Flower, nothing for one that may."""
    path = _path(request)
    if options.basic_auth and not (path == "/healthcheck" and _is_local(request)):
        address, offered = _address(request), request.headers.get("Authorization", "")
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


def _address(request: HTTPServerRequest) -> str:
    """Return who counts as one client: behind a balancer or a proxy on this host, the address that it has seen."""
    address = str(request.remote_ip)
    seen: str = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    trusted = ip_address(address).is_loopback or address in get_settings().trusted_proxies
    return seen[:LONGEST_ADDRESS] if seen and trusted else address


def _is_password(offered: str) -> bool:
    scheme, _, encoded = offered.partition(" ")
    try:
        given = b64decode(encoded, validate=True)
    except ValueError:
        return False
    known = [hmac.compare_digest(given, credentials.encode()) for credentials in options.basic_auth]
    return scheme == "Basic" and any(known)
