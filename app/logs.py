"""JSON logs of all three services: one object a line, with task and request id where there is one."""

import logging
from datetime import UTC, datetime
from typing import Any, Literal

from asgi_correlation_id import correlation_id
from celery import current_task
from pythonjsonlogger.json import JsonFormatter as BaseJsonFormatter

from app.masking import mask

# Attributes of a record (``extra``) that tell what it is about.
FIELDS = ("task_id", "task_name", "request_id", "queue")

Service = Literal["api", "celery_worker", "flower"]


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
        log_data["message"] = mask(record.getMessage())
        log_data["module"] = record.module
        log_data["function"] = record.funcName
        log_data["line"] = record.lineno
        log_data.update({name: value for name, value in _context(record).items() if value})
        if exception := message_dict.get("exc_info"):
            log_data["exception"] = mask(exception)


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
        "handlers": {"json": {**target, "formatter": "json"}},
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
