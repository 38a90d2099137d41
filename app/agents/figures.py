"""What workers count: kept in Redis, so that the figures outlive them, and read by the API (app/api/prometheus.py).

A worker adds up in memory and tells Redis once a second, whatever its throughput. One that is killed takes the counts
of its last second along.
"""

import json
import threading
import time
from bisect import bisect_left
from collections import Counter
from typing import Any

import redis
from celery.worker import state as worker_state

from app.agents.task_ids import created

# Keys in the broker: field -> number, and node -> "<Redis's time> <state as JSON>".
FIGURES = "figures"
WORKERS = "workers"

# Upper bounds in seconds. Agent tasks run for 10 to 30 s and end after 60 s at most, unless the limits are raised.
RUN_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0)
WAIT_BUCKETS = (0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
BUCKETS = {"run": RUN_BUCKETS, "wait": WAIT_BUCKETS}
OVER = "+Inf"
# How a run can end.
SUCCEEDED, RETRIED, FAILED, TIMED_OUT, DIED = OUTCOMES = ("succeeded", "retried", "failed", "timed_out", "died")
# Separates the parts of a field; neither a task's name nor a node's holds it.
SEPARATOR = "\x1f"

# KEYS figures, workers; ARGV node, its state, then pairs of a field and what is to be added to it.
REPORT = """#!lua flags=allow-oom
redis.call('HSET', KEYS[2], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
"""


class Figures:
    """The counts of this process that Redis does not know yet; used by the main loop and the pool's threads."""

    def __init__(self) -> None:
        """Count from zero."""
        self._counts: Counter[str] = Counter()
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

    def report(self, client: redis.Redis, node: str, held_since: float | None) -> None:
        """Tell Redis.

        Args:
            client: a connection to the broker.
            node: this worker's name.
            held_since: time.monotonic() when the oldest message that this worker holds came.

        Raises:
            redis.exceptions.RedisError: it was not told; the counts are kept for the next time.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        state = {
            "pool": type(self._pool).__module__.rpartition(".")[2],
            "size": self._pool.num_processes if self._pool else 0,
            "busy": len(worker_state.active_requests),
            "held": round(time.monotonic() - held_since, 3) if held_since is not None else 0,
            "began": self._began,
        }
        changes = [word for field, count in counts.items() for word in (field, repr(count))]
        try:
            client.eval(REPORT, 2, FIGURES, WORKERS, node, json.dumps(state), *changes)
        except redis.RedisError:
            with self._lock:
                self._counts += counts
            raise

    def _add(self, *labels: str, count: float = 1) -> None:
        with self._lock:
            self._counts[SEPARATOR.join(labels)] += count  # type: ignore[assignment]  # a Counter takes fractions, too

    def _observe(self, name: str, task: str, seconds: float) -> None:
        bounds = BUCKETS[name]
        place = bisect_left(bounds, seconds)
        self._add(name, task, str(bounds[place]) if place < len(bounds) else OVER)
        self._add(f"{name}_sum", task, count=seconds)


figures = Figures()


def waited(task_id: str, due: float | None) -> float | None:
    """Return the seconds that a task has waited, None when its id does not tell.

    They count from its ETA (``due``, seconds since 1970), or from the time when its id was made.
    """
    since = due if due is not None else created(task_id)
    return time.time() - since if since is not None else None
