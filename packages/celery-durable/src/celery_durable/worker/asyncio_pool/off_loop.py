"""Celery's calls that block, taken off the loop: ``.delay()``, ``apply_async``, ``retry`` and ``update_state``.

A coroutine calls them as any task does. They return at once, and the run's thread does the work in the order of the
calls. What fails there fails the run when its coroutine has ended, before its result is stored.
"""

import asyncio
import copy
from functools import wraps
from typing import Any

from celery.app.task import Task
from celery.utils import uuid

from celery_durable import coroutines
from celery_durable.worker.asyncio_pool.runs import Run


def take_off_the_loop(app: Any) -> None:
    """Take them off the loops of this process."""
    send, update = app.send_task, Task.update_state

    @wraps(send)
    def send_task(name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if (run := _on_loop()) is None:
            return send(name, args, kwargs, **options)
        # The caller may change what it has sent; a producer belongs to who has acquired it.
        args, kwargs = copy.deepcopy((args, kwargs))
        options |= {"task_id": options.get("task_id") or uuid(), "producer": None}
        run.later(lambda: send(name, args, kwargs, **options))
        return app.AsyncResult(options["task_id"])

    @wraps(update)
    def update_state(self: Any, task_id: Any = None, state: Any = None, meta: Any = None, **options: Any) -> None:
        if (run := _on_loop()) is None:
            update(self, task_id, state, meta, **options)
            return
        meta = copy.deepcopy(meta)
        run.later(lambda: update(self, task_id, state, meta, **options))

    app.send_task = send_task
    Task.update_state = update_state  # type: ignore[method-assign]


def _on_loop() -> Run | None:
    run = coroutines.current.get()
    return run if isinstance(run, Run) and asyncio._get_running_loop() is not None else None  # noqa: SLF001
