"""Whether anybody works: tasks that nobody will run for hours are better rejected than accepted."""

import time

from redis.asyncio import Redis

from celery_durable import entries
from celery_durable.aio.errors import WorkersAbsentError
from celery_durable.metrics import WORKERS
from celery_durable.options import Options

# Seconds between two looks, and seconds without a report after which a worker counts as gone; it reports every second.
LOOK_INTERVAL = 5.0
ALIVE_SECONDS = 15


class Workforce:
    """Knows for how long no worker has reported, as far as this process has seen.

    A process that has just started has seen nothing yet: whoever restores a broker, or starts everything at once, has
    as long as the limit is. Where no workers are expected, there is nothing to know.
    """

    def __init__(self, options: Options, broker: Redis) -> None:
        """Look at the reports in ``broker``."""
        self._options, self._broker = options, broker
        self._seen = time.monotonic()
        self._looked = float("-inf")

    async def look(self) -> None:
        """Look again, unless that was a moment ago.

        Raises:
            redis.exceptions.RedisError: the broker does not answer.
        """
        if not self._options.workers_expected or time.monotonic() - self._looked < LOOK_INTERVAL:
            return
        pipeline = self._broker.pipeline(transaction=False)
        pipeline.time()
        pipeline.hgetall(WORKERS)
        times, stored = await pipeline.execute(raise_on_error=False)
        (now, _), _ = entries.expected(times, (0, 0))
        reports, _ = entries.workers(entries.expected(stored, dict[bytes, bytes]())[0])
        self._looked = time.monotonic()
        if any(now - told < ALIVE_SECONDS for told, _ in reports.values()):
            self._seen = self._looked

    def absent(self) -> int:
        """Return the seconds for which no worker has reported; 0 while one does, and while nobody knows."""
        if self._looked < self._seen + LOOK_INTERVAL:
            return 0
        return int(self._looked - self._seen)

    def check(self) -> None:
        """Return when a task may be accepted.

        Raises:
            WorkersAbsentError: no worker has reported for REJECT_WITHOUT_WORKERS_SECONDS.
        """
        limit = self._options.reject_without_workers_seconds
        if limit and (absent := self.absent()) >= limit:
            raise WorkersAbsentError(f"No worker has reported for {absent} s; try again later.")
