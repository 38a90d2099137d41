"""Which tasks were revoked: kept in Redis, so that it outlives workers and reaches those that start later."""

import json
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import redis
from celery.worker import state as worker_state

from celery_durable.scripts import REVOKE, run

KEY = "unacked_revoked"
ID, STAMP = "id:", "stamp:"
# As many as a worker remembers (celery.worker.state.REVOKES_MAX), for longer than a task should wait.
LIMIT = 50_000
SECONDS_KEPT = 30 * 86400


class Revocations:
    """Those that Redis does not know yet; added by the main loop, which saves what is new, as another thread does."""

    def __init__(self) -> None:
        """Know nothing."""
        self._new: deque[str] = deque()
        self._heeded: deque[str] = deque()
        self._saving = threading.Lock()

    def followed(self, method: str, arguments: dict[str, Any]) -> bool:
        """Take note of a command that this worker has followed, one of Celery's; return whether it revokes."""
        if method in ("revoke", "terminate"):
            ids = arguments.get("task_id") or ()
            self._new.extend(f"{ID}{name}" for name in ([ids] if isinstance(ids, str) else ids))
        elif method == "revoke_by_stamped_headers":
            headers = arguments.get("headers") or {}
            pairs = headers.items() if isinstance(headers, dict) else [header.split("=", 1) for header in headers]
            self._new.extend(f"{STAMP}{json.dumps([name, value])}" for name, values in pairs for value in _each(values))
        else:
            return False
        return True

    def heeded(self, task_id: str) -> None:
        """A task was revoked: its id may be sent again."""
        self._heeded.append(f"{ID}{task_id}")

    def save(self, client: redis.Redis) -> None:
        """Write down what is new.

        Raises:
            redis.exceptions.RedisError: it was not written; it is kept for the next time.
        """
        with self._saving:
            new, heeded = list(self._new), list(self._heeded)
            if not new and not heeded:
                return
            run(client, REVOKE, 1, KEY, LIMIT, SECONDS_KEPT, len(new), *new, *heeded)
            for done, queue in ((new, self._new), (heeded, self._heeded)):
                for _ in done:
                    queue.popleft()

    def load(self, client: redis.Redis) -> None:
        """Learn what was revoked before this worker began, or while it was cut off.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        entries: list[bytes] = client.zrange(KEY, 0, -1)  # type: ignore[assignment]
        for entry in map(bytes.decode, entries):
            if entry.startswith(ID):
                worker_state.revoked.add(entry.removeprefix(ID))
            else:
                header, value = json.loads(entry.removeprefix(STAMP))
                stamps: dict[str, Any] = worker_state.revoked_stamps
                known = _each(stamps.get(header) or ())
                if value not in known:
                    stamps[header] = [*known, value]


def _each(values: Any) -> Iterable[Any]:
    return values if isinstance(values, list | tuple | set) else [values]
