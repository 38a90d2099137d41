"""For the code of ``async def`` tasks: Celery's calls in a form that is awaited.

In the pool ``asyncio`` they run in the run's own thread, with its context; elsewhere they do what Celery does.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from celery import states

from celery_durable import coroutines
from celery_durable.resources import per_process

__all__ = ["call", "per_process", "result", "send", "update_state"]

P = ParamSpec("P")
T = TypeVar("T")

# Seconds between two looks for a result: the first, and the longest.
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0


async def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks, like ``chord(...).delay``, and return what it returns; its errors are raised here."""
    run, bound = coroutines.current.get(), partial(function, *args, **kwargs)
    return await (run.call(bound) if run else asyncio.to_thread(bound))


async def send(task: Any, *args: Any, **options: Any) -> Any:
    """Send a task or signature and return its AsyncResult, when the broker has it.

    A task waits for a broker that is away; who gives a ``retry_policy`` waits as long as that says.

    Args:
        task: a task, or a signature like a chord.
        args: of the task.
        options: of ``apply_async``, like ``countdown`` or ``kwargs``.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    return await call(partial(task.apply_async, args or None, **options))


async def update_state(task: Any, state: str, meta: Any = None) -> None:
    """Store the state of the run of ``task`` (``self``), and go on when it is stored."""
    await call(partial(task.update_state, state=state, meta=meta))


async def result(of: Any, seconds: float | None = None) -> Any:
    """Wait for the result of a task that was sent, an AsyncResult, and return it or raise its error.

    A task that waits for another holds its slot: with too few slots all may wait for one another.

    Raises:
        TimeoutError: there is none after ``seconds``.
    """
    async with asyncio.timeout(seconds):
        pause = FIRST_LOOK
        while (meta := await call(partial(of.backend.get_task_meta, of.id, cache=False)))["status"] not in (
            states.READY_STATES
        ):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK)
    if meta["status"] in states.EXCEPTION_STATES:
        raise meta["result"]
    return meta["result"]
