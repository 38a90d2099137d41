"""A process of the pool and its runs, as the main process sees them."""

import itertools
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from billiard import Process
from billiard.einfo import ExceptionInfo
from celery.exceptions import Terminated, WorkerLostError

from celery_durable.options import Variables, number, read
from celery_durable.worker.asyncio_pool.child import main
from celery_durable.worker.asyncio_pool.step import Step
from celery_durable.worker.request import NeighbourLostError

logger = logging.getLogger(__name__)

_numbers, _processes = itertools.count(1), itertools.count(1)

# Why a run is ended from outside.
TIME_LIMIT, TERMINATED = "time limit", "terminated"
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


# Processes, unless it is said; each holds a copy of the application.
MOST_PROCESSES = 2
# Of the unit, and not of the application, which may bring options of its own.
VARIABLES: Variables = {"DURABLE_POOL_PROCESSES": ("processes", number(1), "a number, at least 1")}


def processes_of(limit: int) -> int:
    """Return how many processes share ``limit`` slots.

    Raises:
        OptionError: the variable has a wrong value.
    """
    default = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    return min(int(read(VARIABLES, os.environ).get("processes", default)), limit)


@dataclass(eq=False, kw_only=True)
class Job:
    """What Celery hands to a pool, with the callbacks of its request; limits are seconds."""

    target: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    callback: Callable[..., Any]
    accept_callback: Callable[..., Any]
    error_callback: Callable[..., Any]
    timeout_callback: Callable[..., Any]
    soft_limit: float | None
    hard_limit: float | None
    end: Callable[["Job", str], None]
    number: int = field(default_factory=lambda: next(_numbers))
    member: "Member | None" = None
    accepted: float | None = None  # time.monotonic()
    reason: str = ""  # TIME_LIMIT or TERMINATED, once it is being ended
    kill_at: float | None = None  # time.monotonic() from when its process is replaced

    def fail(self, error: Exception) -> None:
        """Tell its request that it has failed."""
        try:
            raise error
        except type(error):
            self.error_callback(ExceptionInfo())

    def report_end(self) -> None:
        """Tell its request that it was ended from outside."""
        if self.reason == TIME_LIMIT:
            self.timeout_callback(False, self.hard_limit)
        else:
            self.fail(Terminated(0))

    def terminate(self, _signal: int) -> None:
        """Cancel it; the signal says how the process of a prefork pool would have ended."""
        self.end(self, TERMINATED)


class Member:
    """One process with one event loop, and the runs that it was given."""

    def __init__(self, initargs: tuple[Any, ...], others: list["Member"], *, alone: bool) -> None:
        """Fork it.

        Args:
            initargs: the application and the name of the worker.
            others: the other processes.
            alone: it gets one run at a time, of those that are suspected to end processes.
        """
        self.alone = alone
        self.step = Step()
        self.connection, theirs = Pipe()
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = Process(
            target=main, name=f"AsyncioPool-{next(_processes)}", args=(theirs, inherited, self.step, *initargs)
        )
        self.process.start()
        theirs.close()
        self.jobs: dict[int, Job] = {}
        self.given = 0
        self.draining = False
        self.culprit: Job | None = None  # for whose sake it is killed
        self._outbox: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    @property
    def pid(self) -> int:
        """Return its process id."""
        return int(self.process.pid or 0)

    def serve(
        self,
        on_message: Callable[["Member", tuple[Any, ...]], None],
        on_end: Callable[["Member"], None],
    ) -> None:
        """Send and receive, in threads: neither waits for a process that is stuck."""
        threading.Thread(target=self._send, name=f"to-{self.pid}", daemon=True).start()
        threading.Thread(target=self._receive, args=(on_message, on_end), name=f"from-{self.pid}", daemon=True).start()

    def send(self, *message: Any) -> None:
        """Send a message, soon."""
        self._outbox.put(message)

    def kill(self, culprit: Job | None = None) -> None:
        """End it at once."""
        self.culprit = self.culprit or culprit
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def blocked_by(self, now: float, seconds: float) -> int:
        """Return the number of the run that has not let go of the loop for ``seconds``; 0 for none."""
        number, since = self.step.now()
        return number if number and now - since >= seconds else 0

    def has_more_than(self, most: int) -> bool:
        """Tell whether it has more memory than ``most`` KiB, as Celery counts ``max_memory_per_child``."""
        try:
            memory = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KIB
        except (OSError, IndexError):
            return False  # it has ended
        if memory > most:
            logger.warning("The process %d of the pool has %d KiB: it is replaced", self.pid, memory)
        return memory > most

    def report_death(self, jobs: list[Job]) -> None:
        """Tell requests that its process has ended: which run is to blame, and that the others run again."""
        blamed = self.culprit.number if self.culprit else self.step.now()[0]
        how = f"the process {self.pid} has ended ({self.process.exitcode})"
        for job in jobs:
            if job.reason == TERMINATED or (job is self.culprit and job.reason):
                job.report_end()
            elif job.number == blamed:
                job.fail(WorkerLostError(f"The task ended its process: {how}."))
            else:
                job.fail(NeighbourLostError(how, suspected=not blamed))

    def _send(self) -> None:
        with suppress(OSError):  # it has ended, which the receiver notices
            while message := self._outbox.get():
                messages = [message]
                while not self._outbox.empty() and (message := self._outbox.get()):
                    messages.append(message)
                self.connection.send(messages)
                if message is None:
                    return

    def _receive(self, on_message: Callable[..., None], on_end: Callable[["Member"], None]) -> None:
        while True:
            try:
                messages = [pickle.loads(message) for message in self.connection.recv()]  # noqa: S301 - our own
            except (EOFError, OSError):
                break
            except Exception:
                # A run would never end.
                logger.exception("A message of the process %d cannot be read: it is replaced", self.pid)
                self.kill()
                break
            for message in messages:
                try:
                    on_message(self, message)
                except Exception:
                    logger.exception("A message of the process %d cannot be handled", self.pid)
        self._outbox.put(None)
        self.process.join()
        on_end(self)
        self.connection.close()
