"""Who may use the API: whoever sends one of the keys in BACKEND_API_KEY (durable_console.web.security).

Those in METRICS_API_KEY are for monitoring: good for metrics and alerts alone.
"""

from app.settings import get_settings

OPEN_ENVIRONMENT = "development"


def missing_key() -> str | None:
    """Return why an API without a key does not start; at start, not at import: a release is tried without secrets."""
    settings = get_settings()
    if settings.api_keys or settings.environment == OPEN_ENVIRONMENT:
        return None
    return (
        f"BACKEND_API_KEY is not set: give it a key, without which the API only starts with "
        f"ENVIRONMENT={OPEN_ENVIRONMENT}, not {settings.environment}."
    )
