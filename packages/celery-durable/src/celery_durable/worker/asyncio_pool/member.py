"""A process of the pool, as the main process sees it."""

import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from billiard import Process

from celery_durable.worker.asyncio_pool import child
from celery_durable.worker.asyncio_pool.job import Job
from celery_durable.worker.results import MAIN_PROCESS_RETRIES

logger = logging.getLogger(__name__)

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Step(mmap.mmap):
    """Memory that is shared with a process: the number of the run whose code its loop runs, and since when.

    It outlives the process, and so names the run that ended it.
    """

    FORM = struct.Struct("<qd")

    def __new__(cls) -> "Step":
        """Allocate it, before the process is forked."""
        step = super().__new__(cls, -1, cls.FORM.size)
        cls.FORM.pack_into(step, 0, 0, 0.0)
        return step

    def begin(self, number: int) -> None:
        """The code of a run begins to run."""
        self.FORM.pack_into(self, 0, number, time.monotonic())

    def end(self) -> None:
        """The loop does something else, or waits."""
        self.FORM.pack_into(self, 0, 0, 0.0)

    def now(self) -> tuple[int, float]:
        """Return the number of the run, 0 for none, and time.monotonic() when the step began."""
        number, since = self.FORM.unpack_from(self, 0)
        return number, since


class Member:
    """One process with one event loop, and the runs that it was given."""

    def __init__(self, initargs: tuple[Any, ...], others: list["Member"], *, alone: bool) -> None:
        """Fork it; to be called from a thread that lives as long as the pool: the kernel ends a child with it.

        Args:
            initargs: the application and the name of the worker.
            others: the other processes.
            alone: it gets one run at a time, of those that are suspected to end processes.
        """
        self.alone = alone
        self.step = Step()
        self.connection, theirs = Pipe()
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = Process(target=child.main, args=(theirs, inherited, self.step, *initargs))
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
        app: Any,
    ) -> None:
        """Send and receive, in threads: neither waits for a process that is stuck."""
        threading.Thread(target=self._send, name=f"to-{self.pid}", daemon=True).start()
        threading.Thread(
            target=self._receive, args=(on_message, on_end, app), name=f"from-{self.pid}", daemon=True
        ).start()

    def tell(self, *message: Any) -> None:
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

    def memory(self) -> int:
        """Return how much it has, in KiB like Celery's ``max_memory_per_child``; 0 when it has ended."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KIB
        except (OSError, IndexError):
            return 0

    def _send(self) -> None:
        with suppress(OSError):  # it has ended, which the receiver notices
            while message := self._outbox.get():
                self.connection.send(message)

    def _receive(self, on_message: Callable[..., None], on_end: Callable[["Member"], None], app: Any) -> None:
        # The backend belongs to the thread. What it cannot store runs again, as with prefork.
        app.backend.max_retries = MAIN_PROCESS_RETRIES
        while True:
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                break
            try:
                on_message(self, message)
            except Exception:
                logger.exception("A message of the process %d cannot be handled", self.pid)
        self._outbox.put(None)
        self.process.join()
        on_end(self)
        self.connection.close()
