"""Headers that tell a browser to do nothing with an answer but show it, and a cache to forget it."""

import base64
import hashlib
import re

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DOCS = "/docs"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class SecurityHeaders:
    """Puts the headers on each answer; only pages may use more than themselves."""

    def __init__(self, app: ASGIApp, policies: dict[str, str]) -> None:
        """Stand in front of ``app``; ``policies`` are the content security policies of its pages, by their path."""
        self.app = app
        self._headers = _encoded(HEADERS)
        self._page_headers = {
            path: _encoded({**HEADERS, "Content-Security-Policy": policy}) for path, policy in policies.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with more headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = self.of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def of(self, path: str) -> list[tuple[bytes, bytes]]:
        """Return the headers for an answer at this path."""
        return self._page_headers.get(path, self._headers)


def docs_policy(app: FastAPI) -> str:
    """Return the content security policy for /docs: the host's own files, and the one script inside of the page."""
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=app.title,
        oauth2_redirect_url=app.swagger_ui_oauth2_redirect_url,
        swagger_ui_parameters=app.swagger_ui_parameters,
    )
    [script] = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    return (
        f"default-src 'none'; script-src 'self' {_source(script)}; style-src 'self'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page_policy(style: str) -> str:
    """Return the content security policy for a page that uses nothing but the one style sheet inside of it."""
    return (
        f"default-src 'none'; style-src {_source(style.encode())}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
