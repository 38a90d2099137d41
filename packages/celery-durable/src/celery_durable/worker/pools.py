"""Pools that forget no task: neither what a child was just given, nor one that ends in an unusual way in a thread."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency import prefork, solo, thread
from celery.concurrency.asynpool import AsynPool
from celery.exceptions import WorkerShutdown, WorkerTerminate

from celery_durable.coroutines import TaskExitedError


class Pool(AsynPool):
    """Celery's pool of processes, without what celery/celery#6863 brought."""

    _cache: dict[int, Any]
    _busy_workers: set[int]

    def flush(self) -> None:
        """Forget what no child was given; called when the broker's connection is lost, and before a stop.

        Celery forgets what no child has *accepted*. In the milliseconds between the two a child ran a task whose end
        nobody heard of: before a stop it waited for that for 30 s (billiard's ``_ensure_messages_consumed``), and after
        a lost connection the task could start a second time beside the first.
        """
        given = {number: job for number, job in self._cache.items() if job._write_to and job._write_to._is_alive()}  # noqa: SLF001
        super().flush()
        self._cache.update(given)
        # Nothing more is given to a child that is busy.
        self._busy_workers.update(job._write_to.inqW_fd for job in given.values())  # noqa: SLF001


def run(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    callback: Callable[..., Any],
    accept_callback: Callable[..., Any],
    error_callback: Callable[..., Any],
    **_: Any,
) -> None:
    """Run a task in this thread and tell its request how it ended; the arguments are a pool's.

    Celery's own function reports no error: its message would stay in flight, and its thread's slot taken.
    """
    accept_callback(os.getpid(), time.monotonic())
    try:
        ended = _errors_only(target, *args, **kwargs)
    except (WorkerShutdown, WorkerTerminate):
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the request wants to know
        error_callback(ExceptionInfo())
    else:
        callback(ended)


def _errors_only(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return target(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and isinstance(error, WorkerShutdown | WorkerTerminate):
            raise  # how a signal ends a solo worker
        raise TaskExitedError(f"The task raised {error!r}.") from error


def _submit(self: thread.TaskPool, target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
    return thread.ApplyResult(self.executor.submit(run, target, args, kwargs or {}, **options))


def install() -> None:
    """Make every worker of this process use them; Celery has no settings for it."""
    prefork.TaskPool.Pool = Pool
    thread.TaskPool.on_apply = _submit  # type: ignore[method-assign,assignment]
    solo.apply_target = run
