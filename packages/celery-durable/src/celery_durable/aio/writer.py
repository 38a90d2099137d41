"""One asyncio Redis connection that all who publish share: what overlaps goes into one round trip.

Coalescing keeps hundreds of parallel requests on a single connection, and each batch fails or succeeds at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_durable.aio.admission import Admission
from celery_durable.aio.errors import BrokerUnavailableError, KeyReusedError, NotReplicatedError
from celery_durable.aio.replay import Push, Recovery, run_batch
from celery_durable.options import Options
from celery_durable.scripts import ENQUEUE, load_async

logger = logging.getLogger(__name__)

# Seconds for a round trip, until clients are told that the broker is gone; the promise is one second.
PUBLISH_BUDGET = 0.8
# Messages after which a round trip takes no further ones: with some thousand, one took longer than its budget.
LARGEST_TRIP = 500
# Seconds that replicas have to confirm a batch; one on the same network needs a few milliseconds.
REPLICATION_BUDGET = 0.3

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


class Writer:
    """Pushes messages into their queues; calls that overlap share one round trip."""

    def __init__(self, options: Options, broker: Redis, admission: Admission, recovery: Recovery) -> None:
        """Use ``broker``, whose own socket timeouts must lie below PUBLISH_BUDGET."""
        self._options, self._broker, self._admission, self._recovery = options, broker, admission, recovery
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: list[_Call] = []
        self._timer: asyncio.TimerHandle
        self._sample_is_due = False
        self.run_id: str | None = None  # of the Redis that answers
        self._writing: asyncio.Task[None] | None = None

    async def push(self, pushes: Sequence[Push]) -> Answer:
        """Return when the messages are in their queues: all of them, or none.

        Raises:
            BrokerUnavailableError: Redis rejected them, failed or did not answer within PUBLISH_BUDGET.
            NotReplicatedError: too few replicas have them, and the settings reject such tasks.
            KeyReusedError: an idempotency key came with other data before.
        """
        for push in pushes:
            self._admission.add(push.queue, push.message)
        pushed: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(pushes, pushed))
        self._start()
        try:
            answer = await pushed
        except (RedisError, OSError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}") from error
        if not answer[1] and self._options.unreplicated == "refuse":
            raise NotReplicatedError(f"Fewer than {self._options.replicas_wanted} replicas have the task.")
        return answer

    def sample(self) -> None:
        """Let admission learn how full the broker is, with the next round trip."""
        self._sample_is_due = True
        self._start()

    def _start(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

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
            self.run_id = self._admission.learn(answers)
            self._recovery.saw(self.run_id)
        except RedisError as error:
            logger.warning("Redis does not tell how full it is: %s: %s", type(error).__name__, error)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.pushed.done():
        waiting.pushed.set_exception(error)
