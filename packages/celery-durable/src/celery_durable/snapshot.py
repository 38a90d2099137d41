"""What an operator asks about queues and single tasks, answered with the cause and not only with numbers.

Everything here only reads, with the operator's Redis user.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis
from celery import Celery
from celery.states import READY_STATES

from celery_durable import entries, keys, signing
from celery_durable.entries import asked, printable
from celery_durable.metrics import FIGURES, WORKERS
from celery_durable.options import Options, options_of
from celery_durable.queue_names import is_queue_name
from celery_durable.redelivery import LEASE_MARGIN, MAX_REDELIVERIES, NO_LIMIT, deaths_of
from celery_durable.stored_results import kept_seconds, state_of
from celery_durable.task_ids import created, made

# The alerts' thresholds (roles/monitoring/templates/alerts.yml.j2): seconds that a task waits, tasks that wait,
# seconds beyond the hard limit.
OLD, LONG, STUCK_MARGIN = 120, 100, 60
# Messages of a list that are looked into: the oldest.
SAMPLE = 2000
# Share of what waits from which one kind floods the others.
FLOOD = 0.8
# A task whose workers died that often comes back again and again.
POISON = 3
# Runs between two looks that say whether tasks are slower than usual, and how much slower they must be.
RUNS_TO_COMPARE, SLOWER = 3, 2.0
# Seconds for a worker's answer.
TIMEOUT = 2.0
NOT_OURS = "(forged or broken)"


@dataclass(frozen=True)
class Waiting:
    """A list of messages that no worker holds."""

    length: int
    oldest: float  # seconds
    kinds: Counter[str]  # of the oldest SAMPLE
    returned: list[dict[str, Any]]  # headers of those that a worker had before


@dataclass(frozen=True)
class Held:
    """A worker's list of messages."""

    name: str
    node: str
    queue: str
    silent: float  # seconds since the worker's last heartbeat
    messages: list[dict[str, Any]]  # headers


@dataclass(frozen=True)
class Look:
    """What the broker says at one moment."""

    at: float
    queues: dict[str, Waiting]
    deferred: dict[str, Waiting]
    held: list[Held]
    workers: dict[str, dict[str, Any]]  # node -> what it told last, of those that live
    counters: dict[tuple[str, ...], float]
    dead_letters: int
    workers_expected: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # key -> entries that are not of the expected form

    @property
    def size(self) -> int:
        """Tasks that can run at once."""
        return sum(worker["size"] for worker in self.workers.values())

    @property
    def busy(self) -> int:
        """Tasks that run."""
        return sum(worker["busy"] for worker in self.workers.values())

    def serving(self, queue: str) -> dict[str, dict[str, Any]]:
        """Return the workers that take from a queue: slots of other pools do not help its tasks."""
        nodes = {entry.node for entry in self.held if entry.queue == queue}
        return {node: state for node, state in self.workers.items() if node in nodes}

    def is_busy(self, queue: str) -> bool:
        """Tell whether workers take from a queue and each of them runs as many tasks as it can."""
        workers = self.serving(queue).values()
        return bool(workers) and all(worker["busy"] >= worker["size"] for worker in workers)

    def total(self, name: str) -> float:
        """Return a count of all tasks together."""
        return sum(value for (counted, *_), value in self.counters.items() if counted == name)

    def lines(self) -> list[str]:
        """Return all of it for a person."""
        lines = []
        for title, lists in (("waiting", self.queues), ("deferred", self.deferred)):
            for queue, waiting in lists.items():
                kinds = "".join(f", {count} x {task}" for task, count in waiting.kinds.most_common(5))
                lines.append(f"{queue}: {waiting.length} {title}, the oldest for {waiting.oldest:.0f} s{kinds}")
        for entry in self.held:
            sign = f"last heartbeat {entry.silent:.0f} s ago"
            lines.append(f"{entry.node}: holds {len(entry.messages)} of {entry.queue}, {sign}")
        missing = max(self.workers_expected - len(self.workers), 0)
        lines.append(
            f"{len(self.workers)} workers, {self.busy} of {self.size} slots busy, {missing} workers missing, "
            f"{self.dead_letters} dead letters"
        )
        lines += [f"{key}: {bad} entries are not of the expected form" for key, bad in self.bad.items() if bad]
        return [printable(line) for line in lines]


def queues(options: Options, client: redis.Redis) -> list[str]:
    """Return all queues: those that the settings name, those that workers take from, and others that hold tasks."""
    known = {keys.queue_of(lease) for lease in _leases(client)}
    # Only the operator may look for the others.
    others: list[str]
    others, _ = asked(lambda: list(_others(client)), [])
    return sorted({*options.queues, *known, *others})


