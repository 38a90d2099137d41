"""The broker's state at one moment: queues, what workers hold, counters, dead letters.

Everything here only reads, with the operator's Redis user.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis

from celery_durable import entries, keys, signing
from celery_durable.entries import asked, printable
from celery_durable.metrics import FIGURES, WORKERS
from celery_durable.options import Options
from celery_durable.queue_names import is_queue_name
from celery_durable.redelivery import LEASE_MARGIN, deaths_of
from celery_durable.task_ids import made

# Messages of a list that are looked into: the oldest.
SAMPLE = 2000
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
        raws, _ = read_list(client, name, 0)
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


def read_list(client: redis.Redis, name: str, first: int) -> tuple[list[bytes], int]:
    """Return the entries of a list from ``first`` on, and 1 where the key is no list."""
    return asked(lambda: client.lrange(name, first, -1), [])


def _waiting(options: Options, client: redis.Redis, queue: str, name: str) -> Waiting:
    raws, wrong = read_list(client, name, -SAMPLE)
    messages = [ours(options, queue, raw) for raw in raws]
    headers = [message["headers"] if message else {} for message in messages]
    return Waiting(
        length=0 if wrong else int(client.llen(name)),
        oldest=age(headers[-1:]),
        kinds=Counter(header.get("task", NOT_OURS) for header in headers),
        returned=[header for header in headers if deaths_of(header)],
    )
