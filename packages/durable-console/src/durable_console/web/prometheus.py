"""What Prometheus reads: this process's own metrics, and those of queues and workers, which lie in Redis.

However many scrape, Redis is asked once in SNAPSHOT_SECONDS by each process, with about ten commands and one for each
worker.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from celery_durable import entries, keys
from celery_durable.aio.workforce import ALIVE_SECONDS
from celery_durable.metrics import BUCKETS, FAILURES, FAILURES_KEPT, FIGURES, OUTCOMES, OVER, WORKERS
from celery_durable.options import Options
from celery_durable.signing import parse
from celery_durable.task_ids import made

# Seconds that what Redis has said is shown again.
SNAPSHOT_SECONDS = 5.0
# Seconds after which a worker that is gone is shown no more, and its node's start count alone is left.
REMEMBERED_SECONDS = 24 * 3600
# Set for several processes of one server: each keeps its counts in files of this directory.
MULTIPROCESS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

HISTOGRAMS = {
    "run": ("celery_task_run_seconds", "Seconds that a run of a task took."),
    "wait": ("celery_task_wait_seconds", "Seconds between a task's id or ETA and the beginning of its run."),
    "loop_lag": (
        "celery_event_loop_lag_seconds",
        "Seconds that a task held its event loop, above one.",
    ),
}


@dataclass
class Snapshot:
    """What Redis said at one moment."""

    up: bool = False
    lengths: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, float] = field(default_factory=dict)  # queue -> age in seconds
    deferred: dict[str, int] = field(default_factory=dict)
    unacknowledged: int = 0
    dead_letters: int = 0
    accepted: int = 0
    workers_expected: int = 0
    beat: bool | None = None  # whether one of the beats holds the lease; None where there is no lease
    counters: dict[tuple[str, ...], float] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)  # node -> its state, with "silent" seconds
    bad: dict[str, int] = field(default_factory=dict)  # key -> entries that are not of the expected form


class Prometheus:
    """Answers scrapes."""

    def __init__(self, options: Options, broker: Redis) -> None:
        """Ask ``broker``."""
        self._options, self._broker = options, broker
        self._queues = options.queues
        self._snapshot = Snapshot(workers_expected=options.workers_expected)
        self._taken = float("-inf")
        self._lock = asyncio.Lock()

    async def snapshot(self) -> Snapshot:
        """Return what Redis has said last."""
        async with self._lock:
            if time.monotonic() - self._taken > SNAPSHOT_SECONDS:
                self._snapshot = await self._look()
                self._taken = time.monotonic()
            return self._snapshot

    async def page(self) -> bytes:
        """Return everything in Prometheus' text format; without Redis' part when it does not answer."""
        snapshot = await self.snapshot()
        registry = CollectorRegistry()
        if MULTIPROCESS_DIRECTORY in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(_Queue(snapshot))
        page = generate_latest(registry)
        return page if MULTIPROCESS_DIRECTORY in os.environ else generate_latest(REGISTRY) + page

    async def _look(self) -> Snapshot:
        try:
            pipeline = self._broker.pipeline(transaction=False)
            pipeline.time()
            pipeline.hgetall(FIGURES)
            pipeline.hgetall(WORKERS)
            pipeline.hgetall(keys.ALERTS)
            pipeline.lrange(FAILURES, 0, FAILURES_KEPT - 1)
            pipeline.zrange(keys.LEASES, 0, -1)
            pipeline.llen(keys.DEAD_LETTERS)
            pipeline.hlen(keys.ACCEPTED)
            pipeline.exists(f"{keys.BEAT}{self._options.beat}")
            for queue in self._queues:
                pipeline.llen(queue)
                pipeline.lindex(queue, -1)
                pipeline.llen(keys.deferred_list(queue))
            (now, _), *replies = await pipeline.execute(raise_on_error=False)
            return await self._understand(now, replies)
        except (RedisError, OSError, TypeError):  # TypeError: not even the time was answered
            return Snapshot(workers_expected=self._options.workers_expected)

    async def _understand(self, now: int, replies: list[Any]) -> Snapshot:
        """Make a snapshot of the answers; each entry by itself.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        read = entries.Reading()
        counters = read(FIGURES, entries.counters, replies[0], {})
        workers = read(WORKERS, entries.workers, replies[1], {})
        read(keys.ALERTS, entries.alerts, replies[2], {})
        read(FAILURES, entries.failures, replies[3], [])
        leases = read(keys.LEASES, entries.leases, replies[4], [])
        dead_letters = read.number(keys.DEAD_LETTERS, replies[5])
        accepted = read.number(keys.ACCEPTED, replies[6])
        beat = bool(read.number("beat", replies[7])) if self._options.beat else None
        lengths, oldest, deferred = {}, {}, {}
        for queue, (length, last, aside) in zip(self._queues, zip(*[iter(replies[8:])] * 3, strict=True), strict=True):
            lengths[queue] = read.number(queue, length)
            oldest[queue] = _age(entries.expected(last, None)[0], now)
            deferred[queue] = read.number(keys.deferred_list(queue), aside)
        pipeline = self._broker.pipeline(transaction=False)
        for unacked in leases:
            pipeline.llen(unacked)
        held = [
            read.number(name, reply)
            for name, reply in zip(leases, await pipeline.execute(raise_on_error=False), strict=True)
        ]
        # A worker that was stopped said last what it held then; it has given that back.
        holding = {keys.node_of(name) for name, number in zip(leases, held, strict=True) if number}
        return Snapshot(
            up=True,
            workers_expected=self._options.workers_expected,
            lengths=lengths,
            oldest=oldest,
            deferred=deferred,
            unacknowledged=sum(held),
            dead_letters=dead_letters,
            accepted=accepted,
            beat=beat,
            counters=counters,
            workers=dict(_states(workers, now, holding)),
            bad=read.bad,
        )


