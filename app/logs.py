"""Logs of API and Flower: the workers' JSON, with the request's id, and bounded where anybody can cause lines."""

import logging
import time
from contextvars import ContextVar
from typing import Any

from asgi_correlation_id import correlation_id

from celery_durable import logs
from celery_durable.logs import cut

# Characters that are kept of each thing that a stranger sends.
LONGEST_PIECE = 200
# Whether the running request has come with a valid key; set by app/api/security.py.
is_known: ContextVar[bool] = ContextVar("is_known", default=False)
# Loggers of servers, which write a line when anybody sends anything, and how many lines a process writes in a second
# about requests without a valid key. Balancers and probes ask a few times a second.
OF_STRANGERS = {"uvicorn.access", "uvicorn.error", "asgi_correlation_id", "tornado.access", "tornado.general"}
LINES_PER_SECOND = 20


class StrangersFilter(logging.Filter):
    """Keeps whoever has no key from filling the disk: what they send is cut, and lines about them are limited.

    Errors, and lines about requests with a valid key, are never left out.
    """

    def __init__(self) -> None:
        """Begin with the first second."""
        super().__init__()
        self._second, self._lines, self._left_out = 0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written, and shorten its parts."""
        if record.name not in OF_STRANGERS:
            return True
        if isinstance(record.args, tuple):
            record.args = tuple(cut(part, LONGEST_PIECE) if isinstance(part, str) else part for part in record.args)
        if record.levelno >= logging.ERROR or is_known.get():
            return True
        second = int(time.monotonic())
        if second != self._second:
            left_out, self._second, self._lines, self._left_out = self._left_out, second, 0, 0
            if left_out:
                logging.getLogger(__name__).warning(
                    "%d lines about requests without a valid key were left out", left_out
                )
        self._lines += 1
        self._left_out += self._lines > LINES_PER_SECOND
        return self._lines <= LINES_PER_SECOND


class JsonFormatter(logs.JsonFormatter):
    """Adds the id of the running request."""

    def context(self, record: logging.LogRecord) -> dict[str, Any]:
        """Find what a record is about."""
        return super().context(record) or {"request_id": correlation_id.get()}


def log_config(service: str, level: str) -> dict[str, Any]:
    """Build the ``logging.config.dictConfig`` dictionary of a server.

    ``app/log_config.json`` is the same for the API, for ``uvicorn --log-config``.
    """
    config = logs.log_config(service, level)
    config["formatters"]["json"]["()"] = "app.logs.JsonFormatter"
    config["filters"] = {"strangers": {"()": "app.logs.StrangersFilter"}}
    config["handlers"]["json"]["filters"] = ["strangers"]
    # uvicorn brings handlers of its own.
    config["loggers"] |= {name: {"handlers": [], "propagate": True} for name in ("uvicorn", "uvicorn.access")}
    return config
