"""Which messages no process of a worker runs: they have nothing to do with its death."""

import time
from collections.abc import Callable, Iterable, Mapping

import redis
from celery.worker import state as worker_state

from celery_durable import keys, scripts
from celery_durable.scripts import run

# Seconds between two notes, and how many messages they look at in a second at most: 8,000 take 14 ms, and tens of
# thousands may be scheduled.
NOTE_INTERVAL = 0.1
NOTED_A_SECOND = 10_000


class IdleNotes:
    """Writes down what is idle, before the worker may die."""

    def __init__(
        self,
        client: redis.Redis,
        lists: Mapping[str, str],
        in_flight: Callable[[], Iterable[tuple[str, str, str]]],
    ) -> None:
        """Look at messages that are ``in_flight``, each with its tag, list and digest; ``lists`` are by their queue."""
        self._client, self._lists, self._in_flight = client, lists, in_flight
        self._known: dict[str, set[str]] = {}  # what Redis knows: list -> digests
        self._due = 0.0

    def is_known(self, unacked: str, digest: str) -> bool:
        """Tell whether Redis takes a message for an idle one."""
        return digest in self._known.get(unacked, ())

    def note_when_due(self) -> None:
        """Note again, less often the more there is to look at."""
        started = time.monotonic()
        if started >= self._due:
            self._due = started + self.note() / NOTED_A_SECOND

    def note(self, but: str = "") -> int:
        """Note which messages no process runs, but not the tag ``but``; return how many were looked at."""
        busy, looked_at = {*running(), but}, 0
        idle: dict[str, set[str]] = {unacked: set() for unacked in tuple(self._lists.values())}
        for tag, unacked, digest in self._in_flight():
            looked_at += 1
            if tag not in busy and unacked in idle:
                idle[unacked].add(digest)
        for unacked, digests in idle.items():
            known = self._known.get(unacked, set())
            new, gone = digests - known, known - digests
            if new or gone:
                run(self._client, scripts.NOTE_IDLE, 1, keys.idle_set(unacked), len(new), *new, *gone)
                self._known[unacked] = digests
        return looked_at


def running() -> set[str]:
    """Return the delivery tags of what runs."""
    return {request.message.delivery_tag for request in tuple(worker_state.active_requests)}
