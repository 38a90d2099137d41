"""The API's way into the queue: Celery's own message, pushed through one asyncio Redis connection.

``apply_async`` blocks the event loop, subscribes to each result and retries for 19 s while Redis is down
(docs/decisions/0004-enqueue-path.md).
"""

import asyncio
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from celery import Celery, Task
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_durable.aio.admission import SAMPLE_INTERVAL, Admission
from celery_durable.aio.replay import KEEP_SECONDS, Push, Recovery, run_batch
from celery_durable.aio.workforce import Workforce
from celery_durable.envelope import task_message
from celery_durable.keys import IDEMPOTENCY
from celery_durable.options import Options
from celery_durable.scripts import ENQUEUE, load_async
from celery_durable.stored_results import kept_seconds
from celery_durable.task_ids import created, new_task_id

logger = logging.getLogger(__name__)

# Seconds for a round trip, until clients are told that the broker is gone; the promise is one second.
PUBLISH_BUDGET = 0.8
# Messages after which a round trip takes no further ones: with some thousand, one took longer than its budget.
LARGEST_TRIP = 500
# Seconds that replicas have to confirm a batch; one on the same network needs a few milliseconds.
REPLICATION_BUDGET = 0.3
# Tasks of a batch that are prepared before others have their turn; a few milliseconds.
SLICE = 20


class BrokerUnavailableError(Exception):
    """The task was not, or not surely, put into its queue."""


class NotReplicatedError(BrokerUnavailableError):
    """The task is in its queue, but fewer replicas than wanted have it: it could be lost with the primary."""


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


class KeyReusedError(Exception):
    """The idempotency key belongs to a task with other data."""

    def __init__(self, number: int = 0) -> None:
        """Say which task of a batch it is, counted from 0."""
        super().__init__("The Idempotency-Key was used with other data before; take a new one for a new task.")
        self.number = number


