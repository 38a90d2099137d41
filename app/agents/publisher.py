"""The API's way into the queue: Celery's own message, pushed through one asyncio Redis connection.

``apply_async`` blocks the event loop, subscribes to each result and retries for 19 s while Redis is down
(docs/decisions/0004-enqueue-path.md).
"""

import asyncio
from typing import Any

from celery import Task
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.agents.config import DEFAULT_QUEUE
from app.agents.messages import task_message
from app.settings import get_settings

# Seconds until a client is told that the broker is gone; the promise is one second.
PUBLISH_BUDGET = 0.8


class BrokerUnavailableError(Exception):
    """The task was not, or not surely, put into its queue."""


class Publisher:
    """Puts tasks into their queues; calls that overlap share one round trip.

    Coalescing keeps hundreds of parallel requests on a single connection, and each batch fails or succeeds at once.
    """

    def __init__(self, broker: Redis) -> None:
        """Use ``broker``, whose own socket timeouts must lie below PUBLISH_BUDGET."""
        self._broker = broker
        self._waiting: list[tuple[str, str, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def publish(self, task: Task[Any, Any], task_id: str, args: tuple[Any, ...], request_id: str | None) -> None:
        """Return when the task is in its queue.

        Raises:
            BrokerUnavailableError: Redis refused, failed or did not answer within PUBLISH_BUDGET.
        """
        queue = get_settings().task_routes.get(task.name, DEFAULT_QUEUE)
        pushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((queue, task_message(task, task_id, args, queue, request_id), pushed))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        try:
            async with asyncio.timeout(PUBLISH_BUDGET):
                await pushed
        except (RedisError, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}") from error

    async def _write(self) -> None:
        while self._waiting:
            # A client that was already told "unavailable" must not get its task in later.
            batch = [entry for entry in self._waiting if not entry[2].done()]
            self._waiting.clear()
            try:
                pipeline = self._broker.pipeline(transaction=False)
                for queue, message, _ in batch:
                    pipeline.lpush(queue, message)
                replies = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                replies = [error] * len(batch)
            for (_, _, pushed), reply in zip(batch, replies, strict=True):
                if pushed.done():
                    continue
                if isinstance(reply, Exception):
                    pushed.set_exception(reply)
                else:
                    pushed.set_result(None)
