"""Jobs that run again and again, one after the other, in a thread of their own.

A job that fails is logged and runs again, and the others go on. One that hangs delays those of its own scheduler and no
others: what must not wait for something gets a scheduler of its own.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from celery_durable.connection import is_outage

logger = logging.getLogger(__name__)

# Seconds after a failure until a job runs again, and after an outage until any job of the scheduler does.
RETRY_INTERVAL = 1.0


@dataclass(eq=False)
class Job:
    """What runs every ``interval`` seconds, counted from its last start."""

    name: str
    interval: float
    run: Callable[[], object]
    due: float = 0.0  # of time.monotonic()
    failing: bool = False


class Scheduler:
    """Runs its jobs in their order."""

    def __init__(self, name: str, *jobs: Job) -> None:
        """Start nothing yet; ``name`` is the thread's."""
        self._jobs = jobs
        self._awake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._started = False

    def start(self) -> None:
        """Begin, unless it has."""
        if not self._started:
            self._started = True
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Start no job from now on, and wait ``timeout`` seconds at most for the one that runs."""
        self._stopped = True
        self._awake.set()
        if self._started:
            self._thread.join(timeout)

    def wake(self, job: Job) -> None:
        """Make a job due now."""
        job.due = 0.0
        self._awake.set()

    def _loop(self) -> None:
        while not self._stopped:
            self._awake.wait(max(min(job.due for job in self._jobs) - time.monotonic(), 0.0))
            self._awake.clear()
            now = time.monotonic()
            if not all(self._run(job, now) for job in self._jobs if job.due <= now and not self._stopped):
                # The rest would wait for the same Redis.
                time.sleep(RETRY_INTERVAL)

    def _run(self, job: Job, now: float) -> bool:
        """Run a job; return whether the next one may."""
        job.due = now + job.interval
        try:
            job.run()
        except (RedisError, OSError) as error:
            self._failed(job)
            if not job.failing:
                logger.warning("The job %s failed; it is tried again until it succeeds: %s", job.name, error)
            job.failing = True
            return not is_outage(error)
        except Exception:
            self._failed(job)
            logger.exception("The job %s failed; it is tried again", job.name)
            return True
        if job.failing:
            job.failing = False
            logger.info("The job %s succeeds again", job.name)
        return True

    def _failed(self, job: Job) -> None:
        job.due = time.monotonic() + max(job.interval, RETRY_INTERVAL)
