"""Queues and tasks, as the platform's metrics show them."""

from __future__ import annotations

from collections.abc import Iterator

from hosttools import files
from hosttools.doctor.checks import apart
from hosttools.doctor.workers import questions, queue_names
from hosttools.findings import CRITICAL, QUEUES, WARNING, WORKERS, Finding

WAITING, OLD_TASK, LONG_QUEUE, STUCK_MARGIN = 30, 120, 100, 60  # seconds, seconds, tasks, seconds


@apart
def tasks(figures: dict[str, float], hard_limit: int, app: str) -> Iterator[Finding]:
    """Judge what the API says of queues and of tasks in workers' hands."""
    yield from lengths(figures, app)
    waits = {
        name.partition('"')[2].rpartition('"')[0]: age
        for name, age in figures.items()
        if name.startswith("celery_queue_oldest_seconds") and age > WAITING
    }
    yield from unserved(app, sorted(waits)) if waits and figures.get("celery_workers_alive") else ()
    for queue, age in waits.items():
        if age > OLD_TASK:
            yield Finding(WARNING, f"a task has waited for {age:.0f} s in {queue}", "QueueTooOld", QUEUES)
    if figures.get("celery_unacknowledged_oldest_seconds", 0) > hard_limit + STUCK_MARGIN:
        held = figures["celery_unacknowledged_oldest_seconds"]
        yield Finding(CRITICAL, f"a task has been in a worker's hands for {held:.0f} s", "TaskStuck", QUEUES)
    if deferred := sum(number for name, number in figures.items() if name.startswith("celery_deferred_tasks")):
        resume = "playbooks/runbooks/queue_backlog.yml -e verb=resume -e confirm=yes puts them back"
        yield Finding(WARNING, f"{deferred:.0f} tasks are deferred; {resume}", "", QUEUES)
    if letters := figures.get("celery_dead_letters", 0):
        yield Finding(WARNING, f"{letters:.0f} dead letters", "DeadLetters", QUEUES)


@apart
def lengths(figures: dict[str, float], app: str) -> Iterator[Finding]:
    """Look whether queues are full, so that the API refuses tasks, or long."""
    limit = int(files.settings(f"/etc/{app}/backend.env").get("QUEUE_MAX_LENGTH", 0))
    for name, length in figures.items():
        if not name.startswith("celery_queue_length"):
            continue
        queue = name.partition('"')[2].rpartition('"')[0]
        if limit and length >= limit:
            what = f"the queue {queue} is full, the API refuses tasks: {length:.0f} wait (QUEUE_MAX_LENGTH {limit})"
            yield Finding(CRITICAL, what, "BacklogGrowing", QUEUES)
        elif length > LONG_QUEUE:
            # No page: a runbook that has mended a backlog does not wait until it is gone.
            yield Finding(WARNING, f"{length:.0f} tasks wait in {queue}", "", QUEUES)


@apart
def unserved(app: str, queues: list[str]) -> Iterator[Finding]:
    """Name the queues where tasks wait, and from which no worker takes."""
    taken = {queue for _, answer in questions(app, "active_queues") for queue in queue_names(answer)}
    for queue in queues if taken else ():
        if queue not in taken:
            what = f"tasks wait in the queue {queue}, but no worker takes from it (workers take from {sorted(taken)})"
            yield Finding(CRITICAL, what, "QueueTooOld", WORKERS)
