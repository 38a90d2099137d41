"""Where a task is, or what became of it."""

import time
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery
from celery.states import READY_STATES

from celery_durable import entries, keys
from celery_durable.entries import asked
from celery_durable.options import options_of
from celery_durable.redelivery import LEASE_MARGIN
from celery_durable.snapshot import Held, held, lists, ours, read_list
from celery_durable.stored_results import kept_seconds, state_of
from celery_durable.task_ids import created
from durable_console.admin.diagnosis import TIMEOUT


def find(client: redis.Redis, results: redis.Redis, app: Celery, task_id: str) -> dict[str, Any]:
    """Say in one sentence what became of a task, which status the API gives it, and what would help."""
    verdict, code, remedy = next(_fates(client, results, app, task_id))
    return {"verdict": verdict, "code": code, "mend": remedy}


def _fates(client: redis.Redis, results: redis.Redis, app: Celery, task_id: str) -> Iterator[tuple[str, int, str]]:
    born, kept = created(task_id), kept_seconds(app)
    # Ids of tasks that the API has not made do not tell.
    since = (
        f" at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(born))} UTC, {time.time() - born:.0f} s ago"
        if born
        else ""
    )
    accepted, _ = asked(lambda: client.hexists(keys.ACCEPTED, task_id), False)
    if place := _place(client, app, task_id):
        yield f"It {place}; it was enqueued{since}", 200, ""
    letter = _dead_letter(client, task_id)
    remedy = f"playbooks/diagnose/dead_letters.yml -e operation=requeue -e task={task_id}, when the cause is repaired"
    key = f"celery-task-meta-{task_id}"
    stored, _ = asked(lambda: results.get(key), b"")
    if stored is not None:
        state = state_of(stored)
        why = f"; it is a dead letter since {letter['time']} because: {letter['reason']}" if letter else ""
        ended = "has ended" if state in READY_STATES else "is not done"
        sentence = f"It {ended}, its status is {state} and is kept for {results.ttl(key)} s more{why}"
        yield sentence, 200, remedy if letter else ""
    if letter:
        yield f"It is a dead letter since {letter['time']} because: {letter['reason']}", 404, remedy
    if accepted:
        yield "It is accepted, and its message was moving from one list to another: ask again", 200, ""
    if born is None:
        yield "Nothing is known about it: it was never accepted here, or its result has expired or was dropped", 404, ""
        return
    if time.time() - born > kept:
        sentence = f"Its result has expired: it was enqueued{since}, and results are kept for {kept} s"
        yield sentence, 410, f"result_expires above {kept} in the inventory, if clients must be able to ask that late"
    evicted, limit = (
        results.info(part)[name] for part, name in (("stats", "evicted_keys"), ("memory", "maxmemory_human"))
    )
    if evicted:
        sentence = f"Its result was evicted to make room, or it was never accepted here: enqueued{since}"
        remedy = f"stack_redis_maxmemory twice as large (it is {limit}), or a shorter result_expires (it is {kept})"
        yield f"{sentence}, {evicted} results were evicted since Redis' start", 404, remedy
    yield (
        f"It was never accepted here: its id was made{since}; results are kept for {kept} s, none was evicted",
        404,
        "",
    )


def _dead_letter(client: redis.Redis, task_id: str) -> dict[str, Any] | None:
    raws, _ = read_list(client, keys.DEAD_LETTERS, 0)
    letters = filter(None, map(entries.letter, raws))
    return next((letter for letter in letters if letter["id"] == task_id), None)


def _place(client: redis.Redis, app: Celery, task_id: str) -> str:
    """Say what is the case with a task whose message lies in the broker; nothing when there is none."""
    options = options_of(app)
    signs = {entry.name: entry for entry in held(options, client)}
    for name, queue in lists(options, client):
        raws, _ = read_list(client, name, 0)
        for before, raw in enumerate(reversed(raws)):
            message = ours(options, queue, raw) if task_id.encode() in raw else None
            if message is None or message["headers"].get("id") != task_id:
                continue
            if name == queue:
                return f"waits in the queue {queue}, {before} tasks are before it"
            if name in signs:
                return _doing(signs[name], app, task_id)
            return f"is deferred from {queue}: queue_backlog.yml -e operation=resume puts it back"
    return ""


def _doing(holder: Held, app: Celery, task_id: str) -> str:
    if holder.silent > LEASE_MARGIN:
        return f"is in flight at {holder.node}, which is unreachable for {holder.silent:.0f} s: unacknowledged.yml"
    asked: Any = app.control.inspect(destination=[holder.node], timeout=TIMEOUT).query_task(task_id) or {}
    doing, request = asked.get(holder.node, {}).get(task_id, ("reserved", {}))
    if doing == "active":
        return f"has been running on {holder.node} for {time.time() - request['time_start']:.0f} s"
    return f"is in flight at {holder.node}, {'scheduled' if doing == 'scheduled' else 'and waits for a slot'}"
