"""The reference for measurements: Celery as the guide configures it, nothing of ours."""

import os
import time

from celery import Celery

from tests.bench.works import note_end

celery_app = Celery(
    "guide", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"], include=[]
)
celery_app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    timezone="UTC",
    enable_utc=True,
    task_track_started=True,
    task_time_limit=60,
    task_soft_time_limit=55,
    task_acks_late=True,
    result_expires=3600,
    worker_prefetch_multiplier=1,
    worker_max_tasks_per_child=1000,
)


@celery_app.task(name="tiny")
def tiny(number: int) -> int:
    """Do nothing, so that only the price of the queue is measured."""
    note_end()
    return number


@celery_app.task(name="wait")
def wait(seconds: float) -> float:
    """Wait, as for a language model; Celery runs no coroutines."""
    time.sleep(seconds)
    note_end()
    return seconds


def fill(task: str, argument: float, count: int) -> None:
    """Put so many tasks into the queue."""
    for _ in range(count):
        celery_app.tasks[task].delay(argument)
