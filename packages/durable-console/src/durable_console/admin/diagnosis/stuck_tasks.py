"""Which tasks run for too long, or kill their workers."""

import time
from typing import Any

from celery import Celery

from celery_durable.redelivery import LEASE_MARGIN, MAX_REDELIVERIES, NO_LIMIT, deaths_of
from celery_durable.snapshot import Look
from durable_console.admin.diagnosis import STUCK_MARGIN, TIMEOUT

# A task whose workers died that often comes back again and again.
POISON = 3


def stuck(seen: Look, app: Celery, task_id: str) -> dict[str, Any]:
    """Say which tasks run for too long or come back again and again; with an id, where that one is."""
    limit: float = app.conf.task_time_limit or NO_LIMIT
    asked = app.control.inspect(timeout=TIMEOUT)
    running = {
        entry["id"]: time.time() - entry["time_start"]
        for entries in (asked.active() or {}).values()
        for entry in entries
        if entry["time_start"]
    }
    scheduled = {entry["request"]["id"] for entries in (asked.scheduled() or {}).values() for entry in entries}
    reserved = {entry["id"] for entries in (asked.reserved() or {}).values() for entry in entries}
    # No answer names a task that waits for its rate. A task that has one is listed as "NAME [...]".
    listed = [line.partition(" ") for lines in (asked.registered("rate_limit") or {}).values() for line in lines]
    limited = {name for name, _, limit in listed if limit}
    found, notes = [], []
    for entry in seen.held:
        if entry.silent > LEASE_MARGIN:
            if entry.messages:
                silent = f"which is silent for {entry.silent:.0f} s: unacknowledged.yml"
                notes.append(f"{len(entry.messages)} tasks are in flight at {entry.node}, {silent}")
            continue
        worker = seen.workers.get(entry.node, {"held": 0, "busy": 0, "size": 1})
        held_too_long = worker["held"] > limit + STUCK_MARGIN
        # Taken ahead of time, a task waits for a slot as long as all are busy.
        in_turn = scheduled | (reserved if worker["busy"] >= worker["size"] else set())
        for headers in filter(None, entry.messages):
            name, seconds = f"{headers['id']} ({headers['task']})", running.get(headers["id"])
            why = _why_stuck(
                headers,
                limit,
                seconds,
                held_too_long and headers["id"] not in in_turn and headers["task"] not in limited,
            )
            if held_too_long and seconds is not None and not why:
                notes.append(
                    f"{name} has run for {seconds:.0f} s on {entry.node}; its limits allow {_limit(headers, limit):.0f}"
                )
            if headers["id"] == task_id or (why and not task_id):
                found.append(_culprit(headers, entry.node, f"{name} on {entry.node} {why or 'is under way'}"))
    for queue, waiting in seen.queues.items():
        for headers in waiting.returned:
            name, why = f"{headers['id']} ({headers['task']})", _why_stuck(headers, limit, None, False)
            if headers["id"] == task_id or (why and not task_id):
                found.append(_culprit(headers, "", f"{name} in the queue {queue} {why or 'waits'}"))
    if task_id and not found:
        notes.insert(
            0, f"The task {task_id} is in flight at no worker, and none has died with it; result_not_found.yml finds it"
        )
    if seen.dead_letters:
        notes.append(f"{seen.dead_letters} dead letters wait for a decision: playbooks/diagnose/dead_letters.yml")
    sentences = [entry["reason"] for entry in found] + notes
    return {"tasks": found, "verdict": "; ".join(sentences) or "No task is stuck, and none kills its worker"}


def _why_stuck(headers: dict[str, Any], limit: float, seconds: float | None, held_too_long: bool) -> str:
    """Return what is wrong with a task; nothing where nothing is."""
    if (deaths := deaths_of(headers)) >= POISON:
        return (
            f"comes back again and again: {deaths} workers have died with it (after {MAX_REDELIVERIES} it is put aside)"
        )
    if seconds is not None and seconds > _limit(headers, limit) + STUCK_MARGIN:
        return f"has run for {seconds:.0f} s, its limit is {_limit(headers, limit):.0f} s"
    return "is held, but neither runs nor waits for its time" if seconds is None and held_too_long else ""


def _limit(headers: dict[str, Any], limit: float) -> float:
    """Return the seconds that a task may run; ``limit`` is that of all tasks."""
    try:
        hard, _ = headers.get("timelimit") or (None, None)
        return float(hard or limit)
    except (ValueError, TypeError, OverflowError):
        return limit


def _culprit(headers: dict[str, Any], node: str, reason: str) -> dict[str, Any]:
    return {"id": headers["id"], "node": node, "reason": reason, "poison": deaths_of(headers) >= POISON}
