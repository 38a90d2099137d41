"""Tasks of workers that died: any other worker requeues them, once no process of the dead one can run any more."""

import math
import time
from collections.abc import Mapping

import redis

from celery_durable import keys
from celery_durable.redelivery import LEASE_MARGIN
from celery_durable.worker import node_owner
from celery_durable.worker.leases import all_leases, death_of, forget
from celery_durable.worker.redelivery import Redelivery

# Seconds between two sweeps.
SWEEP_INTERVAL = 5.0
# Of kombu's lists for messages with a priority (kombu.transport.redis); 0 has none.
PRIORITY_SEPARATOR, PRIORITY_STEPS = "\x06\x16", (3, 6, 9)


class Sweep:
    """Looks for leases that have expired."""

    def __init__(self, client: redis.Redis, redelivery: Redelivery, own: Mapping[str, str]) -> None:
        """Leave out our ``own`` lists, by their queue."""
        self._client, self._redelivery, self._own = client, redelivery, own
        # Of others' leases, where they stood and since when, by our clock.
        self._seen: dict[str, tuple[float, float]] = {}

    def sweep(self) -> None:
        """Requeue the messages of workers that have been unreachable for longer than their tasks may run.

        Redis's clock may be set. So a lease must not have moved since an earlier sweep, by our own clock, which counts
        alone where Redis's says less. A worker of this machine whose process has ended is dead at once.
        """
        now, leases = all_leases(self._client)
        mine, earlier, looked = tuple(self._own.values()), self._seen, time.monotonic()
        self._seen = {
            unacked: earlier[unacked] if earlier.get(unacked, (0, 0))[0] == last else (last, looked)
            for unacked, last in leases.items()
            if unacked not in mine
        }
        for unacked, (last, since) in self._seen.items():
            still = looked - since
            age = math.inf if self._is_proven_dead(unacked) else max(now - last, still) if still else 0
            if age <= LEASE_MARGIN:
                continue
            queue = keys.queue_of(unacked)
            death = death_of(self._client, unacked)
            for raw in self._redelivery.messages(unacked):
                if age > self._redelivery.time_limit(queue, raw) + LEASE_MARGIN:
                    self._redelivery.requeue(unacked, raw, death)
            forget(self._client, unacked)

    def _is_proven_dead(self, unacked: str) -> bool:
        name = f"{keys.OWNER}{keys.node_of(unacked)}"
        owner: list[bytes] = self._client.zrange(name, 0, -1)  # type: ignore[assignment]
        return bool(owner) and node_owner.lives(owner[0].decode()) is False

    def take_in_priorities(self) -> None:
        """Take in what producers without this library have sent with a priority: kombu has lists of its own for these.

        Not to be called where messages are signed: there are no such producers, and the worker has no right to the
        lists.
        """
        for queue in tuple(self._own):
            for step in PRIORITY_STEPS:
                while self._client.lmove(f"{queue}{PRIORITY_SEPARATOR}{step}", queue, "RIGHT", "LEFT"):
                    pass
