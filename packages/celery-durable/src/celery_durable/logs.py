"""JSON logs: one object a line, with the task's id where there is one."""

import json
import logging
import sysconfig
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from celery import current_task

from celery_durable.masking import mask

# Attributes of a record (``extra``) that tell what it is about.
FIELDS = ("task_id", "task_ids", "task_name", "request_id", "queue")
# Characters that are kept of a field.
LONGEST_FIELD = 255
# Of each exception of a chain: where it was raised, and the last way there through the application.
LAST_FRAMES, OWN_FRAMES = 6, 3
# Bytes. journald cuts a line after 48 KiB (LineMax), and half a line is no JSON any more.
LONGEST_MESSAGE, LONGEST_EXCEPTION = 16 * 1024, 24 * 1024
# What JSON makes of one character at most: a surrogate pair.
LONGEST_ESCAPE = len(r"\ud83d\ude00")
# Code in these directories is not the application's.
FOREIGN = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class JsonFormatter(logging.Formatter):
    """Writes a fixed set of fields, secrets masked; other attributes of a record are dropped.

    Dropped on purpose: Celery attaches the task's arguments to its records, and arguments may hold secrets.
    """

    def __init__(self, service: str) -> None:
        """Remember which service writes."""
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self.service,
            "message": _bounded(mask(record.getMessage()), LONGEST_MESSAGE),
            "module": record.module,
            "function": record.funcName,
            "line": record.lineno,
        }
        line.update({name: cut(str(value), LONGEST_FIELD) for name, value in self.context(record).items() if value})
        if record.exc_info:
            line["exception"] = _bounded(mask(self.formatException(record.exc_info)), LONGEST_EXCEPTION)
        return json.dumps(line)

    def context(self, record: logging.LogRecord) -> dict[str, Any]:
        """Find what a record is about: named by the record, else the running task."""
        given = record.__dict__
        if "task_id" in given or "task_ids" in given:
            return {name: given.get(name) for name in FIELDS}
        if isinstance(celery_data := given.get("data"), dict):  # set by Celery in the worker's main process
            return {"task_id": celery_data.get("id"), "task_name": celery_data.get("name")}
        if current_task and (request := current_task.request).id:
            return {"task_id": request.id, "task_name": current_task.name, "request_id": request.get("request_id")}
        return {}

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the chain of an exception: of each its type, whole message and last frames, the first cause first."""
        chain = traceback.TracebackException(*ei, compact=True)
        for link in _links(chain):
            own = [frame for frame in link.stack if not frame.filename.startswith(FOREIGN)][-OWN_FRAMES:]
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
    if room * LONGEST_ESCAPE + 2 <= longest:
        return text
    while len(json.dumps(kept)) > longest:
        room //= 2
        kept = f"{text[: room // 2]}\n[{len(text) - room} characters are left out]\n{text[-(room // 2) :]}"
    return kept


def cut(text: str, longest: int) -> str:
    """Cut the end off a text that somebody else has chosen."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text) - longest} more characters)"


def log_config(service: str, level: str, logfile: str | None = None) -> dict[str, Any]:
    """Build the ``logging.config.dictConfig`` dictionary of a service.

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
        "formatters": {"json": {"()": "celery_durable.logs.JsonFormatter", "service": service}},
        "handlers": {"json": {**target, "formatter": "json"}},
        "root": {"level": level.upper(), "handlers": ["json"]},
        "loggers": {
            # These print task arguments and results; celery_durable.worker.task_logs says the same without them.
            "celery.app.trace": {"level": "CRITICAL"},
            "celery.pool": {"level": "INFO"},
        },
    }
