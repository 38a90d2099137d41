"""Who may use the API: whoever sends one of the keys in BACKEND_API_KEY (durable_console.web.security).

Those in METRICS_API_KEY are for monitoring: good for metrics and alerts alone.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.settings import get_settings

OPEN_ENVIRONMENT = "development"


class KeyRequired:
    """Keeps an API without a key from starting.

    At start, not at import: a release is tried without its secrets. In front of the lifespan: an exception in there
    would log its trace.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of ``app``."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the server's request to start, or pass everything on."""
        settings = get_settings()
        if scope["type"] == "lifespan" and not settings.api_keys and settings.environment != OPEN_ENVIRONMENT:
            await receive()
            refusal = (
                f"BACKEND_API_KEY is not set: give it a key, without which the API only starts with "
                f"ENVIRONMENT={OPEN_ENVIRONMENT}, not {settings.environment}."
            )
            await send({"type": "lifespan.startup.failed", "message": refusal})
        else:
            await self.app(scope, receive, send)