def _others(client: redis.Redis) -> Iterator[str]:
    for key in client.scan_iter(count=10_000, _type="list"):
        name = key.decode(errors="replace")
        oldest: bytes = client.lindex(key, -1) or b""  # type: ignore[assignment]  # nothing is decoded
        if is_queue_name(name) and signing.parse(oldest):
            yield name


def lists(options: Options, client: redis.Redis) -> Iterator[tuple[str, str]]:
    """Return each list that can hold a message, with the queue that the message is of."""
    for queue in queues(options, client):
        yield queue, queue
        yield keys.deferred_list(queue), queue
    for lease in _leases(client):
        yield lease, keys.queue_of(lease)


def _leases(client: redis.Redis) -> dict[str, float]:
    """Return the names of workers' lists with the time of each worker's last heartbeat."""
    stored: list[tuple[bytes, float]]
    stored, _ = asked(lambda: client.zrange(keys.LEASES, 0, -1, withscores=True), [])
    signs = {raw: sign for raw, sign in stored if math.isfinite(sign)}
    names, _ = entries.leases(signs)
    return {name: signs[name.encode()] for name in names}


def ours(options: Options, queue: str, raw: bytes) -> dict[str, Any] | None:
    """Return a message of ours that names a task, else nothing."""
    message = None if signing.rejection(options, queue, raw) else signing.parse(raw)
    return message if message and isinstance(message["headers"].get("task"), str) else None


def age(messages: list[dict[str, Any]]) -> float:
    """Return the seconds since the oldest of some messages was made, by their headers; 0 where none tells."""
    times = [since for headers in messages if (since := made(headers)) is not None]
    return max(time.time() - min(times), 0.0) if times else 0.0


def held(options: Options, client: redis.Redis) -> list[Held]:
    """Return the lists of all workers, alive or not."""
    now = client.time()[0]
    found = []
    for name, sign in _leases(client).items():
        queue = keys.queue_of(name)
        node = name.removeprefix(keys.UNACKED).partition(":")[0]
        raws, _ = _range(client, name, 0)
        messages = [message["headers"] if (message := ours(options, queue, raw)) else {} for raw in raws]
        found.append(Held(name, node, queue, now - sign, messages))
    return found


def look(options: Options, client: redis.Redis) -> Look:
    """Look at everything once."""
    now = client.time()[0]
    read = entries.Reading()
    workers = read(WORKERS, entries.workers, _answer(lambda: client.hgetall(WORKERS)), {})
    counters = read(FIGURES, entries.counters, _answer(lambda: client.hgetall(FIGURES)), {})
    letters = read.number(keys.DEAD_LETTERS, _answer(lambda: client.llen(keys.DEAD_LETTERS)))
    leases = _answer(lambda: client.zrange(keys.LEASES, 0, -1))
    read(keys.LEASES, entries.leases, leases, [])
    names = queues(options, client)
    for name in (*names, *map(keys.deferred_list, names)):
        read.number(name, _answer(partial(client.llen, name)))
    return Look(
        at=time.monotonic(),
        queues={queue: _waiting(options, client, queue, queue) for queue in names},
        deferred={queue: _waiting(options, client, queue, keys.deferred_list(queue)) for queue in names},
        held=held(options, client),
        workers={node: state for node, (told, state) in workers.items() if now - told <= LEASE_MARGIN},
        counters=counters,
        dead_letters=letters,
        workers_expected=options.workers_expected,
        bad=read.bad,
    )


def _answer(question: Callable[[], Any]) -> Any:
    """Return an answer of Redis, or the error that is one."""
    try:
        return question()
    except redis.ResponseError as error:
        return error


def _range(client: redis.Redis, name: str, first: int) -> tuple[list[bytes], int]:
    """Return the entries of a list from ``first`` on, and 1 where the key is no list."""
    return asked(lambda: client.lrange(name, first, -1), [])


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


def _longest(late: dict[str, Waiting]) -> str:
    return max(late, key=lambda queue: late[queue].length)


def _length(seen: Look, queue: str) -> int:
    # A worker may have begun to take from a queue between two looks.
    return seen.queues[queue].length if queue in seen.queues else 0


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


