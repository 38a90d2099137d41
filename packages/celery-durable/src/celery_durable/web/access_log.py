"""Lines about requests, bounded where anybody can cause them."""

import logging
import time
from contextvars import ContextVar
from typing import Any

from celery_durable.logs import cut

# Characters that are kept of each thing that an unexpected client sends.
LONGEST_PIECE = 200
# Whether the running request has come with a valid key.
is_known: ContextVar[bool] = ContextVar("is_known", default=False)
# Loggers of servers, which write a line when anybody sends anything, and how many lines a process writes in a second
# about requests without a valid key. Balancers and probes ask a few times a second.
OF_UNEXPECTED_CLIENTS = {"uvicorn.access", "uvicorn.error", "asgi_correlation_id", "tornado.access", "tornado.general"}
LINES_PER_SECOND = 20


class UnexpectedClientsFilter(logging.Filter):
    """Keeps whoever has no key from filling the disk: what they send is cut, and lines about them are limited.

    Lines about requests with a valid key are never left out, and errors have a limit of their own: a flood of other
    lines hides none.
    """

    def __init__(self) -> None:
        """Begin with the first second."""
        super().__init__()
        self._second, self._left_out = 0, 0
        self._lines = {False: 0, True: 0}  # whether they are errors

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written, and shorten its parts."""
        if record.name not in OF_UNEXPECTED_CLIENTS:
            return True
        if isinstance(record.args, tuple):
            record.args = tuple(cut(part, LONGEST_PIECE) if isinstance(part, str) else part for part in record.args)
        if is_known.get():
            return True
        second, is_error = int(time.monotonic()), record.levelno >= logging.ERROR
        if second != self._second:
            left_out, self._second, self._lines, self._left_out = self._left_out, second, {False: 0, True: 0}, 0
            if left_out:
                logging.getLogger(__name__).warning(
                    "%d lines about requests without a valid key were left out", left_out
                )
        self._lines[is_error] += 1
        is_left_out = self._lines[is_error] > LINES_PER_SECOND
        self._left_out += is_left_out
        return not is_left_out


def bounded(config: dict[str, Any]) -> dict[str, Any]:
    """Add the filter to what ``celery_durable.logs.log_config`` has built."""
    config["filters"] = {"unexpected_clients": {"()": f"{__name__}.{UnexpectedClientsFilter.__name__}"}}
    config["handlers"]["json"]["filters"] = ["unexpected_clients"]
    return config
