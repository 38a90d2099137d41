"""Which of the tasks that were sent a worker of this host has run, and how they ended: waits for it, changes nothing.

Runs on a host of workers, with the live release's Python: SECONDS HOST ID... Ends with 0 when one has succeeded here, 1
when one has failed here, 2 when they did not end in time, 3 when all ran elsewhere.
"""

import sys
import time

from celery.result import AsyncResult

from app.agents.worker import celery_app


def main(seconds: float, host: str, ids: list[str]) -> int:
    """Wait for the first task that this host's workers have ended, or for the last one of all."""
    waiting: list[AsyncResult[object]] = [AsyncResult(task_id, app=celery_app) for task_id in ids]
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        for task in [task for task in waiting if task.ready()]:
            waiting.remove(task)
            if str(task.worker).endswith(f"@{host}"):
                print(f"{task.worker} has run {task.id}: {task.state}", file=sys.stderr)
                return 0 if task.successful() else 1
        time.sleep(0.2)
    print(
        f"none of {len(ids)} tasks has run here within {seconds:.0f} s, {len(waiting)} wait: where tasks wait longer "
        "than that, give deploy_gate_seconds",
        file=sys.stderr,
    )
    return 2 if waiting else 3


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3:]))
