"""A worker's life: memory shared with its children, stop in two phases.

TERM finishes what runs (warm). What has not finished SECOND_PHASE_MARGIN after the hard limit, because it has longer
limits of its own or its process is stuck, is requeued (cold, by QUIT to ourselves). Done inside the process so that
systemd, supervisor and containers all stop a worker with one plain TERM.
"""

import gc
import os
import signal
import threading
from typing import Any

from celery import signals

from celery_durable.redelivery import NO_LIMIT
from celery_durable.worker import forks, systemd

# Seconds between the moment the last task must have ended and QUIT.
SECOND_PHASE_MARGIN = 5

_stopping = threading.Event()
# Of the process, as signals are: the main one, in it and in children that it has forked, and the hard limit of tasks.
_main, _time_limit = 0, float(NO_LIMIT)


def install() -> None:
    """Connect the handlers; Celery only keeps weak references, so they are module functions."""
    signals.worker_init.connect(_prepare)
    signals.worker_process_shutdown.connect(_close_what_tasks_share)
    signals.worker_process_init.connect(_end_with_the_worker)
    signals.worker_shutting_down.connect(_shutting_down)


def _prepare(sender: Any, **_: Any) -> None:
    # There may be several applications in this process, also without the library.
    if hasattr(sender.app, "durable_options"):
        _know_the_limits_of_the_command_line(sender)
        forks.install()
        _use_our_classes()
        _run_coroutines(sender.app)
        _push_retries_however_long_it_takes(sender.app)
        _remember_the_main_process(sender.app)
        _share_memory()


def _know_the_limits_of_the_command_line(sender: Any) -> None:
    # --time-limit: Celery keeps it from the settings, which the stop, leases and retries go by.
    sender.app.conf.update(task_time_limit=sender.time_limit, task_soft_time_limit=sender.soft_time_limit)


def _use_our_classes() -> None:
    # Only a worker needs them.
    from celery.worker import strategy  # noqa: PLC0415

    from celery_durable.worker import pools, request  # noqa: PLC0415

    pools.install()
    strategy.create_request_cls = request.request_class  # type: ignore[attr-defined]


def _run_coroutines(app: Any) -> None:
    from celery_durable import coroutines  # noqa: PLC0415 - only a worker needs it

    app.finalize()
    coroutines.adopt(app)


def _close_what_tasks_share(**_: Any) -> None:
    from celery_durable import coroutines, resources  # noqa: PLC0415

    coroutines.run_here(resources.close)


def _push_retries_however_long_it_takes(app: Any) -> None:
    # A task that is to be retried while Redis is away waits for it, up to its hard limit. Other clients give up.
    policy = {"max_retries": None, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}
    app.conf.task_publish_retry_policy = policy


def _share_memory() -> None:
    # Objects that the collector never touches stay shared with forked children: 13 MB a child instead of 27.
    gc.collect()
    gc.freeze()


def _remember_the_main_process(app: Any) -> None:
    global _main, _time_limit
    _main, _time_limit = os.getpid(), app.conf.task_time_limit or NO_LIMIT


def _end_with_the_worker(**_: Any) -> None:
    # Celery asks the kernel to end a child with its parent. A parent that died before that is asked for nothing: the
    # children would keep one another's pipes open and wait for ever. A solo worker is its own and only child.
    if _main and _main not in (os.getpid(), os.getppid()):
        os._exit(1)


def _shutting_down(how: str, **_: Any) -> None:
    if how != "Warm" or _stopping.is_set():
        return
    _stopping.set()
    systemd.notify("STOPPING=1")
    delay = _time_limit + SECOND_PHASE_MARGIN
    second_phase = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGQUIT))
    second_phase.daemon = True
    second_phase.start()
