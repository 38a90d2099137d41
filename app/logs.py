"""Logs of the API: the workers' JSON, with the request's id, and bounded where anybody can cause lines."""

import logging
from typing import Any

from asgi_correlation_id import correlation_id

from celery_durable import logs
from celery_durable.web.access_log import bounded


class JsonFormatter(logs.JsonFormatter):
    """Adds the id of the running request."""

    def context(self, record: logging.LogRecord) -> dict[str, Any]:
        """Find what a record is about."""
        return super().context(record) or {"request_id": correlation_id.get()}


def log_config(service: str, level: str) -> dict[str, Any]:
    """Build the ``logging.config.dictConfig`` dictionary of a server.

    ``app/log_config.json`` is the same for the API, for ``uvicorn --log-config``.
    """
    config = bounded(logs.log_config(service, level))
    config["formatters"]["json"]["()"] = "app.logs.JsonFormatter"
    # uvicorn brings handlers of its own.
    config["loggers"] |= {name: {"handlers": [], "propagate": True} for name in ("uvicorn", "uvicorn.access")}
    return config
