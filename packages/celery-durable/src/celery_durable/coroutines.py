"""Tasks that are ``async def``, in every pool: their code does not know which.

Celery's tracer wants a function that ends. So a coroutine is run to its end from inside it: in the pool ``asyncio`` on
the loop that its process shares (``worker/asyncio_pool/``), in every other pool on a loop of the process or thread.
"""

import asyncio
import contextvars
import inspect
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from billiard.pool import soft_timeout_sighandler
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import django

T = TypeVar("T")


class TaskExitedError(Exception):
    """A task raised what is no error, like SystemExit. In a process of its own that would have ended the process."""


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """What is thrown into a coroutine. As a cancellation it ends what ``wait_for`` and task groups wait for, too."""


class Run:
    """A coroutine on its way to its end."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.task: asyncio.Task[Any] | None = None
        self.stepping = False
        self._thrown: BaseException | None = None

    def begin(
        self, loop: asyncio.AbstractEventLoop, coroutine: Awaitable[Any], context: contextvars.Context
    ) -> asyncio.Task[Any]:
        """Make it a task of ``loop``, to be called on it or before it runs."""
        self.task = asyncio.Task(Steps(coroutine, self, main=True), loop=loop, context=context)
        return self.task

    def step(self, running: bool) -> None:
        """A step of it begins, or has ended."""
        self.stepping = running

    def throw(self, error: BaseException) -> None:
        """Raise ``error`` where the coroutine waits; to be called on its loop."""
        if self.task and not self.task.done():
            self._thrown = error
            self.task.cancel()

    def thrown(self) -> BaseException | None:
        """Return what is to be raised instead of a cancellation, once."""
        error, self._thrown = self._thrown, None
        if error and self.task:
            self.task.uncancel()
        return error

    async def call(self, function: Callable[[], T]) -> T:
        """Call what blocks. Nothing else runs on a loop that belongs to one run."""
        return function()


# The run that code belongs to, also in tasks, threads (``asyncio.to_thread``) and callbacks that it has started.
current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("run", default=None)


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine that tells its run when it runs, and that ends no loop."""

    def __init__(self, coroutine: Awaitable[Any], run: Run, *, main: bool = False) -> None:
        """Wrap a coroutine of ``run``: its ``main`` one, or one of a task that it has started."""
        inner: Any = coroutine if inspect.iscoroutine(coroutine) or isinstance(coroutine, Steps) else _await(coroutine)
        self._inner, self._run, self._main = inner, run, main
        self.__name__ = getattr(inner, "__name__", "task")
        self.__qualname__ = getattr(inner, "__qualname__", "task")

    def __getattr__(self, name: str) -> Any:
        """Have the attributes of a coroutine, like ``cr_frame``."""
        return getattr(self._inner, name)

    def send(self, value: Any) -> Any:
        """Go on."""
        return self._step(self._inner.send, value)

    def throw(self, error: Any, *_: Any) -> Any:
        """Go on with an exception; a cancellation may stand for another."""
        if self._main and isinstance(error, asyncio.CancelledError):
            error = self._run.thrown() or error
        return self._step(self._inner.throw, error)

    def close(self) -> None:
        """End it where it is."""
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for it."""
        return (yield from self._inner.__await__())

    def _step(self, advance: Callable[[Any], Any], value: Any) -> Any:
        self._run.step(running=True)
        try:
            return advance(value)
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            # asyncio would end its loop.
            raise TaskExitedError(f"The task raised {error!r}.") from error
        finally:
            self._run.step(running=False)


def own_steps(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """Make a task, for the loop: what a run starts is part of it."""
    context = options.get("context")
    run = context.get(current) if context else current.get()
    return asyncio.Task(Steps(coroutine, run) if run else coroutine, loop=loop, **options)


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def outcome(task: asyncio.Task[T]) -> T:
    """Return what a run's task has returned, or raise what it has raised, as Celery knows it.

    Raises:
        SoftTimeLimitExceeded: the soft limit's exception came out of it.
        TaskExitedError: the coroutine cancelled itself.
    """
    try:
        return task.result()
    except SoftLimit as error:
        raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from error.__cause__
    except asyncio.CancelledError as error:
        raise TaskExitedError("The task cancelled itself.") from error


# The loop of a process, or of a thread of the pool ``threads``. It is kept, and with it what tasks open on it.
_own = threading.local()


def complete_here(coroutine: Awaitable[T]) -> T:
    """Run a coroutine to its end on the loop of this thread."""
    if not hasattr(_own, "loop"):
        _own.loop = asyncio.new_event_loop()
        _own.loop.set_task_factory(own_steps)
    loop, run, context = _own.loop, Run(), contextvars.copy_context()
    context.run(current.set, run)
    task = run.begin(loop, coroutine, context)
    # In a child of the pool ``prefork`` it ends any code at once, also asyncio's own.
    handler = signal.getsignal(signal.SIGUSR1)
    limited = handler is soft_timeout_sighandler and threading.current_thread() is threading.main_thread()

    def on_soft_limit(*_: Any) -> None:
        if run.stepping:
            raise SoftTimeLimitExceeded
        loop.call_soon_threadsafe(run.throw, SoftLimit())

    if limited:
        signal.signal(signal.SIGUSR1, on_soft_limit)
    try:
        while not task.done():  # a task may stop its loop
            with suppress(RuntimeError):
                loop.run_until_complete(asyncio.wait([task]))
    finally:
        if limited:
            signal.signal(signal.SIGUSR1, handler)
    result: T = outcome(task)
    return result


def complete_eagerly(coroutine: Awaitable[T], task: Any, request: Any) -> T:
    """Run a coroutine to its end where it was called, as ``apply`` promises, even if that is on a loop."""
    if asyncio._get_running_loop() is None:  # noqa: SLF001 - get_running_loop raises
        return complete_here(coroutine)

    def complete() -> T:
        # Celery's stacks belong to threads.
        _task_stack.push(task)
        task.request_stack.push(request)
        try:
            return complete_here(coroutine)
        finally:
            _own.loop.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, complete).result()


def run_here(function: Callable[[], Awaitable[None]]) -> None:
    """Run an async function on the loop of this thread, where there is one."""
    if hasattr(_own, "loop"):
        _own.loop.run_until_complete(function())


# How a coroutine gets to its end in this process.
_complete: Callable[[Awaitable[Any]], Any] = complete_here


def set_complete(complete: Callable[[Awaitable[Any]], Any]) -> None:
    """Make ``complete`` run the coroutines of this process's tasks; the pool ``asyncio`` does."""
    global _complete  # noqa: PLW0603 - of the process
    _complete = complete


