"""JSON logs of all three services: one object a line, with task and request id where there is one."""

import json
import logging
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from asgi_correlation_id import correlation_id
from celery import current_task
from pythonjsonlogger.json import JsonFormatter as BaseJsonFormatter

from app.masking import mask

# Attributes of a record (``extra``) that tell what it is about.
FIELDS = ("task_id", "task_name", "request_id", "queue")

# Characters that are kept of a field, and of each thing that a stranger sends.
LONGEST_FIELD, LONGEST_PIECE = 255, 200
# Whether the running request has come with a valid key; set by app/api/security.py.
is_known: ContextVar[bool] = ContextVar("is_known", default=False)
# Loggers of servers, which write a line when anybody sends anything, and how many lines a process writes in a second
# about requests without a valid key. Balancers and probes ask a few times a second.
OF_STRANGERS = {"uvicorn.access", "uvicorn.error", "asgi_correlation_id", "tornado.access", "tornado.general"}
LINES_PER_SECOND = 20

Service = Literal["api", "celery_worker", "flower"]

# Of each exception of a chain: where it was raised, and the last way there through this application.
LAST_FRAMES, OWN_FRAMES = 6, 3
# Bytes. journald cuts a line after 48 KiB (LineMax), and half a line is no JSON any more.
LONGEST_MESSAGE, LONGEST_EXCEPTION = 16 * 1024, 24 * 1024
OWN = str(Path(__file__).parent)


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
            record.args = tuple(_cut(part, LONGEST_PIECE) if isinstance(part, str) else part for part in record.args)
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


class JsonFormatter(BaseJsonFormatter):
    """Writes a fixed set of fields, secrets masked; other attributes of a record are dropped.

    Dropped on purpose: Celery attaches the task's arguments to its records, and arguments may hold secrets.
    """

    def __init__(self, service: Service) -> None:
        """Remember which service writes."""
        super().__init__()
        self.service = service

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Fill the log line; the exception text, if any, arrives in ``message_dict``."""
        log_data["timestamp"] = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname
        log_data["service"] = self.service
        log_data["message"] = _bounded(mask(record.getMessage()), LONGEST_MESSAGE)
        log_data["module"] = record.module
        log_data["function"] = record.funcName
        log_data["line"] = record.lineno
        log_data.update({name: _cut(str(value), LONGEST_FIELD) for name, value in _context(record).items() if value})
        if exception := message_dict.get("exc_info"):
            log_data["exception"] = _bounded(mask(exception), LONGEST_EXCEPTION)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the chain of an exception: of each its type, whole message and last frames, the first cause first."""
        chain = traceback.TracebackException(*ei, compact=True)
        for link in _links(chain):
            own = [frame for frame in link.stack if frame.filename.startswith(OWN)][-OWN_FRAMES:]
            link.stack[:] = [frame for frame in link.stack if frame in own or frame in link.stack[-LAST_FRAMES:]]
        return "".join(chain.format()).rstrip()


def _links(chain: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """Return an exception and all that led to it or that it holds."""
    waiting = [chain]
    while waiting:
        yield (link := waiting.pop())
        waiting += filter(None, [link.__cause__, link.__context__, *(link.exceptions or [])])


def _bounded(text: str, longest: int) -> str:
    """Cut the middle out of a text: the first cause stands at its beginning, the last exception at its end."""
    kept, room = text, len(text)
    while len(json.dumps(kept)) > longest:
        room //= 2
        kept = f"{text[: room // 2]}\n[{len(text) - room} characters are left out]\n{text[-(room // 2) :]}"
    return kept


def _cut(text: str, longest: int) -> str:
    """Cut the end off a text that somebody else has chosen."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text) - longest} more characters)"


def _context(record: logging.LogRecord) -> dict[str, str | None]:
    """Find task and request: named by the record, else the running task, else the running request."""
    given = record.__dict__
    if "task_id" in given:
        return {name: given.get(name) for name in FIELDS}
    if isinstance(celery_data := given.get("data"), dict):  # set by Celery in the worker's main process
        return {"task_id": celery_data.get("id"), "task_name": celery_data.get("name")}
    if current_task and (request := current_task.request).id:
        return {"task_id": request.id, "task_name": current_task.name, "request_id": request.get("request_id")}
    return {"request_id": correlation_id.get()}


def log_config(service: Service, level: str, logfile: str | None = None) -> dict[str, Any]:
    """Build the ``logging.config.dictConfig`` dictionary of a service.

    ``app/log_config.json`` is the same for the API, for ``uvicorn --log-config``.

    Args:
        service: name written into each line.
        level: lowest level that is logged, any case.
        logfile: write there instead of stdout; reopened when it is rotated.
    """
    target = (
        {"class": "logging.handlers.WatchedFileHandler", "filename": logfile}
        if logfile
        else {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "app.logs.JsonFormatter", "service": service}},
        "filters": {"strangers": {"()": "app.logs.StrangersFilter"}},
        "handlers": {"json": {**target, "formatter": "json", "filters": ["strangers"]}},
        "root": {"level": level.upper(), "handlers": ["json"]},
        "loggers": {
            # uvicorn brings handlers of its own.
            "uvicorn": {"handlers": [], "propagate": True},
            "uvicorn.access": {"handlers": [], "propagate": True},
            # These print task arguments and results; app.agents.task_logs says the same without them.
            "celery.app.trace": {"level": "CRITICAL"},
            "celery.pool": {"level": "INFO"},
        },
    }
