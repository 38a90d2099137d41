"""Celery's side of the pool: it hands out runs, watches their limits, and replaces processes."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks
from kombu.asynchronous import get_event_loop

from celery_durable.worker.asyncio_pool.limits import BLOCKED, Limits
from celery_durable.worker.asyncio_pool.member import Job, Member, processes_of
from celery_durable.worker.redelivery import suspicions
from celery_durable.worker.results import MAIN_PROCESS_RETRIES

logger = logging.getLogger(__name__)

# Seconds between two looks at memory, and before the next process where one did not even start.
LOOK_INTERVAL = 1.0
# Seconds that a process has at the end of the worker to close what tasks have opened.
EXIT_TIMEOUT = 5.0
# Seconds between two attempts to fork.
FORK_INTERVAL = 0.05
# Deaths of processes without a culprit, after which a run that was in each of them gets a process of its own.
ISOLATED_AT = 3
ENDS = ("done", "raised", "ended")  # how a run can end


class TaskPool(BasePool):
    """Used by ``celery-durable -A proj worker --pool asyncio``."""

    limit: int
    kind = "asyncio"
    task_join_will_block = True
    body_can_be_buffer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing yet; the arguments are the base class's."""
        super().__init__(*args, **kwargs)
        self._processes = processes_of(self.limit)
        self._members: list[Member] = []
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[Job] = deque()
        # What was in several processes that died: whoever of them is to blame dies alone.
        self._suspects: deque[Job] = deque()
        self._fork_at, self._looked = 0.0, 0.0
        # Taken again by a signal's handler, which may stop the pool.
        self._changed = threading.Condition(threading.RLock())
        # Held while a request is told something, which uses Celery's own locks: a child that is forked meanwhile would
        # find them locked for ever.
        self._telling = threading.Lock()
        self._limits = Limits(self._changed, self._jobs)
        self._fork_asked = self._ending = False
        self._keeper = threading.Thread(target=self._keep, name="asyncio-pool", daemon=True)

    def on_start(self) -> None:
        """Fork the processes."""
        self._fork_what_is_missing()
        self._keeper.start()

    def on_apply(self, target: Any, args: Any, kwargs: Any, **options: Any) -> Job:  # type: ignore[override]
        """Run a task as soon as a slot is free."""
        job = Job(
            target=target,
            args=args,
            kwargs=kwargs,
            callback=options["callback"],
            accept_callback=options["accept_callback"],
            error_callback=options["error_callback"],
            timeout_callback=options["timeout_callback"],
            soft_limit=options.get("soft_timeout") or self.options.get("soft_timeout"),
            hard_limit=options.get("timeout") or self.options.get("timeout"),
            end=self._limits.end,
        )
        with self._changed:
            properties = args[2].get("properties") or {}
            (self._suspects if suspicions(properties) >= ISOLATED_AT else self._waiting).append(job)
            self._hand_out()
            if self._suspects:
                self._changed.notify_all()
        return job

    def flush(self) -> None:
        """Forget what no process was given; called when the broker's connection is lost: it is delivered again."""
        with self._changed:
            self._waiting.clear()
            self._suspects.clear()

    def grow(self, n: int = 1) -> None:
        """Have ``n`` slots more."""
        with self._changed:
            self.limit += n
            self._hand_out()

    def shrink(self, n: int = 1) -> None:
        """Have ``n`` slots less, but one; what runs goes on."""
        with self._changed:
            self.limit = max(self.limit - n, 1)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: the process has other runs, too. Celery tells the run as well (``Job.terminate``)."""

    def on_stop(self) -> None:
        """Wait until all runs have ended, then end the processes."""
        hub = get_event_loop()
        while self._jobs or self._waiting or self._suspects:
            time.sleep(0.05)
            self._fork_what_is_missing()
            if hub is not None:  # nothing else acknowledges, and sends heartbeats, while a worker stops
                hub.fire_timers()
                _run_ready_callbacks(hub)
        self._end_processes(EXIT_TIMEOUT)
        if hub is not None:
            _run_ready_callbacks(hub)

    def on_terminate(self) -> None:
        """End the processes at once. What ran in them is delivered again."""
        self._end_processes(0)

    def _get_info(self) -> dict[str, Any]:
        return {
            "implementation": f"{type(self).__module__}:{type(self).__name__}",
            "max-concurrency": self.limit,
            "processes": [member.pid for member in self._members],
            "runs": {str(member.pid): len(member.jobs) for member in self._members},
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
        }

    # What follows is called with `_changed` held.

    def _hand_out(self) -> None:
        while self._waiting and len(self._jobs) < self.limit:
            able = [member for member in self._members if not member.draining and not member.alone]
            if not able:
                return
            self._give(self._waiting.popleft(), min(able, key=lambda member: len(member.jobs)))
        for member in self._members:
            if member.alone and not member.jobs and not member.draining:
                if self._suspects:
                    self._give(self._suspects.popleft(), member)
                else:
                    self._drain(member)

    def _give(self, job: Job, member: Member) -> None:
        job.member = member
        self._jobs[job.number] = member.jobs[job.number] = job
        member.given += 1
        member.send("run", job.number, job.target, job.args, job.kwargs)
        most = self.options.get("maxtasksperchild")
        if most and member.given >= most:
            self._drain(member)

    def _drain(self, member: Member) -> None:
        """Give it nothing more, and let it go when its runs have ended."""
        member.draining = True
        if not member.jobs:
            member.send("exit")
        self._changed.notify_all()

    def _finish(self, number: int) -> Job | None:
        """Return a run that has ended now, and give its slot to another."""
        job = self._jobs.pop(number, None)
        if job and job.member:
            job.member.jobs.pop(number, None)
            if job.member.draining and not job.member.jobs:
                job.member.send("exit")
        self._hand_out()
        return job

    # The threads of the members: their callbacks store results, so nothing is held meanwhile.

    @contextmanager
    def _tell(self) -> Iterator[None]:
        """Let a request store how it ended, as the main loop does with prefork: what it cannot store runs again."""
        with self._telling:
            self.app.backend.max_retries = MAIN_PROCESS_RETRIES  # the backend belongs to the thread
            yield

    def _on_message(self, member: Member, message: tuple[Any, ...]) -> None:
        kind, number, *rest = message
        if kind == "lag":
            self.app.durable_worker.metrics.lagged(*rest)
            return
        with self._changed:
            job = self._finish(number) if kind in ENDS else self._jobs.get(number)
            if job is None:
                return
            if kind == "accepted":
                job.accepted = rest[0]
                self._limits.watch(job, rest[0])
            elif kind == "outside":
                job.kill_at = None
        with self._tell():
            if kind == "accepted":
                job.accept_callback(member.pid, job.accepted)
            elif kind == "soft":
                job.timeout_callback(True, job.soft_limit)
            elif kind == "done":
                job.callback(rest[0])
            elif kind == "raised":
                job.error_callback(rest[0])
            elif kind == "ended":
                job.report_end()

    def _on_end(self, member: Member) -> None:
        """A process has ended: tell who is to blame, and what runs again."""
        with self._changed:
            self._members.remove(member)
            if not member.given:
                self._fork_at = time.monotonic() + LOOK_INTERVAL
            jobs = list(member.jobs.values())
            for job in jobs:
                del self._jobs[job.number]
                if job.accepted is None:  # it has not begun
                    job.member, job.reason, job.kill_at = None, "", None
                    self._waiting.appendleft(job)
            self._changed.notify_all()
        if self._ending:
            return
        # Its own report would have come when the loop was free again.
        number, since = member.step.now()
        if number in member.jobs and (held := time.monotonic() - since) > BLOCKED:
            self.app.durable_worker.metrics.lagged(member.jobs[number].args[0], held)
        if jobs or not member.draining:
            logger.error("The process %d of the pool has ended (%s)", member.pid, member.process.exitcode)
        with self._tell():
            member.report_death([job for job in jobs if job.accepted is not None])

    # The keeper: a thread, so that limits hold while the main loop waits for Redis.

    def _keep(self) -> None:
        with self._changed:
            while not self._ending:
                try:
                    pause = self._look_after_all(time.monotonic())
                except Exception:
                    logger.exception("Looking after the pool's processes failed; it is tried again")
                    pause = LOOK_INTERVAL
                self._changed.wait(pause)
            # Where there is no main loop, they are this thread's.
            self._changed.wait_for(lambda: not self._members)

    def _look_after_all(self, now: float) -> float:
        """Do what is due; return the seconds until something is again."""
        pause = LOOK_INTERVAL
        if self._missing():
            pause = FORK_INTERVAL
            if (hub := get_event_loop()) is None:
                self._fork_what_is_missing()
            elif not self._fork_asked:
                self._fork_asked = True
                hub.call_soon(self._fork_what_is_missing)
        self._limits.enforce(now)
        if now - self._looked >= LOOK_INTERVAL:
            self._looked = now
            self._watch_memory()
        return min(max(self._limits.next() - time.monotonic(), 0.0), pause)

    def _missing(self) -> list[bool]:
        """Return for each process that is to be forked whether it is for one run at a time."""
        able = [member for member in self._members if not member.draining]
        missing = [False] * (self._processes - len([member for member in able if not member.alone]))
        if self._suspects and not any(member.alone for member in able):
            missing.append(True)
        return missing if time.monotonic() >= self._fork_at else []

    def _fork_what_is_missing(self) -> None:
        """Fork, in the main loop: no lock of Celery's is held then, and the kernel ends a child with its thread."""
        self._fork_asked = False
        if not self._telling.acquire(blocking=False):
            return  # it is tried again
        try:
            with self._changed:
                for alone in self._missing():
                    member = Member(self.options["initargs"], self._members, alone=alone)
                    self._members.append(member)
                    member.serve(self._on_message, self._on_end)
                self._hand_out()
        finally:
            self._telling.release()

    def _watch_memory(self) -> None:
        most = self.options.get("max_memory_per_child")
        for member in self._members if most else ():
            if not member.draining and member.has_more_than(most):
                self._drain(member)

    def _end_processes(self, timeout: float) -> None:
        with self._changed:
            self._ending = True
            for member in self._members:
                member.send("exit")
            self._changed.notify_all()
            if timeout:
                self._changed.wait_for(lambda: not self._members, timeout)
            for member in self._members:
                member.kill()
            self._changed.wait_for(lambda: not self._members, EXIT_TIMEOUT)
