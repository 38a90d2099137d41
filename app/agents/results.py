"""Where results are stored: Celery's Redis backend, which never drops one because Redis is away or refuses to write."""

from typing import Any

import redis
from celery import Celery, current_app, signals
from celery.backends.redis import RedisBackend, SentinelBackend

from app.agents.redis_connection import Connection, SentinelConnection, SentinelSslConnection, SslConnection
from app.masking import mask_all

# Attempts of the worker's main process, about a second; its loop must go on. What it cannot store runs again.
MAIN_PROCESS_RETRIES = 5


class ResultStore(RedisBackend):
    """Used through Celery's table of backends."""

    plain_connection: type[redis.Connection] = Connection
    tls_connection: type[redis.Connection] = SslConnection

    def prepare_exception(self, *args: Any, **kwargs: Any) -> Any:
        """Make an error fit for storage. A client of a provider may have put its key into the message."""
        return mask_all(super().prepare_exception(*args, **kwargs))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return super()._store_result(task_id, result, state, mask_all(traceback), *args, **kwargs)

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