def _age(raw: bytes | None, now: int) -> float:
    """Return the seconds since a message was made; none where there is no message, or none that tells."""
    message = parse(raw) if raw is not None else None
    since = made(message["headers"]) if message else None
    return max(now - since, 0.0) if since is not None else 0.0


def _states(
    workers: dict[str, tuple[int, dict[str, Any]]], now: int, holding: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for node, (told, state) in workers.items():
        silent = max(now - told, 0)
        if silent < REMEMBERED_SECONDS:
            yield node, {**state, "silent": silent} if node in holding else {**state, "held": 0, "silent": silent}


class _Queue(Collector):
    """Turns a snapshot into metrics."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield all of them."""
        seen = self._snapshot
        yield GaugeMetricFamily("celery_broker_up", "Whether the broker has answered.", int(seen.up))
        yield GaugeMetricFamily("celery_workers_expected", "Workers that the inventory wants.", seen.workers_expected)
        if not seen.up:
            return
        if seen.beat is not None:
            yield GaugeMetricFamily("celery_beat_active", "Whether one of the beats holds the lease.", int(seen.beat))
        yield _gauge("celery_queue_length", "Tasks that wait.", "queue", seen.lengths)
        yield _gauge("celery_queue_oldest_seconds", "Age of the task that waits longest.", "queue", seen.oldest)
        yield _gauge("celery_deferred_tasks", "Tasks that an operator has put aside.", "queue", seen.deferred)
        yield GaugeMetricFamily("celery_accepted_tasks", "Accepted tasks that are not done.", seen.accepted)
        yield GaugeMetricFamily("celery_dead_letters", "Messages that no worker will run.", seen.dead_letters)
        yield GaugeMetricFamily(
            "celery_unacknowledged_tasks", "Tasks in flight, at workers that are alive or not.", seen.unacknowledged
        )
        text = "Entries of the broker's keys that are not of the expected form."
        yield _gauge("celery_bad_entries", text, "key", seen.bad)
        yield from _workers(seen.workers)
        yield from _counters(seen.counters)


def _gauge(name: str, text: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in sorted(values.items()):
        family.add_metric([value], number)
    return family


def _workers(workers: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    alive = {node: state for node, state in workers.items() if state["silent"] < ALIVE_SECONDS}
    yield GaugeMetricFamily("celery_workers_alive", "Workers that have reported lately.", len(alive))
    yield _gauge(
        "celery_worker_silent_seconds",
        "Seconds since a worker's last report.",
        "worker",
        {node: state["silent"] for node, state in workers.items()},
    )
    for name, text, member in (
        ("celery_worker_pool_size", "Tasks that a worker can run at once.", "size"),
        ("celery_worker_busy", "Tasks that a worker runs now.", "busy"),
        ("celery_worker_start_time_seconds", "When a worker started, in seconds since 1970.", "began"),
    ):
        yield _gauge(name, text, "worker", {node: state[member] for node, state in alive.items()})
    held = [state["held"] + state["silent"] for state in workers.values() if state["held"]]
    yield GaugeMetricFamily(
        "celery_unacknowledged_oldest_seconds",
        "Time that the oldest task that might run is in flight.",
        max(held, default=0),
    )


def _counters(counted: dict[tuple[str, ...], float]) -> Iterator[Metric]:
    counters = {
        "worker_starts": CounterMetricFamily("celery_worker_starts", "Starts of a worker.", labels=["worker"]),
        "started": CounterMetricFamily("celery_tasks_started", "Runs that were begun.", labels=["task"]),
        "ended": CounterMetricFamily("celery_tasks_ended", "Runs that ended.", labels=["task", "outcome"]),
    }
    for (name, *labels), value in sorted(counted.items()):
        if name in counters:
            counters[name].add_metric(labels, value)
    # What has not happened yet is 0: Prometheus sees no increase in a series that begins with its first event.
    known = {labels[0] for name, *labels in counted if name in ("started", "ended")}
    for task in sorted(known):
        for outcome in OUTCOMES:
            if ("ended", task, outcome) not in counted:
                counters["ended"].add_metric([task, outcome], 0)
    yield from counters.values()
    for name, (metric, text) in HISTOGRAMS.items():
        family = HistogramMetricFamily(metric, text, labels=["task"])
        tasks = {labels[0] for what, *labels in counted if what == name}
        for task in sorted(tasks | known if name == "loop_lag" else tasks):
            total, buckets = 0.0, []
            for bound in (*map(str, BUCKETS[name]), OVER):
                total += counted.get((name, task, bound), 0.0)
                buckets.append((bound, total))
            family.add_metric([task], buckets, counted.get((f"{name}_sum", task), 0.0))
        yield family
