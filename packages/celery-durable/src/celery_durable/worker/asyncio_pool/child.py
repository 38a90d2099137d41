"""A process of the pool: a loop, a thread for each run, and one that watches the loop."""

import asyncio
import logging
import os
import pickle
import socket
import stat
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery._state import _task_stack
from celery.concurrency.prefork import process_initializer

from celery_durable import coroutines, resources
from celery_durable.coroutines import TaskExitedError
from celery_durable.worker.asyncio_pool.off_loop import take_off_the_loop
from celery_durable.worker.asyncio_pool.runs import Run, RunEndedError, end_at_next_step, end_if_forked
from celery_durable.worker.asyncio_pool.sharing import RoundTrips, Threads
from celery_durable.worker.asyncio_pool.step import Step
from celery_durable.worker.results import ResultStore

logger = logging.getLogger(__name__)

# Seconds that one step of a run may hold the loop before it is reported, and between two looks.
LAG_LIMIT, LAG_INTERVAL = 1.0, 0.2
# Bytes of a thread's stack, of which it has what it touches: there are hundreds of them.
STACK_SIZE = 1024 * 1024
# Lines of code that are shown of one that holds the loop.
FRAMES = 12


def main(connection: Connection, inherited: list[Connection], step: Step, app: Any, hostname: str) -> None:
    """Serve the main process until it says ``exit`` or is gone."""
    for other in inherited:
        other.close()
    _let_go_of_sockets(connection.fileno())
    process_initializer(app, hostname)
    Child(connection, step, app).run()
    signals.worker_process_shutdown.send(sender=hostname, pid=os.getpid(), exitcode=0)


def _let_go_of_sockets(but: int) -> None:
    """Put nothing in the place of the main process's connections: the far side must see when it closes them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names are numbers
        number = int(name)
        with suppress(OSError):
            if number in (0, 1, 2, but) or not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as duplicate:
                if duplicate.family in (socket.AF_INET, socket.AF_INET6):
                    os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


class Child:
    """What the process does."""

    def __init__(self, connection: Connection, step: Step, app: Any) -> None:
        """Make everything that differs from other pools so, in this process alone."""
        self._connection, self._step, self._app = connection, step, app
        self._sending = threading.Lock()
        self._messages: deque[bytes] = deque()
        self._runs: dict[int, Run] = {}
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(coroutines.own_steps)
        self._loop_thread = threading.get_ident()
        self._ticked = time.monotonic()
        self._stopping = False
        self._threads = Threads()
        # One for all threads, with the connections that they need at once.
        self._backend = app.backend
        self._share_round_trips()
        os.register_at_fork(after_in_child=self._on_fork)
        coroutines.set_complete(complete)
        # Celery's stacks belong to threads; here to runs.
        for stack in (_task_stack, *(task.request_stack for task in app.tasks.values())):
            stack.__ident_func__ = identity
        take_off_the_loop(app)

    def run(self) -> None:
        """Run the loop until the main process ends it."""
        threading.stack_size(STACK_SIZE)
        asyncio.set_event_loop(self._loop)
        self._tick()
        for target in (self._receive, self._watch):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        while not self._stopping:
            try:
                self._loop.run_forever()
            except BaseException:
                # Of a callback, like SystemExit; no run is waited for there.
                logger.exception("A callback on the event loop has failed")
        self._loop.run_until_complete(resources.close())

    def _share_round_trips(self) -> None:
        if isinstance(self._backend, ResultStore):
            round_trips = RoundTrips(self._backend.client)
            self._backend.execute, self._backend.get = round_trips.execute, round_trips.get  # type: ignore[method-assign,assignment]

    def _on_fork(self) -> None:
        # A task that calls os.fork has a copy of all runs: it must neither speak for us nor go on with them.
        self._connection.close()
        self._share_round_trips()  # a thread that is not in the copy may hold the lock
        end_at_next_step()

    def _send(self, *message: Any) -> None:
        self._messages.append(pickle.dumps(message))
        # What comes while others are sent goes along with the next. On return it is sent: the code that runs next may
        # end the process.
        with self._sending:
            if messages := [self._messages.popleft() for _ in range(len(self._messages))]:
                self._connection.send(messages)

    def _receive(self) -> None:
        while True:
            try:
                messages = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the main process is gone
            for message in messages:
                self._heed(*message)

    def _heed(self, kind: str, *rest: Any) -> None:
        if kind == "run":
            self._start(*rest)
        elif kind == "exit":
            self._stopping = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        elif run := self._runs.get(rest[0]):
            if kind == "soft" and run.soft_limit():
                self._send("soft", run.number)
            elif kind == "end" and not run.end(rest[1]):
                self._send("outside", run.number)

    def _start(self, number: int, target: Any, args: Any, kwargs: dict[str, Any]) -> None:
        name, task_id, *_ = args
        run = self._runs[number] = Run(number, self._app.tasks[name], task_id, self._loop, self._step)
        try:
            self._threads.run(partial(self._perform, run, target, args, kwargs))
        except RuntimeError:  # the system has no more threads
            self._send("accepted", number, time.monotonic())
            self._send("raised", number, ExceptionInfo())

    def _perform(self, run: Run, target: Any, args: Any, kwargs: dict[str, Any]) -> None:
        coroutines.current.set(run)
        self._app._backend = self._backend  # noqa: SLF001 - of this thread
        self._send("accepted", run.number, time.monotonic())
        message: tuple[Any, ...]
        try:
            message = "done", run.number, _errors_only(target, args, kwargs)
        except RunEndedError:
            message = "ended", run.number
        except Exception:  # noqa: BLE001 - whatever it is, the main process wants to know
            message = "raised", run.number, ExceptionInfo()
        end_if_forked()
        del self._runs[run.number]
        self._send(*message)

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        self._loop.call_later(LAG_INTERVAL, self._tick)

    def _watch(self) -> None:
        """Report whoever holds the loop."""
        while True:
            time.sleep(LAG_INTERVAL)
            ticked = self._ticked
            if time.monotonic() - ticked < LAG_LIMIT + LAG_INTERVAL:
                continue
            run = self._runs.get(self._step.now()[0])
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - there is no other way
            stack = "".join(traceback.format_stack(frame)[-FRAMES:])
            extra = {"task_id": run.task_id, "task_name": run.name} if run else {}
            whose = f"task {run.name}[{run.task_id}]" if run else "a callback"
            logger.warning("The event loop of process %d is blocked by %s:\n%s", os.getpid(), whose, stack, extra=extra)
            while self._ticked == ticked:
                time.sleep(LAG_INTERVAL)
            self._send("lag", 0, run.name if run else "callback", self._ticked - ticked)


def complete(coroutine: Awaitable[Any]) -> Any:
    """Run the coroutine of the task that this thread traces; of none, like one that is called by hand, here."""
    run = coroutines.current.get()
    return run.complete(coroutine) if isinstance(run, Run) else coroutines.complete_here(coroutine)


def identity() -> Any:
    """Return whose Celery's stacks are: the run's, wherever its code runs, else the thread's."""
    return coroutines.current.get() or threading.get_ident()


def _errors_only(target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    try:
        return target(*args, **kwargs)
    except (Exception, RunEndedError):
        raise
    except BaseException as error:
        raise TaskExitedError(f"The task raised {error!r}.") from error
