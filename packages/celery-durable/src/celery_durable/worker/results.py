"""Where results are stored: Celery's Redis backend, which never drops one because Redis is unreachable or read-only.

A run's start and its success take one round trip each; Celery reads what is stored before it writes.
"""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import redis
from celery import Celery, current_app, signals, states
from celery.backends.redis import RedisBackend, ResultConsumer, SentinelBackend
from celery.exceptions import BackendStoreError
from kombu.exceptions import OperationalError
from kombu.utils.encoding import str_to_bytes

from celery_durable.connection import (
    Connection,
    SentinelConnection,
    SentinelSslConnection,
    SslConnection,
    is_outage,
    limits,
)
from celery_durable.masking import mask_all
from celery_durable.options import options_of
from celery_durable.worker.chords import ChordClient, patience

logger = logging.getLogger(__name__)

# Adds commands to a pipeline.
AddTo = Callable[[redis.client.Pipeline], object]

# Attempts of the worker's main process, about a second; its loop must go on. What it cannot store runs again.
MAIN_PROCESS_RETRIES = 5
# Attempts to reconnect of whoever waits for a result, a second apart: as many as Celery makes of its own accord.
LISTENER_RETRIES = 20


class Listener(ResultConsumer):
    """Waits for results; a restart of Redis does not end that."""

    def _reconnect(self) -> None:
        web = options_of(self.app).client_profile == "web"
        self._ensure(self._reconnect_pubsub, (), **({} if web else {"max_retries": LISTENER_RETRIES}))

    def consume_from(self, task_id: str) -> None:
        """Listen for the result of a task, and read what came before.

        Nobody else reads where no result is waited for: 169 bytes for each task would stay in the kernel's memory,
        then in that of Redis until it closes the connection (https://github.com/celery/celery/issues/6963).
        """
        super().consume_from(task_id)
        with self._locked():
            # Whoever waits reads it.
            while not self._socket_waiter and self._drain_one(self._pubsub, 0):
                pass


class ResultStore(RedisBackend):
    """Used through Celery's table of backends."""

    ResultConsumer = Listener
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

    def on_chord_part_return(self, *args: Any, **kwargs: Any) -> None:
        """Count a part of a chord; the process or thread of a task waits for Redis, the main process does not."""
        if self.max_retries != float("inf"):
            super().on_chord_part_return(*args, **kwargs)
            return
        usual, self.client = self.client, self._chord_client
        try:
            super().on_chord_part_return(*args, **kwargs)
        finally:
            self.client = usual

    @cached_property
    def _chord_client(self) -> ChordClient:
        return ChordClient(connection_pool=self._get_pool(**self.connparams, retry=patience()))

    def prepare_exception(self, *args: Any, **kwargs: Any) -> Any:
        """Make an error fit for storage. A client of a provider may have put its key into the message."""
        return mask_all(super().prepare_exception(*args, **kwargs))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        store = self._exchange if state in (states.STARTED, states.SUCCESS) else super()._store_result
        stored = store(task_id, result, state, mask_all(traceback), *args, **kwargs)
        self.last_stored = task_id, state
        return stored

    def _exchange(self, task_id: str, result: Any, state: str, traceback: Any, request: Any = None, **_: Any) -> Any:
        """Store a start or a success in one round trip. As with Celery, a success that is there already stays."""
        meta = {**self._get_result_meta(result, state, traceback, request), "task_id": task_id}
        key, value = self.get_key_for_task(task_id), self.encode(meta)
        if len(value) > self._MAX_STR_VALUE_SIZE:
            # The parameters are those of Celery, which its types do not know.
            raise BackendStoreError(  # type: ignore[call-arg]
                "value too large for Redis backend", state=state, task_id=task_id
            )
        earlier = self.ensure(self._set_and_publish, (key, value, state == states.STARTED))
        if not earlier or earlier == str_to_bytes(value):
            return result
        if self.decode(earlier)["status"] == states.SUCCESS:
            if state == states.SUCCESS:  # of another run: whoever has read it will not read a different one
                self.client.set(key, earlier, ex=self.expires or None)
        elif state == states.STARTED:
            self.set(key, value)
        return result

    def _set_and_publish(self, key: bytes, value: str, new: bool) -> bytes | None:
        """Store and publish a state; return what was stored before, which stays where the state must be ``new``."""

        def add_to(pipeline: redis.client.Pipeline) -> None:
            pipeline.set(key, value, ex=self.expires or None, nx=new, get=True)
            pipeline.publish(key, value)

        earlier: bytes | None = self.execute(add_to)[0]
        return earlier

    def execute(self, add_to: AddTo) -> list[Any]:
        """Execute what ``add_to`` adds to a pipeline, in one round trip, and return the replies."""
        with self.client.pipeline(transaction=False) as pipeline:
            add_to(pipeline)
            replies: list[Any] = pipeline.execute()
        return replies

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, **options: Any) -> dict[str, Any]:
        # Two messages may have the same task id.
        meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, **options)
        meta["message"] = (getattr(request, "properties", None) or {}).get("message_id")
        return meta

    def _get_pool(self, **params: Any) -> Any:
        encrypted = issubclass(params.get("connection_class", object), redis.SSLConnection)
        kind = self.tls_connection if encrypted else self.plain_connection
        return super()._get_pool(**{**params, "connection_class": kind, **limits(options_of(self.app))})


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
    if hasattr(sender.app, "durable_options"):
        sender.app.backend.max_retries = MAIN_PROCESS_RETRIES


def _retry_until_the_time_limit(**_: Any) -> None:
    if hasattr(current_app, "durable_options"):
        current_app.backend.max_retries = float("inf")
