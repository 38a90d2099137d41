"""A password on every route of Flower: its own check leaves /metrics, static files and OPTIONS requests open."""

import hmac
from base64 import b64decode
from typing import Any

from flower.app import Flower
from flower.options import options
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler


class _PasswordRequired(RequestHandler):
    def check_xsrf_cookie(self) -> None:
        """Answer 401 to a POST too, where tornado would find the cookie missing first."""

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish("Access denied")


def install() -> None:
    """Check the password before Flower chooses a handler, so that routes of later versions are covered too."""
    Flower.find_handler = _find_handler


def _find_handler(flower: Flower, request: HTTPServerRequest, **kwargs: Any) -> Any:
    if options.basic_auth and not _is_health_check(request) and not _has_password(request):
        return flower.get_handler_delegate(request, _PasswordRequired)
    return Application.find_handler(flower, request, **kwargs)


def _is_health_check(request: HTTPServerRequest) -> bool:
    prefix = (options.url_prefix or "").strip("/")
    return request.path == (f"/{prefix}/healthcheck" if prefix else "/healthcheck")


def _has_password(request: HTTPServerRequest) -> bool:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        given = b64decode(encoded, validate=True)
    except ValueError:
        return False
    known = [hmac.compare_digest(given, credentials.encode()) for credentials in options.basic_auth]
    return scheme == "Basic" and any(known)
