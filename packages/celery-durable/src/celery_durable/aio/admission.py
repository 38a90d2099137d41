"""Whether the broker can take another task: decided from local numbers, without asking Redis for each request.

Redis is asked every SAMPLE_INTERVAL, at the end of a batch of pushes. What this process has let in since then is added,
so that a flood cannot get far beyond a limit between two samples.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from celery_durable.aio.errors import BrokerFullError, QueueFullError
from celery_durable.entries import expected, leases
from celery_durable.keys import ACCEPTED, DEAD_LETTERS, LEASES, deferred_list
from celery_durable.options import Options

# Seconds between two samples.
SAMPLE_INTERVAL = 0.25
# Where Redis evicts, results fill what the broker leaves. They need the other half as a buffer: Redis takes from the
# broker's keys as soon as there is nothing else to take (docs/decisions/0009-full-broker.md).
MAX_SHARE_BESIDE_RESULTS = 0.5
# Memory for a message on top of its text: the allocator rounds up, and there are entries in other keys.
ALLOCATION_FACTOR = 1.25
ENTRY_BYTES = 512


@dataclass
class Load:
    """Messages and bytes, in the broker or on their way there."""

    lengths: Counter[str]
    memory: int = 0


class Admission:
    """Knows how full the broker is."""

    def __init__(self, options: Options) -> None:
        """Let everything in until the first sample: a push to a Redis that does not answer fails by itself."""
        self._max_length = options.queue_max_length
        self._max_share = options.broker_max_memory_share
        self._queues = options.queues
        self._max_memory: float | None = None
        # Whether Redis evicts, as far as is known.
        self._evicts = True
        self._unacked: list[str] = []
        self._sampled = Load(Counter())
        self._since = Load(Counter())
        self._covered = Load(Counter())

    def check(self, queue: str, messages: int = 1) -> None:
        """Return when ``queue`` can take so many more messages.

        Raises:
            QueueFullError: it is too long.
            BrokerFullError: too much memory is in use.
        """
        length = self._sampled.lengths[queue] + self._since.lengths[queue]
        if length + messages > self._max_length:
            full = "full" if messages == 1 else f"too full for {messages} more"
            raise QueueFullError(f"The queue is {full}, {length} tasks wait; try again later.")
        if self._max_memory is not None and self._sampled.memory + self._since.memory >= self._max_memory:
            raise BrokerFullError("The task queue has no memory left for new tasks; try again later.")

    def add(self, queue: str, message: str) -> None:
        """Count a message that is about to be pushed."""
        self._since.lengths[queue] += 1
        self._since.memory += _bytes(message)

    def ask(self, pipeline: Pipeline, later: Iterable[tuple[str, str]] = ()) -> None:
        """Put the questions at the end of a pipeline that pushes everything that was counted so far.

        Args:
            pipeline: what is sent next.
            later: queue and message of what was counted, but is sent after it.
        """
        self._covered = Load(self._since.lengths.copy(), self._since.memory)
        for queue, message in later:
            self._covered.lengths[queue] -= 1
            self._covered.memory -= _bytes(message)
        pipeline.info("memory", "server")
        for queue in self._queues:
            pipeline.llen(queue)
        pipeline.zrange(LEASES, 0, -1)
        if not self._evicts:
            return
        keys = [*self._queues, *map(deferred_list, self._queues), *self._unacked, ACCEPTED, DEAD_LETTERS]
        # Where Redis evicts, what was touched a moment ago goes last.
        pipeline.touch(LEASES, *keys)
        for key in keys:
            # All of a list's nodes: five of them, the default, missed by a factor of 13 where sizes differ.
            pipeline.memory_usage(key, samples=0)

    def learn(self, replies: list[Any]) -> str:
        """Take over the answers to ``ask`` and return the run id of the Redis that gave them.

        Raises:
            redis.exceptions.RedisError: Redis rejected a query.
        """
        if isinstance(replies[0], RedisError):
            raise replies[0]
        info, *replies = replies
        # A key of another type holds no messages, and takes none.
        lengths = [expected(reply, 0)[0] for reply in replies[: len(self._queues)]]
        unacked: list[bytes] = expected(replies[len(self._queues)], [])[0]
        touched_and_sizes = [expected(reply, 0)[0] for reply in replies[len(self._queues) + 1 :]]
        self._evicts = info["maxmemory_policy"] != "noeviction"
        if self._evicts:
            memory = sum(size or 0 for size in touched_and_sizes[1:])
            share = min(self._max_share, MAX_SHARE_BESIDE_RESULTS)
        else:
            share, memory = self._max_share, info["used_memory"]
        self._max_memory = share * info["maxmemory"] or None  # 0 is unlimited
        self._unacked, _ = leases(unacked)
        self._sampled = Load(Counter(dict(zip(self._queues, lengths, strict=True))), memory)
        self._since.lengths -= self._covered.lengths
        self._since.memory -= self._covered.memory
        return str(info["run_id"])


def _bytes(message: str) -> int:
    return int(len(message) * ALLOCATION_FACTOR) + ENTRY_BYTES
