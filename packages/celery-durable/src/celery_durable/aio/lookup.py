"""What Redis knows of tasks, for an API: requests that overlap share round trips.

A connection for each request would be faster for one client alone. With 64 of them a pool of 16 connections made some
wait longer than they may, and cost twice the time (docs/decisions/0041-status-path.md).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_durable.keys import ACCEPTED

# Of Celery, of a task's result and of the channel on which its changes are published.
RESULT = "celery-task-meta-"
# Seconds for all questions to Redis about a task; the promise to clients is one second.
LOOKUP_BUDGET = 0.8
# Round trips that run at once, and requests that share one: results may be large.
ROUND_TRIPS = 4
SHARED = 16

# By task id, what is stored of a task: nothing yet where it was only accepted. What is unknown is left out.
Found = dict[str, bytes | None]


class Lookup:
    """Finds results, and tells which tasks were accepted."""

    def __init__(self, broker: Redis, results: Redis, remembers: Callable[[str], bool]) -> None:
        """Ask both; ``remembers`` tells of a task that this process has enqueued a moment ago."""
        self._broker = broker
        self._results = results
        self._remembers = remembers
        self._waiting: list[tuple[str, asyncio.Future[Found]]] = []
        self._readers: set[asyncio.Task[None] | None] = set()

    async def one(self, task_id: str) -> Found:
        """Look for a task, together with whoever asks at the same time.

        Raises:
            redis.exceptions.RedisError: Redis does not answer within LOOKUP_BUDGET.
        """
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append((task_id, found))
        if len(self._readers) < ROUND_TRIPS:
            self._readers.add(asyncio.create_task(self._read()))
        return await _in_time(found)

    async def many(self, task_ids: Sequence[str]) -> Found:
        """Look for several tasks in one round trip, and in another one for those that have no result yet.

        Raises:
            redis.exceptions.RedisError: Redis does not answer within LOOKUP_BUDGET.
        """
        return await _in_time(self._look(task_ids))

    async def _read(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:SHARED], self._waiting[SHARED:]
                await self._answer([waiting for waiting in batch if not waiting[1].done()])
        finally:
            # Here, not in a callback a moment later: whoever comes meanwhile would count on this one.
            self._readers.remove(asyncio.current_task())

    async def _answer(self, asked: list[tuple[str, asyncio.Future[Found]]]) -> None:
        try:
            found = await self._look([task_id for task_id, _ in asked])
        except RedisError as error:
            for _, future in asked:
                if not future.done():
                    future.set_exception(error)
        else:
            for _, future in asked:
                if not future.done():
                    future.set_result(found)

    async def _look(self, task_ids: Sequence[str]) -> Found:
        found: Found = {}
        await self._add_stored(found, task_ids)
        if missing := [task_id for task_id in task_ids if task_id not in found]:
            accepted = await self._broker.hmget(ACCEPTED, missing)
            for task_id, times in zip(missing, accepted, strict=True):
                if times is not None or self._remembers(task_id):
                    found[task_id] = None
            if unknown := [task_id for task_id in missing if task_id not in found]:
                await self._look_again(found, unknown)
        return found

    async def _add_stored(self, found: Found, task_ids: Sequence[str]) -> None:
        if task_ids:  # whoever asked may have gone away
            stored: list[Any] = await self._results.mget([f"{RESULT}{task_id}" for task_id in task_ids])
            found.update({task_id: one for task_id, one in zip(task_ids, stored, strict=True) if one is not None})

    async def _look_again(self, found: Found, task_ids: Sequence[str]) -> None:
        """Add what is stored of tasks that nobody seems to know.

        A worker stores the result before it acknowledges: it may have done both since the first question.
        """
        pipeline = self._results.pipeline(transaction=False)
        for task_id in task_ids:
            pipeline.get(f"{RESULT}{task_id}")
        for task_id, one in zip(task_ids, await pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(one, ResponseError) and "WRONGTYPE" in str(one):
                # A key of another type, for which MGET answers nothing: what it holds is not Celery's.
                found[task_id] = b""
            elif isinstance(one, Exception):
                raise one
            elif one is not None:
                found[task_id] = one


async def _in_time(answer: Awaitable[Found]) -> Found:
    try:
        async with asyncio.timeout(LOOKUP_BUDGET):
            return await answer
    except TimeoutError:
        raise RedisTimeoutError("Redis does not answer in time.") from None
