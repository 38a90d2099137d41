"""What workers count: kept in Redis, so that their counters outlive them.

A worker adds up in memory and reports once a second, whatever its throughput. One that is killed takes the counts of
its last second along.
"""

import json
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import redis
from celery import Celery
from celery.worker import state as worker_state

from celery_durable.scripts import REPORT, run
from celery_durable.task_ids import made

# Keys in the broker: field -> number; the same for one minute of Redis's clock, without the tasks' names; node ->
# "<Redis's time> <state as JSON>"; failures as JSON, the newest first.
FIGURES = "figures"
MINUTE = "figures:minute:"
WORKERS = "workers"
FAILURES = "failures"
# Seconds that the counters of a minute are kept, and how many failures are.
MINUTE_KEPT = 2 * 3600
FAILURES_KEPT = 50
# Characters of a failure's error, and of its task's id, which the sender chooses.
LONGEST_ERROR = 300
LONGEST_ID = 100

# Upper bounds in seconds. Agent tasks run for 10 to 30 s and end after 60 s at most, unless the limits are raised.
RUN_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0)
WAIT_BUCKETS = (0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
# Of an event loop that runs none of its other runs meanwhile.
LAG_BUCKETS = (2.0, 5.0, 10.0, 30.0, 60.0)
BUCKETS = {"run": RUN_BUCKETS, "wait": WAIT_BUCKETS, "loop_lag": LAG_BUCKETS}
OVER = "+Inf"
# How a run can end.
SUCCEEDED, RETRIED, FAILED, TIMED_OUT, DIED = OUTCOMES = ("succeeded", "retried", "failed", "timed_out", "died")
# Separates the parts of a field; neither a task's name nor a node's holds it.
SEPARATOR = "\x1f"


class WorkerMetrics:
    """The counts of a worker that Redis does not know yet; used by the main loop and the pool's threads."""

    def __init__(self, app: Celery) -> None:
        """Count the tasks of ``app`` from zero."""
        self._app = app
        self._counts: Counter[str] = Counter()
        self._failures: deque[str] = deque(maxlen=FAILURES_KEPT)
        self._lock = threading.Lock()
        self._began = int(time.time())
        self._pool: Any = None

    def started_worker(self, node: str, pool: Any) -> None:
        """A worker begins to consume; its tasks run in ``pool``, one of Celery's."""
        self._pool = pool
        self._add("worker_starts", node)

    def started(self, task: str, waited: float | None) -> None:
        """A task was begun, ``waited`` seconds after it was due; None when nobody knows."""
        self._add("started", task)
        if waited is not None:
            self._observe("wait", task, max(waited, 0.0))

    def ended(self, task: str, outcome: str, seconds: float) -> None:
        """A task's run ended; ``outcome`` is one of OUTCOMES."""
        self._add("ended", task, outcome)
        self._observe("run", task, seconds)

    def lagged(self, task: str, seconds: float) -> None:
        """A task held the event loop of its process, which it shares with others, for more than a second."""
        self._observe("loop_lag", task, seconds)

    def failed(self, task: str, task_id: str, outcome: str, error: str) -> None:
        """A task's run failed for good; ``error`` is one line that tells no secret."""
        failure = {
            "time": int(time.time()),
            "task": task,
            "id": task_id[:LONGEST_ID],
            "outcome": outcome,
            "error": error[:LONGEST_ERROR],
        }
        with self._lock:
            self._failures.append(json.dumps(failure))

    def report(self, client: redis.Redis, node: str, held_since: float | None) -> None:
        """Tell Redis.

        Args:
            client: a connection to the broker.
            node: this worker's name.
            held_since: time.monotonic() when the oldest message that this worker holds came, or was due.

        Raises:
            redis.exceptions.RedisError: it was not told; the counts are kept for the next time.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            failures, self._failures = self._failures, deque(maxlen=FAILURES_KEPT)
        state = {
            "pool": getattr(self._pool, "kind", type(self._pool).__module__.rpartition(".")[2]),
            "size": size_of(self._pool),
            "busy": sum(request.app is self._app for request in tuple(worker_state.active_requests)),
            "held": round(max(time.monotonic() - held_since, 0), 3) if held_since is not None else 0,
            "began": self._began,
        }
        told = json.dumps(state), _words(counts), _words(_of_all_tasks(counts)), json.dumps([*failures])
        try:
            keys = FIGURES, WORKERS, FAILURES, MINUTE
            run(client, REPORT, len(keys), *keys, node, *told, str(MINUTE_KEPT), str(FAILURES_KEPT))
        except redis.RedisError:
            with self._lock:
                self._counts += counts
                self._failures = deque([*failures, *self._failures], FAILURES_KEPT)
            raise

    def _add(self, *labels: str, count: float = 1) -> None:
        with self._lock:
            self._counts[SEPARATOR.join(labels)] += count  # type: ignore[assignment]  # a Counter takes fractions, too

    def _observe(self, name: str, task: str, seconds: float) -> None:
        bounds = BUCKETS[name]
        place = bisect_left(bounds, seconds)
        self._add(name, task, str(bounds[place]) if place < len(bounds) else OVER)
        self._add(f"{name}_sum", task, count=seconds)


def size_of(pool: Any) -> int:
    """Return how many tasks one of Celery's pools runs at once; 0 before it starts and after it has ended."""
    try:
        return int(pool.num_processes)
    except AttributeError:  # no pool, or a prefork pool that has let go of its processes
        return 0


def _words(counts: Counter[str]) -> str:
    return json.dumps([word for field, count in counts.items() for word in (field, repr(count))])


def _of_all_tasks(counts: Counter[str]) -> Counter[str]:
    """Return what a minute keeps: runs by their outcome, and how many have waited for how many seconds."""
    sums: Counter[str] = Counter()
    for field, count in counts.items():
        name, *labels = field.split(SEPARATOR)
        if name == "ended":
            sums[labels[1]] += count
        elif name in {"wait", "wait_sum"}:
            sums[name] += count
    return sums


def waited(headers: Mapping[str, Any], due: float | None) -> float | None:
    """Return the seconds that a task has waited, None when nothing tells.

    They count from its ETA (``due``, seconds since 1970), or from the time when it was made.
    """
    since = due if due is not None else made(headers)
    return time.time() - since if since is not None else None
