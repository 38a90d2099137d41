"""The API's way into the queue: Celery's own message, pushed through one asyncio Redis connection.

``apply_async`` blocks the event loop, subscribes to each result and retries for 19 s while Redis is down
(docs/decisions/0004-enqueue-path.md).
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from celery import Celery, Task
from redis.asyncio import Redis
from redis.exceptions import RedisError

from celery_durable.aio.admission import SAMPLE_INTERVAL, Admission
from celery_durable.aio.errors import KeyReusedError
from celery_durable.aio.replay import KEEP_SECONDS, Push, Recovery
from celery_durable.aio.workforce import Workforce
from celery_durable.aio.writer import Writer
from celery_durable.envelope import task_message
from celery_durable.keys import IDEMPOTENCY
from celery_durable.options import Options
from celery_durable.scripts import load_async
from celery_durable.stored_results import kept_seconds
from celery_durable.task_ids import created, new_task_id

logger = logging.getLogger(__name__)

# Tasks of a batch that are prepared before others have their turn; a few milliseconds.
SLICE = 20
# Tasks of a batch that one line of the log names: as many ids as fit into a field (logs.py).
IDS_IN_LINE = 6


@dataclass(frozen=True)
class Published:
    """A task that is in its queue."""

    task_id: str
    replicated: bool = True  # on as many replicas as wanted
    new: bool = True  # not put there earlier, with the same idempotency key


@dataclass(frozen=True)
class NewTask:
    """A task of a batch: its data, and the idempotency key under which a client repeats it."""

    data: dict[str, Any]
    idempotency_key: str | None = None


class Publisher:
    """Puts tasks into their queues."""

    def __init__(self, options: Options, broker: Redis, results: Redis) -> None:
        """Use ``broker``, whose own socket timeouts must lie below the writer's PUBLISH_BUDGET."""
        self._broker = broker
        self._admission = Admission(options)
        self._recovery = Recovery(broker, results)
        self._writer = Writer(options, broker, self._admission, self._recovery)
        self.workforce = Workforce(options, broker)

    async def publish(
        self, task: Task[Any, Any], data: dict[str, Any], request_id: str | None, idempotency_key: str | None = None
    ) -> Published:
        """Return when the task is in its queue, or was put there earlier with the same idempotency key.

        Raises:
            BrokerUnavailableError: Redis rejected it, failed or did not answer within PUBLISH_BUDGET.
            NotReplicatedError: too few replicas have it, and the settings reject such a task.
            QueueFullError, BrokerFullError: there is no room for it.
            WorkersAbsentError: nobody would run it.
            KeyReusedError: the idempotency key came with other data before.
        """
        to, new = _Destination(task, queue_of(task.app, task.name), request_id), NewTask(data, idempotency_key)
        self._admission.check(to.queue)
        self.workforce.check()
        push = self._prepare(to, 0, new)
        [earlier], replicated = await self._writer.push([push])
        return self._conclude(to, 0, new, push, earlier=earlier, replicated=replicated)

    async def publish_batch(
        self, task: Task[Any, Any], batch: Sequence[NewTask], request_id: str | None
    ) -> list[Published]:
        """Do the same for several tasks in one round trip: all of them are in their queue then, or none is.

        Raises:
            BrokerUnavailableError, NotReplicatedError, QueueFullError, BrokerFullError, WorkersAbsentError: as for one.
            KeyReusedError: an idempotency key came with other data before; it has the task's number.
            ValueError: two tasks have the same idempotency key.
        """
        if not batch:
            return []
        keys = [new.idempotency_key for new in batch if new.idempotency_key is not None]
        if len(set(keys)) < len(keys):
            raise ValueError("Two tasks of a batch have the same idempotency key.")
        to = _Destination(task, queue_of(task.app, task.name), request_id)
        self._admission.check(to.queue, len(batch))
        self.workforce.check()
        pushes = [self._prepare(to, number, new) async for number, new in _in_slices(batch)]
        self._admission.check(to.queue, len(batch))  # others came between the slices
        values, replicated = await self._writer.push(pushes)
        published, accepted = [], []
        async for number, new in _in_slices(batch):
            push, earlier = pushes[number], values[number]
            if earlier is None:
                accepted.append(push.task_id)
                published.append(Published(push.task_id, replicated))
            else:
                published.append(self._conclude(to, number, new, push, earlier=earlier, replicated=replicated))
            if len(accepted) == IDS_IN_LINE or number + 1 == len(batch):
                to.log_batch(accepted)
                accepted = []
        return published

    def remembers(self, task_id: str) -> bool:
        """Tell whether this process has put a task into its queue a moment ago, whatever Redis knows of it."""
        return self._recovery.remembers(task_id)

    async def watch(self) -> None:
        """Keep admission's sample fresh, look for workers, bring back what a restarted Redis has lost; without end."""
        loaded_into = None
        while True:
            if loaded_into != self._writer.run_id or loaded_into is None:
                # Before a request pays for it: another Redis, or a restarted one, has no script yet.
                with suppress(RedisError, OSError):
                    await load_async(self._broker)
                loaded_into = self._writer.run_id
            self._writer.sample()
            try:
                await self._recovery.push_again()
                await self.workforce.look()
            except (RedisError, OSError) as error:
                logger.warning("Lost tasks are not restored yet: %s: %s", type(error).__name__, error)
            await asyncio.sleep(SAMPLE_INTERVAL)

    def _prepare(self, to: "_Destination", number: int, new: NewTask) -> Push:
        task_id = new_task_id()
        if new.idempotency_key is None:
            return to.push(task_id, new.data)
        key, fingerprint = IDEMPOTENCY + _digest(new.idempotency_key), _fingerprint(new.data)
        # A Redis that has just crashed may have forgotten the key, which must not make a second task.
        value = self._recovery.value_of(key) or f"{task_id} {fingerprint}"
        return to.push(_task_of(value, fingerprint, number), new.data, (key, value))

    def _conclude(
        self, to: "_Destination", number: int, new: NewTask, push: Push, *, earlier: bytes | None, replicated: bool
    ) -> Published:
        if earlier is None or push.idempotency is None:
            to.log("Task accepted", push.task_id)
            return Published(push.task_id, replicated)
        key, value = push.idempotency[0], earlier.decode("utf-8", "replace")
        task_id = _task_of(value, _fingerprint(new.data), number)
        to.log("Task was accepted earlier, with the same Idempotency-Key", task_id)
        if time.time() - (created(task_id) or 0.0) < KEEP_SECONDS:
            # Whoever pushed it may have seen that fail, and not remember it.
            self._recovery.remember(to.push(task_id, new.data, (key, value)))
        return Published(task_id, replicated, new=False)


