"""A worker's right to its name and to the lists of what it has taken.

Both are renewed every second, in a thread that does nothing else: whoever comes to have the name of a worker on another
machine waits OWNER_TIMEOUT for a renewal, and others take what a worker holds when LEASE_MARGIN has passed without one.
"""

import logging
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import redis

from celery_durable import keys, scripts
from celery_durable.scripts import run
from celery_durable.worker import node_owner

logger = logging.getLogger(__name__)

# Seconds between two renewals.
RENEW_INTERVAL = 1.0
# Seconds in which a worker on another machine that has our name must renew it, or it is dead.
OWNER_TIMEOUT = 5.0


@dataclass(frozen=True)
class Death:
    """How a worker ended, as far as Redis knows."""

    idle: Collection[bytes]  # digests of messages that no process of its own ran
    at: float  # its last heartbeat, in seconds since 1970


def all_leases(client: redis.Redis) -> tuple[float, dict[str, float]]:
    """Return Redis's time, and the unacked lists of all workers with the time of their last renewal."""
    leases: Any = client.zrange(keys.LEASES, 0, -1, withscores=True)
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6, {unacked.decode(): last for unacked, last in leases}


def death_of(client: redis.Redis, unacked: str) -> Death:
    """Return how the worker of a list ended, which is known to be gone."""
    idle: set[bytes] = client.smembers(keys.idle_set(unacked))  # type: ignore[assignment]
    now, leases = all_leases(client)
    return Death(idle, leases.get(unacked, now))


def forget(client: redis.Redis, unacked: str) -> None:
    """Remove the lease of a list that is empty."""
    run(client, scripts.FORGET, 3, keys.LEASES, unacked, keys.idle_set(unacked))


class Leases:
    """Those of one worker."""

    def __init__(self, client: redis.Redis, node: str) -> None:
        """Have none yet; ``node`` is the worker's name."""
        self._client, self._node = client, node
        self.lists: dict[str, str] = {}  # queue -> our list
        # Our right to our name; empty until we have it, and after the end.
        self._token = ""

    def claim_name(self) -> None:
        """Take our name, unless we have it.

        Raises:
            NameTakenError: a worker that lives has it.
            redis.exceptions.RedisError: the broker does not answer.
        """
        if not self._token:
            self._token = self._claimed(node_owner.token())

    def _claimed(self, token: str) -> str:
        found = self._own(token)
        until = time.monotonic() + OWNER_TIMEOUT
        while found:
            owner, last = found
            alive = node_owner.lives(owner)
            if alive is None and time.monotonic() < until:
                # On another machine: it lives if it renews.
                time.sleep(RENEW_INTERVAL / 2)
                found = self._own(token)
                alive = bool(found and found[0] == owner and found[1] != last)
                if not alive:
                    continue
            if alive:
                raise node_owner.NameTakenError(
                    f"The node name {self._node} belongs to {node_owner.described(owner)}, which is running. "
                    "Give each worker a name of its own, with --hostname."
                )
            found = self._own(token, dead=owner)
        return token

    def _own(self, token: str, dead: str = "") -> tuple[str, float] | None:
        found = run(self._client, scripts.OWN, 1, f"{keys.OWNER}{self._node}", token, dead)
        return (found[0].decode(), float(found[1])) if found else None

    def keep_name(self) -> None:
        """Renew the right to our name; end the process at once where another worker has it."""
        if self._token and (other := self._own(self._token)):
            owner = node_owner.described(other[0])
            logger.critical("The node name %s has been taken over by %s: this worker ends at once", self._node, owner)
            # What runs here is about to be run there.
            os.kill(os.getpid(), signal.SIGKILL)

    def release_name(self) -> None:
        """Leave the name to another worker."""
        token, self._token = self._token, ""
        if token:
            self._client.zrem(f"{keys.OWNER}{self._node}", token)

    def add(self, queue: str) -> Death:
        """Begin to hold a list for messages of ``queue``, to be renewed; return how its previous worker ended."""
        unacked = keys.unacked_list(self._node, queue)
        death = death_of(self._client, unacked)
        self.lists[queue] = unacked
        return death

    def renew(self) -> None:
        """Renew the leases of all our lists."""
        lists = list(self.lists.values())
        queues = list(self.lists)
        bindings = [f"_kombu.binding.{exchange}" for exchange in (*queues, "celeryev")]
        names = [keys.LEASES, *lists, *queues, *bindings, keys.ACCEPTED, keys.DEAD_LETTERS]
        run(self._client, scripts.RENEW, len(names), *names, len(lists))
