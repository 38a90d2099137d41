"""A run in its process: Celery's tracer in a thread of its own, and its coroutine on the loop that all share.

Whatever blocks stays in the thread: the tracer, which stores states and results, and what a coroutine sends or reports
meanwhile (``Run.call``), in the order in which it does so. So a run waits for Redis, and no other one does.
"""

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from celery.exceptions import Reject, Retry

from celery_durable import coroutines
from celery_durable.worker.asyncio_pool.step import Step

T = TypeVar("T")


class RunEndedError(BaseException):
    """A run is ended from outside. Neither the application nor the tracer takes it for an error of the task."""


class Run(coroutines.Run):
    """One of many on the loop."""

    def __init__(self, number: int, task: Any, task_id: str, loop: asyncio.AbstractEventLoop, step: Step) -> None:
        """Remember whose it is; ``number`` is the main process's, ``step`` the memory that is shared with it."""
        super().__init__()
        self.number, self.name, self.task_id = number, task.name, task_id
        self._loop, self._shared = loop, step
        # Calls for the thread, and None when the coroutine has ended.
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._failure: Exception | None = None
        self._guard = threading.Lock()
        # Whether its end is a matter of its code, and not of Redis, to which Celery tells its beginning and its end.
        # Of a function that is none of ``async def`` nobody knows.
        self._is_async = coroutines.is_async(task)
        self._inside, self._over = not self._is_async, False
        self._soft, self._reason = False, ""

    def step(self, running: bool) -> None:
        """Let the main process know whose code runs."""
        if running:
            self._shared.begin(self.number)
        else:
            end_if_forked()
            self._shared.end()

    def complete(self, coroutine: Awaitable[T]) -> T:
        """Run a coroutine to its end; called in the run's thread, by the tracer.

        Raises:
            RunEndedError: it was ended from outside, however the coroutine took that.
        """
        with self._guard:
            self._inside = not self._reason
        if self._inside:
            self._loop.call_soon_threadsafe(self._begin, coroutine, contextvars.copy_context())
            while call := self._calls.get():
                call()
        elif inspect.iscoroutine(coroutine):
            coroutine.close()
        with self._guard:
            self._inside, self._over = False, True
        if self._reason:
            raise RunEndedError(self._reason)
        assert self.task  # noqa: S101 - it has ended
        try:
            result: T = coroutines.outcome(self.task)
        except Retry as retry:
            if self._failure:
                raise Reject(self._failure, requeue=False) from retry  # as Celery's `retry` does
            raise
        if self._failure:
            raise self._failure
        return result

    def _begin(self, coroutine: Awaitable[Any], context: contextvars.Context) -> None:
        task = self.begin(self._loop, coroutine, context)
        task.add_done_callback(lambda _: self._calls.put(None))
        if self._reason:
            task.cancel()
        elif self._soft:
            self._loop.call_soon(self.throw, coroutines.SoftLimit())

    def soft_limit(self) -> bool:
        """Raise SoftTimeLimitExceeded in the coroutine, or in what it is about to be; tell whether there is one."""
        if self._over or not self._is_async:
            return False
        self._soft = True
        self._loop.call_soon_threadsafe(self.throw, coroutines.SoftLimit())
        return True

    def end(self, reason: str) -> bool:
        """Cancel it; tell whether it has to end at once. What is about to begin does not begin any more."""
        with self._guard:
            if self._over:
                return False
            self._reason = reason
            inside = self._inside
        self._loop.call_soon_threadsafe(self._cancel)
        return inside

    def _cancel(self) -> None:
        if self.task:
            self._thrown = None
            self.task.cancel()

    def later(self, function: Callable[[], Any]) -> None:
        """Call what blocks in the run's thread. An error of it fails the run when its coroutine has ended."""
        self._calls.put(partial(contextvars.copy_context().run, self._call, function))

    def _call(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - the run fails with it
            self._failure = self._failure or error

    async def call(self, function: Callable[[], T]) -> T:
        """Call what blocks in the run's thread and return what it returns."""
        answered: asyncio.Future[T] = self._loop.create_future()

        def answer(deliver: Callable[[Any], None], value: Any) -> None:
            if not answered.done():
                deliver(value)

        def call() -> None:
            try:
                value = function()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                self._loop.call_soon_threadsafe(answer, answered.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(answer, answered.set_result, value)

        self._calls.put(partial(contextvars.copy_context().run, call))
        return await answered


# Whether this is a copy of the process, made by a task.
_forked = False


def end_at_next_step() -> None:
    """Let the copy of a process end as soon as the code that made it waits for something."""
    global _forked  # noqa: PLW0603 - of the process
    _forked = True


def end_if_forked() -> None:
    """End the copy: what would go on are the runs of the process that was copied."""
    if _forked:
        os._exit(1)
