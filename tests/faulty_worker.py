"""A worker application with tasks that misbehave: ``celery -A tests.faulty_worker worker``."""

import random
import time

from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app


@celery_app.task(soft_time_limit=590, time_limit=600)
def endless() -> None:
    """Run past every limit that the settings know."""
    while True:
        time.sleep(0.1)


def _fail_first_attempt() -> float:
    return 1.0 if example_agent_task.request.retries else 0.0


random.random = _fail_first_attempt
