"""A plain Celery client on the host under test: follows one command a line and answers each with one line."""

import json
import sys
from typing import Any

from celery import chain, chord
from celery.app.utils import find_app

# Names of the tasks that the probe in the worker brings.
WORK, REJECTING, LIMITED = "chaos.work", "chaos.rejecting", "chaos.limited"
# Seconds until a task may start, and until one that is revoked meanwhile might.
COUNTDOWN, REVOKED_COUNTDOWN = 3, 5
# Seconds that a worker has to confirm a revocation, and how often it is requested.
CONFIRMATION, REQUESTS = 1.0, 3


def send(app: Any, kind: str, ids: list[str]) -> list[str]:
    """Send the tasks of one kind under these ids, and return the ids that are accepted."""

    def task(name: str, task_id: str, **options: Any) -> Any:
        return app.signature(name, options={"task_id": task_id, **options})

    if kind == "chord":
        *parts, callback = (task(WORK, task_id) for task_id in ids)
        chord(parts, callback).apply_async()
    elif kind == "chain":
        chain(*(task(WORK, task_id) for task_id in ids)).apply_async()
    elif kind == "countdown":
        task(WORK, ids[0], countdown=COUNTDOWN).apply_async()
    elif kind == "revoked":
        task(WORK, ids[0], countdown=REVOKED_COUNTDOWN).apply_async()
    elif kind == "rejecting":
        task(REJECTING, ids[0]).apply_async()
    else:
        # Two at once, of which the limit makes one wait in the worker.
        accepted = []
        for task_id in ids:
            try:
                task(LIMITED, task_id).apply_async()
            except Exception:  # noqa: BLE001 - whatever the fault makes of it: it is not accepted
                break
            accepted.append(task_id)
        return accepted
    return ids


def is_revoked(app: Any, task_id: str) -> bool:
    """Request a revocation until a worker has confirmed it."""
    for _ in range(REQUESTS):
        answers = app.control.revoke(task_id, reply=True, timeout=CONFIRMATION, limit=1)
        if any("ok" in answer for each in answers or () for answer in each.values()):
            return True
    return False


def follow(app: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Follow one command; what fails is not accepted, or not confirmed."""
    answer: dict[str, Any] = {"accepted": [], "confirmed": False}
    try:
        answer["accepted"] = send(app, command["kind"], command["ids"])
        if command["kind"] == "revoked":
            answer["confirmed"] = is_revoked(app, command["ids"][0])
    except Exception as error:  # noqa: BLE001 - whatever the fault makes of it
        answer["error"] = f"{type(error).__name__}: {error}"[:200]
    return answer


if __name__ == "__main__":
    # Imports of the application may print.
    out, sys.stdout = sys.stdout, sys.stderr
    application = find_app(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(follow(application, json.loads(line))), file=out, flush=True)