# For each message its idempotency key's earlier value, or nothing when it was pushed; and whether replicas have them.
Answer = tuple[list[bytes | None], bool]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Messages on their way, all or none, and who waits for that."""

    pushes: Sequence[Push]
    pushed: asyncio.Future[Answer]


class _Call:
    """A call of a script, and whose messages it pushes."""

    def __init__(self, waiting: _Waiting) -> None:
        """Begin with one of those who wait."""
        self.waiting = [waiting]

    def run(self, pipeline: Pipeline) -> None:
        """Put it into a pipeline."""
        pushes = [push for waiting in self.waiting for push in waiting.pushes]
        if len(pushes) == 1:
            pushes[0].run(ENQUEUE, pipeline)
        else:
            run_batch(pushes, pipeline)


class Publisher:
    """Puts tasks into their queues; calls that overlap share one round trip.

    Coalescing keeps hundreds of parallel requests on a single connection, and each batch fails or succeeds at once.
    """

    def __init__(self, options: Options, broker: Redis, results: Redis) -> None:
        """Use ``broker``, whose own socket timeouts must lie below PUBLISH_BUDGET."""
        self._options, self._broker = options, broker
        self._admission = Admission(options)
        self._recovery = Recovery(broker, results)
        self.workforce = Workforce(options, broker)
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: list[_Call] = []
        self._timer: asyncio.TimerHandle
        self._sample_is_due = False
        self._run_id: str | None = None  # of the Redis that answers
        self._writer: asyncio.Task[None] | None = None

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
        [earlier], replicated = await self._push([push])
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
        values, replicated = await self._push(pushes)
        return [
            self._conclude(to, number, new, pushes[number], earlier=values[number], replicated=replicated)
            async for number, new in _in_slices(batch)
        ]

    def remembers(self, task_id: str) -> bool:
        """Tell whether this process has put a task into its queue a moment ago, whatever Redis knows of it."""
        return self._recovery.remembers(task_id)

    async def watch(self) -> None:
        """Keep admission's sample fresh, look for workers, bring back what a restarted Redis has lost; without end."""
        loaded_into = None
        while True:
            if loaded_into != self._run_id or loaded_into is None:
                # Before a request pays for it: another Redis, or a restarted one, has no script yet.
                with suppress(RedisError, OSError):
                    await load_async(self._broker)
                loaded_into = self._run_id
            self._sample_is_due = True
            self._start_writer()
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

    async def _push(self, pushes: Sequence[Push]) -> Answer:
        for push in pushes:
            self._admission.add(push.queue, push.message)
        pushed: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(pushes, pushed))
        self._start_writer()
        try:
            answer = await pushed
        except (RedisError, OSError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}") from error
        if not answer[1] and self._options.unreplicated == "refuse":
            raise NotReplicatedError(f"Fewer than {self._options.replicas_wanted} replicas have the task.")
        return answer

    def _start_writer(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._waiting or self._sample_is_due:
            calls = self._in_flight = self._next_calls()
            sampling, self._sample_is_due = self._sample_is_due, False
            pipeline = self._broker.pipeline(transaction=False)
            for call in calls:
                call.run(pipeline)
            replicas = self._options.replicas_wanted if calls else 0
            if replicas:
                pipeline.execute_command("WAIT", replicas, int(REPLICATION_BUDGET * 1000))
            if sampling:
                later = [(push.queue, push.message) for waiting in self._waiting for push in waiting.pushes]
                self._admission.ask(pipeline, later)
            # Begun anew with each round trip: behind many others a task waits longer, though Redis is well.
            self._start_timer()
            try:
                replies = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                if isinstance(error, RedisTimeoutError):
                    # Redis hangs: who came meanwhile need not wait as long once more.
                    self._fail(error)
                replies = [error] * len(calls)
            finally:
                self._timer.cancel()
            answers = replies[len(calls) :]
            confirmed = answers.pop(0) if replicas and answers else 0
            replicated = not isinstance(confirmed, Exception) and confirmed >= replicas
            if not replicated:
                # It may be the primary no longer: who connects again asks the sentinels.
                await self._broker.connection_pool.disconnect(inuse_connections=False)
            calls, replies = await self._without_missing(calls, replies[: len(calls)])
            for call, reply in zip(calls, replies, strict=False):
                self._tell(call, reply, replicated)
            if answers:
                self._learn(answers)

    def _next_calls(self) -> list[_Call]:
        """Take those who wait longest, as many as fit into a round trip."""
        calls: list[_Call] = []
        plain: dict[str, _Call] = {}  # by queue: single messages without an idempotency key, which nothing rejects
        messages = 0
        while self._waiting and messages < LARGEST_TRIP:
            waiting = self._waiting.popleft()
            # A client that was already told "unavailable" must not get its task in later.
            if waiting.pushed.done():
                continue
            messages += len(waiting.pushes)
            push = waiting.pushes[0]
            is_plain = len(waiting.pushes) == 1 and not push.idempotency
            if is_plain and push.queue in plain:
                plain[push.queue].waiting.append(waiting)
                continue
            calls.append(_Call(waiting))
            if is_plain:
                plain[push.queue] = calls[-1]
        return calls

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PUBLISH_BUDGET, self._give_up)

    def _give_up(self) -> None:
        """Let nobody wait any longer for a round trip that goes on, or behind it."""
        error = TimeoutError("Redis does not answer in time.")
        for call in self._in_flight:
            for waiting in call.waiting:
                _fail(waiting, error)
        self._fail(error)
        self._start_timer()  # for who comes meanwhile

    def _fail(self, error: Exception) -> None:
        for waiting in self._waiting:
            _fail(waiting, error)
        self._waiting.clear()

    async def _without_missing(self, calls: list[_Call], replies: list[Any]) -> tuple[list[_Call], list[Any]]:
        """Load the script where Redis lacks it; return what is done with, the rest goes into the next round trip."""
        lacking = [call for call, reply in zip(calls, replies, strict=False) if isinstance(reply, NoScriptError)]
        if not lacking:
            return calls, replies
        try:
            await load_async(self._broker)
        except (RedisError, OSError) as error:
            return calls, [error if isinstance(reply, NoScriptError) else reply for reply in replies]
        self._waiting.extendleft(reversed([waiting for call in lacking for waiting in call.waiting]))
        done = [pair for pair in zip(calls, replies, strict=False) if not isinstance(pair[1], NoScriptError)]
        return [call for call, _ in done], [reply for _, reply in done]

    def _tell(self, call: _Call, reply: Any, replicated: bool) -> None:
        error: Exception | None = None
        if isinstance(reply, Exception):
            error = reply
        elif isinstance(reply, int):
            error = KeyReusedError(reply - 1)
        if error:
            for waiting in call.waiting:
                _fail(waiting, error)
            return
        # Of a single message the value itself; nothing where no message has a key.
        values = iter(reply if isinstance(reply, list) else [reply])
        for waiting in call.waiting:
            earlier = [next(values, None) for _ in waiting.pushes]
            for push, value in zip(waiting.pushes, earlier, strict=True):
                if value is None:
                    self._recovery.remember(push)
            if not waiting.pushed.done():
                waiting.pushed.set_result((earlier, replicated))

    def _learn(self, answers: list[Any]) -> None:
        try:
            self._run_id = self._admission.learn(answers)
            self._recovery.saw(self._run_id)
        except RedisError as error:
            logger.warning("Redis does not tell how full it is: %s: %s", type(error).__name__, error)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.pushed.done():
        waiting.pushed.set_exception(error)


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