@cache
def queue_of(app: Celery, task: str) -> str:
    """Return the queue that Celery would send a task to, by the routes of ``app``."""
    return str(app.amqp.router.route({}, task)["queue"].name)


@dataclass(frozen=True)
class _Destination:
    """Which task is enqueued, where, and by which request."""

    task: Task[Any, Any]
    queue: str
    request_id: str | None

    def push(self, task_id: str, data: dict[str, Any], idempotency: tuple[str, str] | None = None) -> Push:
        """Build the message of a task; ``idempotency`` is key and value."""
        message = task_message(self.task, task_id, (task_id, data), self.queue, self.request_id)
        return Push(self.queue, task_id, message, (*idempotency, kept_seconds(self.task.app)) if idempotency else None)

    def log(self, text: str, task_id: str) -> None:
        """Log what became of a task."""
        extra = {"task_id": task_id, "task_name": self.task.name, "request_id": self.request_id, "queue": self.queue}
        logger.info(text, extra=extra)

    def log_batch(self, task_ids: list[str]) -> None:
        """Log that some tasks of a batch were accepted: a line for each took a third of the batch's time."""
        if task_ids:
            ids = " ".join(task_ids)
            extra = {"task_ids": ids, "task_name": self.task.name, "request_id": self.request_id, "queue": self.queue}
            logger.info("%d tasks accepted", len(task_ids), extra=extra)


async def _in_slices(batch: Sequence[NewTask]) -> AsyncIterator[tuple[int, NewTask]]:
    """Enumerate a batch, and let other requests in between: a large one takes some 100 ms."""
    for number, new in enumerate(batch, start=1):
        if number % SLICE == 0:
            await asyncio.sleep(0)
        yield number - 1, new


def _task_of(value: str, fingerprint: str, number: int) -> str:
    """Return the task id in an idempotency key's value; the data must be the same as then."""
    task_id, _, known = value.partition(" ")
    if known != fingerprint:
        raise KeyReusedError(number)
    return task_id


def _fingerprint(data: dict[str, Any]) -> str:
    return _digest(json.dumps(data, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
