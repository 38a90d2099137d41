"""Whether tasks wait for too long, and why."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from celery import Celery

from celery_durable.options import options_of
from celery_durable.redelivery import LEASE_MARGIN, NO_LIMIT
from celery_durable.snapshot import NOT_OURS, Look, Waiting
from durable_console.admin.diagnosis import LONG, OLD, STUCK_MARGIN

# Share of what waits from which one kind floods the others.
FLOOD = 0.8
# Runs between two looks that say whether tasks are slower than usual, and how much slower they must be.
RUNS_TO_COMPARE, SLOWER = 3, 2.0


def backlog(first: Look, last: Look, app: Celery) -> dict[str, Any]:
    """Say whether there is a backlog, why, and which verb of queue_backlog.yml helps, if any does."""
    late = {
        name: queue
        for name, queue in last.queues.items()
        if queue.oldest > OLD or (queue.length > LONG and queue.length >= _length(first, name))
    }
    seconds = last.at - first.at
    drains = (last.total("ended") - first.total("ended")) / seconds
    waits = sum(queue.length for queue in last.queues.values())
    grows = (waits - sum(queue.length for queue in first.queues.values())) / seconds
    cause, advice = (
        next(_causes((first, last), app, late, drains, grows))
        if late
        else ("No queue is too long or too old", {"verb": ""})
    )
    numbers = (
        f"{waits} tasks wait, {last.busy} of {last.size} slots are busy, {drains:.1f} runs end and the queues "
        f"{'grow' if grows > 0 else 'shrink'} by {abs(grows):.1f} tasks each second"
    )
    nodes = sorted(last.serving(_longest(late))) if late else []
    deferred = sum(entry.length for entry in last.deferred.values())
    aside = f" {deferred} tasks are deferred: operation=resume puts them back." if deferred else ""
    return {
        "wrong": bool(late),
        "verdict": f"{cause} ({numbers}).{aside}",
        **advice,
        "nodes": nodes,
        "lines": last.lines(),
    }


def _causes(
    looks: tuple[Look, Look], app: Celery, late: dict[str, Waiting], drains: float, grows: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what explains a backlog, with what helps; what others follow from comes first."""
    first, last = looks
    expected, name, by_hand = options_of(app).workers_expected, _longest(late), {"verb": ""}
    workers = last.serving(name).values()
    size, busy = (sum(worker[member] for worker in workers) for member in ("size", "busy"))
    if (missing := expected - len(last.workers)) > 0:
        yield f"{missing} of {expected} workers are away: no_workers.yml starts them", by_hand
    if name not in {entry.queue for entry in last.held if entry.silent <= LEASE_MARGIN}:
        yield f"No worker takes from the queue {name}: celery_worker_pools must name it", by_hand
    oldest = max((worker["held"] for worker in last.workers.values()), default=0)
    if oldest > (app.conf.task_time_limit or NO_LIMIT) + STUCK_MARGIN:
        yield f"Workers are stuck: one has held a task for {oldest:.0f} s; stuck_task.yml frees it", by_hand
    if busy < size and not drains:
        rate = app.conf.task_default_rate_limit
        why = f"task_default_rate_limit is {rate}" if rate else "its workers take none, stuck_task.yml looks at them"
        yield f"Slots are free and tasks of {name} wait: {why}", by_hand
    usual, lately = _mean(last), _mean(last, first)
    if lately > SLOWER * usual:
        yield (
            f"Tasks are slower than before, {lately:.1f} s a run instead of {usual:.1f} s: what they call is slow",
            {"verb": "scale", "slots": math.ceil(size / max(len(workers), 1))},
        )
    kinds: Counter[str] = sum((entry.kinds for entry in late.values()), Counter())
    task, count = kinds.most_common(1)[0]
    # A flood hurts the other kinds; where there is none, all that helps is more slots.
    known = {labels[0] for counter, *labels in last.counters if counter == "started"} | set(kinds)
    if task != NOT_OURS and len(known) > 1 and count >= FLOOD * kinds.total():
        share = count / kinds.total()
        yield f"One kind floods {name}: {share:.0%} of what waits is {task}", {"verb": "defer", "task": task}
    more = max(math.ceil(size * max(grows, 0) / drains) if drains else 0, size)
    yield (
        f"There are too few slots for {name}: {size} cannot keep up",
        {"verb": "scale", "slots": math.ceil(more / max(len(workers), 1))},
    )


def _longest(late: dict[str, Waiting]) -> str:
    return max(late, key=lambda queue: late[queue].length)


def _length(seen: Look, queue: str) -> int:
    # A worker may have begun to take from a queue between two looks.
    return seen.queues[queue].length if queue in seen.queues else 0


def _mean(last: Look, first: Look | None = None) -> float:
    """Return the seconds of a run, of all runs or of those between two looks; 0 where they are too few to tell."""
    runs = last.total("ended") - (first.total("ended") if first else 0)
    seconds = last.total("run_sum") - (first.total("run_sum") if first else 0)
    return seconds / runs if runs >= RUNS_TO_COMPARE else 0.0
