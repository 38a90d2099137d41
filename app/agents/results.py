"""Where results are stored: Celery's Redis backend, which never drops one because Redis is away or refuses to write."""

import json
import logging
import math
from typing import Any

import redis
from celery import Celery, current_app, signals, states
from celery.backends.redis import RedisBackend, SentinelBackend
from kombu.exceptions import OperationalError
from kombu.utils.json import object_hook
from pydantic_core import to_jsonable_python

from app.agents.redis_connection import (
    Connection,
    SentinelConnection,
    SentinelSslConnection,
    SslConnection,
    is_outage,
)
from app.masking import mask_all

logger = logging.getLogger(__name__)

# Attempts of the worker's main process, about a second; its loop must go on. What it cannot store runs again.
MAIN_PROCESS_RETRIES = 5

# What the state of a task is called whose stored result nobody can read.
UNKNOWN = "UNKNOWN"


def parse(stored: bytes) -> dict[str, Any]:
    """Return what Celery has stored about a task, made of what JSON knows alone: dates are texts, NaN is null.

    Raises:
        ValueError: it is not Celery's.
        RecursionError: it is nested too deep for what is left of the stack.
    """
    meta = json.loads(stored, object_hook=_plain, parse_constant=lambda _: None, parse_float=_finite)
    if not isinstance(meta, dict) or "status" not in meta:
        raise ValueError("What is stored as a task's result is not Celery's.")
    return meta


def state_of(stored: bytes) -> Any:
    """Return a task's state from what Celery has stored about it; UNKNOWN where that cannot be read."""
    try:
        return parse(stored)["status"]
    except (ValueError, RecursionError):
        return UNKNOWN


def _finite(number: str) -> float | None:
    """Return a number; null for one like 1e999, which other languages' JSON writes and Python would call infinite."""
    value = float(number)
    return value if math.isfinite(value) else None


def _plain(value: dict[str, Any]) -> Any:
    """Turn what kombu writes for a date, a UUID, bytes ... into a text, and leave what it does not know as it is."""
    try:
        revived = object_hook(value)
        return value if revived is value else to_jsonable_python(revived)
    except Exception:  # noqa: BLE001 - what looks like one may be anything
        return value


class ResultStore(RedisBackend):
    """Used through Celery's table of backends."""

    plain_connection: type[redis.Connection] = Connection
    tls_connection: type[redis.Connection] = SslConnection

    # The task and the state that this thread has stored last.
    last_stored: tuple[str, str] | None = None

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Tell whether it is worth while to try again; Celery would try again after a KeyError, too."""
        return is_outage(exc)

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, *_: Any, **__: Any
    ) -> None:
        """Store that a task is to run again. Its message was sent before: whatever happens here, this run has ended."""
        try:
            result = self.encode_result(exc, states.RETRY)
            self._ensure_retryable(
                self._store_result,
                *(task_id, result, states.RETRY, traceback),
                request=request,
                max_retries=MAIN_PROCESS_RETRIES,
            )
        except Exception:
            logger.exception("That task %s will run again cannot be stored", task_id, extra={"task_id": task_id})

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        """Listen for the result of a task that is about to be sent.

        Raises:
            kombu.exceptions.OperationalError: Redis does not answer; Celery says so with a RuntimeError here.
        """
        try:
            return super().on_task_call(producer, task_id)
        except RuntimeError as error:
            raise OperationalError("The Redis with the results does not answer.") from error

    def prepare_exception(self, *args: Any, **kwargs: Any) -> Any:
        """Make an error fit for storage. A client of a provider may have put its key into the message."""
        return mask_all(super().prepare_exception(*args, **kwargs))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        stored = super()._store_result(task_id, result, state, mask_all(traceback), *args, **kwargs)
        self.last_stored = task_id, state
        return stored

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, **options: Any) -> dict[str, Any]:
        # Two messages may have the same task id.
        meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, **options)
        meta["message"] = (getattr(request, "properties", None) or {}).get("message_id")
        return meta

    def _get_pool(self, **params: Any) -> Any:
        encrypted = issubclass(params.get("connection_class", object), redis.SSLConnection)
        kind = self.tls_connection if encrypted else self.plain_connection
        return super()._get_pool(**{**params, "connection_class": kind})


class SentinelResultStore(ResultStore, SentinelBackend):
    """The same in the server that sentinels call the primary."""

    plain_connection = SentinelConnection
    tls_connection = SentinelSslConnection


def install(app: Celery) -> None:
    """Make result URLs of ``app`` use these classes."""
    stores = {"redis": ResultStore, "rediss": ResultStore, "sentinel": SentinelResultStore}
    app.loader.override_backends = {scheme: f"{__name__}:{store.__name__}" for scheme, store in stores.items()}
    signals.worker_init.connect(_limit_retries)
    signals.worker_process_init.connect(_retry_until_the_time_limit)


def _limit_retries(sender: Any, **_: Any) -> None:
    # The backend belongs to the thread: those of a thread pool keep trying.
    sender.app.backend.max_retries = MAIN_PROCESS_RETRIES


def _retry_until_the_time_limit(**_: Any) -> None:
    current_app.backend.max_retries = float("inf")
