"""Which run has to end when, and what becomes of one that does not."""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

from celery_durable.worker.asyncio_pool.member import TIME_LIMIT, Job

logger = logging.getLogger(__name__)

# Seconds that a run has from its hard limit, or its revocation, until its process is replaced.
GRACE = 2.0
# Seconds after which the code of a run that goes on counts as blocking the loop.
BLOCKED = 1.0


class Limits:
    """The limits of all runs, in a heap: most runs end before, and stay in it until then."""

    def __init__(self, changed: threading.Condition, jobs: dict[int, Job]) -> None:
        """Share the pool's lock, which is notified when something is due earlier than before, and its runs."""
        self._changed, self._jobs = changed, jobs
        self._plans: list[tuple[float, int, Callable[[Job, float], None], Job]] = []
        self._order = itertools.count()

    def watch(self, job: Job, accepted: float) -> None:
        """Enforce the limits of a run that began at ``accepted``, of time.monotonic()."""
        if job.soft_limit:
            self._plan(accepted + job.soft_limit, self._on_soft_limit, job)
        if job.hard_limit:
            self._plan(accepted + job.hard_limit, self._on_hard_limit, job)

    def end(self, job: Job, reason: str) -> None:
        """Cancel a run; its process is replaced when that does not help."""
        with self._changed:
            if job.member and job.number in self._jobs and not job.reason:
                job.reason = reason
                job.kill_at = time.monotonic() + GRACE
                job.member.send("end", job.number, reason)
                self._plan(job.kill_at, self._on_overdue, job)

    def enforce(self, now: float) -> None:
        """Do what is due."""
        while self._plans and self._plans[0][0] <= now:
            _, _, what, job = heappop(self._plans)
            if self._jobs.get(job.number) is job:
                what(job, now)

    def next(self) -> float:
        """Return when something is due, of time.monotonic()."""
        return self._plans[0][0] if self._plans else math.inf

    def _plan(self, at: float, what: Callable[[Job, float], None], job: Job) -> None:
        heappush(self._plans, (at, next(self._order), what, job))
        if self._plans[0][3] is job:
            self._changed.notify_all()

    def _on_soft_limit(self, job: Job, _now: float) -> None:
        if job.member and not job.reason:
            job.member.send("soft", job.number)

    def _on_hard_limit(self, job: Job, _now: float) -> None:
        self.end(job, TIME_LIMIT)

    def _on_overdue(self, job: Job, now: float) -> None:
        if job.kill_at is None or job.member is None:
            return
        blocker = self._jobs.get(job.member.blocked_by(now, BLOCKED))
        if blocker is None or blocker is job:
            logger.error("A run did not end when it was cancelled: the process %d is replaced", job.member.pid)
            job.member.kill(job)
        elif blocker.hard_limit:
            # This one is not to blame, and the blocker's own time will be over.
            self._plan(now + BLOCKED, self._on_overdue, job)
        else:
            logger.error("A run without a limit blocks others: the process %d is replaced", job.member.pid)
            job.member.kill(blocker)
