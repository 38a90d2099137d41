"""Who may use routes: clients that send one of the keys, and not too often.

Those for monitoring are good for the routes of MetricsRoute alone.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from celery_durable.web.access_log import is_known
from celery_durable.web.clients import counted_as
from celery_durable.web.rate_limit import RateLimiter

# The ways to send a key, as OpenAPI describes them; the last one for pages alone.
SCHEMES = {
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "The same key."},
    "Basic": {"type": "http", "scheme": "basic", "description": "Any user, and the same key as password."},
}


class Guard:
    """Knows the keys, and how often each client came."""

    def __init__(self, keys: Iterable[str], metrics_keys: Iterable[str], *, requests: str, failed_logins: str) -> None:
        """Take over keys (none: everybody may do everything) and limits, like "30/minute"."""
        self._keys = list(map(_digest, keys))
        self._metrics_keys = list(map(_digest, metrics_keys))
        self._requests = RateLimiter(requests)
        self._failures = RateLimiter(failed_logins)

    def admit(self, key: str | None, address: str, challenge: str, *, monitoring: bool = False) -> None:
        """Return when a client may go on; one without a valid key gets the ``challenge``.

        Args:
            key: what the client has sent.
            address: where it comes from.
            challenge: how it is asked for a key.
            monitoring: whether a key for monitoring is enough.

        Raises:
            HTTPException: 401 or 429.
        """
        # A valid key is let in whoever else fails at the same address: behind a balancer all clients have the same.
        client = self._holder(key, monitoring) if self._keys else address
        if client is None:
            if seconds := self._failures.hit(address):
                raise _too_many("There were too many requests without a valid API key", seconds)
            detail = (
                "The API key is not valid."
                if key
                else "An API key is needed, as X-API-Key: KEY or Authorization: Bearer KEY."
            )
            raise HTTPException(401, detail, headers={"WWW-Authenticate": challenge})
        is_known.set(bool(self._keys))
        if seconds := self._requests.hit(client):
            raise _too_many(f"There were more requests than {self._requests.rate}", seconds)

    def _holder(self, key: str | None, monitoring: bool) -> str | None:
        """Return the name under which a key's requests are counted, None when it is not valid."""
        offered = _digest(key or "")
        # All keys, so that the time tells nothing.
        valid = self._keys + (self._metrics_keys if monitoring else [])
        matches = [hmac.compare_digest(offered, known) for known in valid]
        return offered if any(matches) else None


class ProtectedRoute(APIRoute):
    """A route for clients with a key; nothing else of a request is looked at before that.

    A dependency would be shorter, but FastAPI takes a third of a request's time to solve it.
    """

    schemes: tuple[str, ...] = ("X-API-Key", "Bearer")
    challenge = "Bearer"
    monitoring = False

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Document that a key is needed."""
        extra = {**(options.pop("openapi_extra", None) or {}), "security": [{name: []} for name in self.schemes]}
        super().__init__(path, endpoint, openapi_extra=extra, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the guard in front of the route's own handler."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            guard: Guard = request.app.state.guard
            key = _offered_key(request.headers, "Basic" in self.schemes)
            address = counted_as(request.client.host) if request.client else ""
            guard.admit(key, address, self.challenge, monitoring=self.monitoring)
            return await handle(request)

        return guarded


class DirectRoute(APIRoute):
    """A route whose function takes the request alone and makes the whole response: FastAPI documents it, no more.

    FastAPI's own way to a function and back takes as long as all the rest of a small request.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Call the function straight from the router."""
        super().__init__(path, endpoint, **options)
        self._handle = self.get_route_handler()
        self.app = self._respond

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function itself."""
        return self.endpoint

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive, send))
        await response(scope, receive, send)


class ProtectedDirectRoute(ProtectedRoute, DirectRoute):
    """The same for clients with a key."""


class MetricsRoute(ProtectedRoute):
    """A protected route that a key for monitoring opens, too."""

    monitoring = True


class PageRoute(ProtectedRoute):
    """A protected page: a browser asks for the key as a password, whoever the user is."""

    schemes = ("X-API-Key", "Bearer", "Basic")
    challenge = 'Basic realm="Any user, the API key as password", charset="UTF-8"'


def document_schemes(app: FastAPI) -> None:
    """Say in /openapi.json how a key is sent; all routes must be there."""
    app.openapi()["components"]["securitySchemes"] = SCHEMES


def _offered_key(headers: Headers, basic: bool) -> str | None:
    if key := headers.get("x-api-key"):
        return key
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return _password(key) if basic and scheme.lower() == "basic" else None


def _password(login: str) -> str | None:
    try:
        return base64.b64decode(login).decode().partition(":")[2]
    except ValueError:  # no base64, or no UTF-8 in it
        return None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _too_many(what: str, seconds: int) -> HTTPException:
    return HTTPException(429, f"{what}; try again in {seconds} s.", headers={"Retry-After": str(seconds)})
