"""What every process of the application does on a channel: it declares queues, publishes and purges."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import redis
from celery import current_app, signals
from celery.app.amqp import _callback_publish_retry
from kombu.transport import redis as kombu_redis

from celery_durable import keys, scripts, signing
from celery_durable.connection import Connection, SslConnection, is_outage, limits
from celery_durable.options import Options, options_of
from celery_durable.redelivery import REDELIVERIES
from celery_durable.scripts import run
from celery_durable.task_ids import MADE, created, task_of, write_out
from celery_durable.worker.purging import purge
from celery_durable.worker.runtime import runtime_of

logger = logging.getLogger(__name__)

# Queues of answers to questions, and of events.
NO_TASKS, EVENTS = ".pidbox", "celeryev"
# How often it is tried to send what a task sends or what follows it, most often a second apart: the hard limit comes
# before.
PUBLISH_RETRIES = 1_000_000

# What was tried to be sent, while a task sends something: queue -> body and entry.
_tried: ContextVar[dict[str, tuple[Any, str]] | None] = ContextVar("tried", default=None)


@cache
def _warn_of_priorities(task: str) -> None:
    logger.warning("priority= of %s changes nothing: give urgent tasks a queue and a pool of their own", task)


@signals.before_task_publish.connect
def _wait_for_the_broker(retry_policy: dict[str, Any] | None = None, **_: Any) -> None:
    """Send what a task sends, its retry, links, a chord's callback or a chain's next, however long the broker is away.

    Celery tries for less than a second to send what follows a task, then stores that the task failed and drops the rest
    of the chain. A retry, or what the task sends, fails at once where Redis answers that it is full. Who gives a number
    of attempts of their own has these.
    """
    if retry_policy is None or not _callback_publish_retry.get() or not hasattr(current_app, "durable_options"):
        _tried.set(None)
        return
    _tried.set({})
    if retry_policy.get("max_retries") is None:
        retry_policy["max_retries"] = PUBLISH_RETRIES


class PublishingChannel(kombu_redis.Channel):
    """Counts accepted tasks when it publishes."""

    connection_class: type[redis.Connection] = Connection
    connection_class_ssl: type[redis.Connection] = SslConnection
    # Batches would bypass _put.
    supports_batch_publish = False

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        """Connect; the arguments are the base class's."""
        # A task that ends later is acknowledged by its channel, which has lost its connection then.
        self._app = connection.client.app
        super().__init__(connection, *args, **kwargs)

    @property
    def _options(self) -> Options:
        return options_of(self._app)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        return {**super()._connparams(asynchronous), **limits(self._options)}

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Use a connection.

        Raises:
            RuntimeError: Redis rejects for good what a task sends. kombu would make an OperationalError of it, which is
                tried again until it passes (``_wait_for_the_broker``).
        """
        try:
            with super().conn_or_acquire(client) as connection:
                yield connection
        except redis.ResponseError as error:
            if not _callback_publish_retry.get() or is_outage(error):
                raise
            raise RuntimeError(f"Redis rejects what the task sends: {error}") from error

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Write down the bindings of tasks' queues alone.

        Commands arrive on a channel and answers go straight to their list: nobody reads those bindings, but whoever may
        ask questions may write them, and one of another type would end each worker that starts.
        """
        if not queue.endswith(NO_TASKS):
            super()._queue_bind(exchange, routing_key, pattern, queue)
        elif self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, routing_key.replace("#", "*"))

    def _refresh_bindings(self, queues: list[str]) -> None:
        super()._refresh_bindings([queue for queue in queues if not queue.endswith(NO_TASKS)])

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if not queue.endswith(NO_TASKS):
            super()._delete(queue, *args, **kwargs)
            return
        self.auto_delete_queues.discard(queue)
        with self.conn_or_acquire(client=kwargs.get("client")) as client:
            client.delete(queue)

    def sweep_bindings(self, limit: int = 100) -> int:
        """Remove bindings of expired queues, in workers alone: others may not remove those of tasks' queues."""
        return super().sweep_bindings(limit) if runtime_of(self._app) else 0

    def _purge(self, queue: str) -> int:
        """Delete what waits, and tell the ledger.

        Raises:
            PurgeError: Redis rejects it. Celery takes its own errors for an empty queue.
        """
        with self.conn_or_acquire() as client:
            return purge(client, queue)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        write_out(message)
        # Answers and events hold no task; they are read by who knows no signatures.
        task_id = "" if queue.endswith(NO_TASKS) or queue.startswith(EVENTS) else task_of(message)
        if not task_id:
            super()._put(queue, message, **kwargs)
            return
        # A retry inherits the headers of the run before.
        message["headers"].pop(REDELIVERIES, None)
        if created(task_id) is None:
            message["headers"].setdefault(MADE, time.time())
        if message["properties"].get("priority"):
            _warn_of_priorities(message["headers"].get("task", ""))
        tried, body = _tried.get(), message["body"]
        if tried and tried.get(queue, ("", ""))[0] == body:
            self._put_once(queue, tried[queue][1], task_id)
            return
        entry = signing.new_entry(self._options, queue, message)
        if tried is not None:
            tried[queue] = body, entry
        with self.conn_or_acquire() as client:
            run(client, scripts.ENQUEUE, 2, queue, keys.ACCEPTED, entry, task_id)

    def _put_once(self, queue: str, entry: str, task_id: str) -> None:
        """Publish what may be there already: Redis hung or was cut off, and executed it when it came back.

        Where it is done already, the worker that takes it sees that.
        """
        message = signing.parse(entry.encode())
        assert message  # noqa: S101 - our own
        message["properties"]["doubtful"] = True
        doubtful = signing.changed(self._options, queue, message)
        places = (queue, keys.ACCEPTED, keys.deferred_list(queue), keys.LEASES)
        with self.conn_or_acquire() as client:
            run(client, scripts.ENQUEUE_ONCE, len(places), *places, doubtful, task_id, entry)
