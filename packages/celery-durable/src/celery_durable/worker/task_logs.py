"""The worker's JSON logs, by choice: from the first line to the last, with a line for each start, end and retry."""

import logging.config
import os
import time
from typing import Any

import celery.apps.worker
import click
from celery import signals
from click.core import ParameterSource

from celery_durable.logs import JsonFormatter, log_config
from celery_durable.options import options_of

logger = logging.getLogger(__name__)

STDOUT = 1  # file descriptor


def install() -> None:
    """Connect the handlers; Celery only keeps weak references, so they are module functions."""
    signals.celeryd_init.connect(_no_banner)
    signals.setup_logging.connect(_setup_logging)
    signals.task_prerun.connect(_on_start)
    signals.task_success.connect(_on_success)
    signals.task_retry.connect(_on_retry)
    signals.task_failure.connect(_on_failure)
    # Celery prints its shutdown notices as plain text.
    celery.apps.worker.safe_say = _say  # type: ignore[attr-defined]


def _no_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True  # the banner is plain text


def _setup_logging(loglevel: int | str, logfile: str | None, **_: Any) -> None:
    name = loglevel if isinstance(loglevel, str) else logging.getLevelName(loglevel)
    logging.config.dictConfig(log_config("celery_worker", _chosen_level(name), logfile))


def _chosen_level(default: str) -> str:
    """Return ``--loglevel`` where it was given, else that of the options; Celery passes on its own default."""
    context = click.get_current_context(silent=True)
    if context is not None and context.get_parameter_source("loglevel") is ParameterSource.DEFAULT:
        return options_of(context.obj.app).log_level or default
    return default


def _say(message: str, _file: Any = None) -> None:
    # Called from signal handlers: neither a logging lock nor a buffered stream may be touched.
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, message.strip(), (), None, "safe_say")
    os.write(STDOUT, f"{JsonFormatter('celery_worker').format(record)}\n".encode())


def _ids(request: Any) -> dict[str, Any]:
    return {"task_id": request.id, "task_name": request.task, "request_id": request.get("request_id")}


def _on_start(task: Any, **_: Any) -> None:
    task.request.started_at = time.monotonic()
    logger.info("Task started, attempt %d", task.request.retries + 1)


def _on_success(sender: Any, **_: Any) -> None:
    logger.info("Task finished in %.3f s", time.monotonic() - sender.request.started_at)


def _on_retry(request: Any, reason: Any, **_: Any) -> None:
    logger.warning("Task will be retried: %s", reason, extra=_ids(request))


def _on_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    # Sent by the pool's child, or by the main process for a task that was killed.
    extra = {"task_id": task_id, "task_name": sender.name, "request_id": sender.request.get("request_id")}
    logger.error("Task failed: %s", type(exception).__name__, exc_info=exception, extra=extra)
