"""Where results are stored: Celery's Redis backend, which never drops one because Redis is away or refuses to write."""

from typing import Any

import redis
from celery import Celery, current_app, signals
from celery.backends.redis import RedisBackend

from app.agents.redis_connection import Connection, SslConnection
from app.masking import mask_all

# Attempts of the worker's main process, about a second; its loop must go on. What it cannot store runs again.
MAIN_PROCESS_RETRIES = 5


class ResultStore(RedisBackend):
    """Used through Celery's table of backends."""

    def prepare_exception(self, *args: Any, **kwargs: Any) -> Any:
        """Make an error fit for storage. A client of a provider may have put its key into the message."""
        return mask_all(super().prepare_exception(*args, **kwargs))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return super()._store_result(task_id, result, state, mask_all(traceback), *args, **kwargs)

    def _get_pool(self, **params: Any) -> Any:
        encrypted = issubclass(params.get("connection_class", object), redis.SSLConnection)
        return super()._get_pool(**{**params, "connection_class": SslConnection if encrypted else Connection})


def install(app: Celery) -> None:
    """Make ``redis://`` result URLs of ``app`` use this class."""
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), f"{__name__}:ResultStore")
    signals.worker_init.connect(_limit_retries)
    signals.worker_process_init.connect(_retry_until_the_time_limit)


def _limit_retries(sender: Any, **_: Any) -> None:
    # The backend belongs to the thread: those of a thread pool keep trying.
    sender.app.backend.max_retries = MAIN_PROCESS_RETRIES


def _retry_until_the_time_limit(**_: Any) -> None:
    current_app.backend.max_retries = float("inf")
