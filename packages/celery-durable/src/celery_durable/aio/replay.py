"""Tasks that Redis may forget: after a crash the end of its append-only file may be missing."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery.states import READY_STATES
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from celery_durable.keys import ACCEPTED
from celery_durable.scripts import ENQUEUE_AGAIN, ENQUEUE_BATCH, digest, load_async
from celery_durable.stored_results import state_of

logger = logging.getLogger(__name__)

# The file is written every second and is at most two seconds behind; the rest is for slow disks.
KEEP_SECONDS = 10
# Per process; the oldest go first.
KEEP_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Push:
    """A message for a queue, as the scripts push it."""

    queue: str
    task_id: str
    message: str
    idempotency: tuple[str, str, int] | None = None  # key, value, seconds to keep
    at: float = field(default_factory=time.monotonic)

    def run(self, script: str, redis: Redis) -> Any:
        """Give the script to ``redis``, which may be a pipeline and must have it."""
        keys, values = [self.queue, ACCEPTED], [self.message, self.task_id]
        if self.idempotency:
            key, value, seconds = self.idempotency
            keys.append(key)
            values += [value, str(seconds)]
        return redis.evalsha(digest(script), len(keys), *keys, *values)


def run_batch(pushes: Sequence[Push], redis: Redis) -> Any:
    """Give messages for one queue to ``redis``, which may be a pipeline and must have ENQUEUE_BATCH: all, or none."""
    keys, values = [pushes[0].queue, ACCEPTED], []
    for push in pushes:
        key, value, seconds = push.idempotency or ("", "", 0)
        if key:
            keys.append(key)
        values += [push.message, push.task_id, value, str(seconds)]
    return redis.evalsha(digest(ENQUEUE_BATCH), len(keys), *keys, *values)


class Recovery:
    """Remembers what this process has pushed lately, and pushes it again after a restart of Redis that forgot it."""

    def __init__(self, broker: Redis, results: Redis) -> None:
        """Push to ``broker``; ``results`` tells which tasks are done."""
        self._broker = broker
        self._results = results
        self._run_id: str | None = None
        self._recent: dict[str, Push] = {}  # by task id, the oldest first
        self._bytes = 0
        self._suspects: dict[str, Push] = {}  # Redis was restarted after they were pushed
        self._value_of_key: dict[str, str] = {}

    def remember(self, push: Push) -> None:
        """Keep a message that Redis has taken."""
        if self.remembers(push.task_id):
            return
        self._recent[push.task_id] = push
        self._bytes += len(push.message)
        if push.idempotency:
            key, value, _ = push.idempotency
            self._value_of_key[key] = value
        while self._bytes > KEEP_BYTES:
            self._forget_oldest()

    def remembers(self, task_id: str) -> bool:
        """Tell whether a task was pushed by this process a moment ago."""
        return task_id in self._recent or task_id in self._suspects

    def value_of(self, key: str) -> str | None:
        """Return an idempotency key's value of a moment ago, whatever Redis still knows of it."""
        return self._value_of_key.get(key)

    def saw(self, run_id: str) -> None:
        """Take note of the Redis that answers now."""
        if self._run_id not in (None, run_id):
            logger.warning("Redis was restarted, %d recent tasks may be missing", len(self._recent))
            self._suspects |= self._recent
            self._recent, self._bytes = {}, 0
        self._run_id = run_id
        # Only now: while Redis was away nothing of it got onto the disk.
        too_old = time.monotonic() - KEEP_SECONDS
        while self._recent and next(iter(self._recent.values())).at < too_old:
            self._forget_oldest()

    async def push_again(self) -> None:
        """Push what was forgotten and is not done.

        Raises:
            redis.exceptions.RedisError: broker or results do not answer; the rest is left for the next call.
        """
        if not self._suspects:
            return
        there = await self._broker.hmget(ACCEPTED, list(self._suspects))
        for push, messages in zip(list(self._suspects.values()), there, strict=True):
            lost = messages is None and not await self._is_done(push.task_id)
            if lost and await self._run(push):
                extra = {"task_id": push.task_id, "queue": push.queue}
                logger.warning("Redis had lost task %s, it is in its queue again", push.task_id, extra=extra)
            del self._suspects[push.task_id]
            # It may be lost once more.
            self.remember(replace(push, at=time.monotonic()))

    async def _run(self, push: Push) -> Any:
        try:
            return await push.run(ENQUEUE_AGAIN, self._broker)
        except NoScriptError:
            await load_async(self._broker)
            return await push.run(ENQUEUE_AGAIN, self._broker)

    async def _is_done(self, task_id: str) -> bool:
        stored: Any = await self._results.get(f"celery-task-meta-{task_id}")
        return stored is not None and state_of(stored) in READY_STATES

    def _forget_oldest(self) -> None:
        task_id, push = next(iter(self._recent.items()))
        del self._recent[task_id]
        self._bytes -= len(push.message)
        if push.idempotency:
            self._value_of_key.pop(push.idempotency[0], None)
