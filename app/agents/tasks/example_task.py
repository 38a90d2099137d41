"""The example task: a few steps of pretended work, with progress, retries and a simulated failure."""

import logging
import random
import time
from typing import Any

from celery import Task

from app.agents.worker import celery_app

logger = logging.getLogger(__name__)

STEPS = ("Preparing", "Calling the agent", "Processing the answer", "Finishing")
STEP_SECONDS = 0.5  # about two seconds in all
FAILURE_RATE = 0.1


class SimulatedFailureError(Exception):
    """Raised at random for tasks that request it."""


@celery_app.task(bind=True, max_retries=3, default_retry_delay=2)
def example_agent_task(self: Task[Any, Any], task_id: str, data: dict[str, Any]) -> dict[str, Any]:
    """Work through the steps and return the result.

    Args:
        self: the bound task.
        task_id: id of the task, the same as Celery's.
        data: the client's data; ``simulate_failure: true`` makes one run in ten fail.

    Returns:
        ``task_id``, ``status``, ``result``, ``attempts`` (runs needed, 1 without a retry) and ``data``.

    Raises:
        SimulatedFailureError: the last retry failed too.
    """
    try:
        for number, status in enumerate(STEPS, start=1):
            self.update_state(state="PROGRESS", meta={"current": number, "total": len(STEPS), "status": status})
            logger.info("Step %d of %d: %s", number, len(STEPS), status)
            time.sleep(STEP_SECONDS)
        _fail_at_random(data)
    except SimulatedFailureError as error:
        # 2, 4, 8 seconds
        raise self.retry(exc=error, countdown=2 ** (self.request.retries + 1)) from error
    return {
        "task_id": task_id,
        "status": "completed",
        "result": "Success",
        "attempts": self.request.retries + 1,
        "data": data,
    }


def _fail_at_random(data: dict[str, Any]) -> None:
    if data.get("simulate_failure") is True and random.random() < FAILURE_RATE:
        raise SimulatedFailureError("Simulated failure")