def gone(entries: list[Held], hosts: Collection[str], running: Collection[str], declared: str) -> dict[str, Any]:
    """Say which workers are dead and hold tasks: silent, and proven not to run.

    Args:
        entries: what all workers hold.
        hosts: names of the hosts that could be asked which workers run there.
        running: names of the workers that run there.
        declared: a worker of which an operator knows that it is dead.
    """
    silent = sorted({entry.node for entry in entries if entry.messages and entry.silent > LEASE_MARGIN})
    dead = [node for node in silent if node == declared or (node.partition("@")[2] in hosts and node not in running)]
    sentences = [f"{node} is dead and holds tasks" for node in dead]
    for node in set(silent) - set(dead):
        why = "its process runs and does not reach Redis" if node in running else "its host could not be asked"
        sentences.append(
            f"{node} is silent and holds tasks, but {why}: look there. If you know that it is dead, say "
            f"-e node={node}; if you are wrong, its tasks run twice"
        )
    return {
        "dead": dead,
        "verdict": "; ".join(sentences) or "No worker that is gone holds a task",
        "lines": [
            f"{entry.node}: {len(entry.messages)} tasks of {entry.queue}, the oldest enqueued "
            f"{age(entry.messages):.0f} s ago, last heartbeat {entry.silent:.0f} s ago"
            for entry in entries
        ],
    }


def find(client: redis.Redis, results: redis.Redis, app: Celery, task_id: str) -> dict[str, Any]:
    """Say in one sentence what became of a task, which status the API gives it, and what would help."""
    verdict, code, mend = next(_fates(client, results, app, task_id))
    return {"verdict": verdict, "code": code, "mend": mend}


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
    mend = f"playbooks/diagnose/dead_letters.yml -e operation=requeue -e task={task_id}, when the cause is mended"
    key = f"celery-task-meta-{task_id}"
    stored, _ = asked(lambda: results.get(key), b"")
    if stored is not None:
        state = state_of(stored)
        why = f"; it is a dead letter since {letter['time']} because: {letter['reason']}" if letter else ""
        ended = "has ended" if state in READY_STATES else "is not done"
        sentence = f"It {ended}, its status is {state} and is kept for {results.ttl(key)} s more{why}"
        yield sentence, 200, mend if letter else ""
    if letter:
        yield f"It is a dead letter since {letter['time']} because: {letter['reason']}", 404, mend
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
        mend = f"stack_redis_maxmemory twice as large (it is {limit}), or a shorter result_expires (it is {kept})"
        yield f"{sentence}, {evicted} results were evicted since Redis' start", 404, mend
    yield (
        f"It was never accepted here: its id was made{since}; results are kept for {kept} s, none was evicted",
        404,
        "",
    )


def _waiting(options: Options, client: redis.Redis, queue: str, name: str) -> Waiting:
    raws, wrong = _range(client, name, -SAMPLE)
    messages = [ours(options, queue, raw) for raw in raws]
    headers = [message["headers"] if message else {} for message in messages]
    return Waiting(
        length=0 if wrong else int(client.llen(name)),
        oldest=age(headers[-1:]),
        kinds=Counter(header.get("task", NOT_OURS) for header in headers),
        returned=[header for header in headers if deaths_of(header)],
    )


def _mean(last: Look, first: Look | None = None) -> float:
    """Return the seconds of a run, of all runs or of those between two looks; 0 where they are too few to tell."""
    runs = last.total("ended") - (first.total("ended") if first else 0)
    seconds = last.total("run_sum") - (first.total("run_sum") if first else 0)
    return seconds / runs if runs >= RUNS_TO_COMPARE else 0.0


def _limit(headers: dict[str, Any], limit: float) -> float:
    """Return the seconds that a task may run; ``limit`` is that of all tasks."""
    try:
        hard, _ = headers.get("timelimit") or (None, None)
        return float(hard or limit)
    except (ValueError, TypeError, OverflowError):
        return limit


def _culprit(headers: dict[str, Any], node: str, reason: str) -> dict[str, Any]:
    return {"id": headers["id"], "node": node, "reason": reason, "poison": deaths_of(headers) >= POISON}


def _dead_letter(client: redis.Redis, task_id: str) -> dict[str, Any] | None:
    raws, _ = _range(client, keys.DEAD_LETTERS, 0)
    letters = filter(None, map(entries.letter, raws))
    return next((letter for letter in letters if letter["id"] == task_id), None)


def _place(client: redis.Redis, app: Celery, task_id: str) -> str:
    """Say what is the case with a task whose message lies in the broker; nothing when there is none."""
    options = options_of(app)
    signs = {entry.name: entry for entry in held(options, client)}
    for name, queue in lists(options, client):
        raws, _ = _range(client, name, 0)
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