def _completing(function: Callable[..., Any], task: Any = None) -> Callable[..., Any]:
    """Wrap a function of ``task``, or a method of its class."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        returned = function(*args, **kwargs)
        if not inspect.isawaitable(returned):
            return returned
        # Whoever calls a task by hand awaits it, and so does the task itself with what it calls of its own.
        requests = (task or args[0]).request_stack.stack
        traced = next((request for request in reversed(requests) if not request.called_directly), None)
        if traced is None or getattr(traced, "completed", False):
            return returned
        traced.completed = True
        if traced.is_eager:
            return complete_eagerly(returned, task or args[0], traced)
        return _complete(django.closing_connections(returned) if django.is_used() else returned)

    run.__dict__["completes"] = True
    return run


def is_async(task: Any) -> bool:
    """Tell whether a task that was adopted is a coroutine's."""
    functions = task.run, getattr(task, "_orig_run", None), type(task).__call__
    return any(getattr(function, "completes", False) for function in functions)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) and not getattr(function, "completes", False)


def adopt(app: Any) -> None:
    """Have Celery's tracer run the coroutines of the tasks of ``app``; to be called before tracers are built."""
    for task in app.tasks.values():
        adopt_task(task)


def adopt_task(task: Any) -> None:
    """Have Celery's tracer run the coroutines of one task."""
    # Celery's automatic retry stands in front of what it retries.
    name = "_orig_run" if hasattr(task, "_orig_run") else "run"
    function = getattr(task, name)
    if _is_async(function):
        if hasattr(function, "dump_arguments"):
            _complete_inside(getattr(function, "__func__", function), task)
        else:
            setattr(task, name, _completing(function, task))
    for kind in type(task).__mro__:
        if "__call__" in vars(kind) and _is_async(vars(kind)["__call__"]):
            setattr(kind, "__call__", _completing(vars(kind)["__call__"]))  # noqa: B010 - of any class


def _complete_inside(wrapper: Any, task: Any) -> None:
    """Complete what Celery's wrapper of ``pydantic=True`` calls: it dumps the model that comes out of it."""
    called = wrapper.__closure__[wrapper.__code__.co_freevars.index("task_fun")]
    called.cell_contents = _completing(called.cell_contents, task)
    wrapper.completes = True
