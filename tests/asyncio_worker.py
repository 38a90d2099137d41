"""A worker application whose tasks are coroutines: ``celery-durable -A tests.asyncio_worker worker --pool asyncio``."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, chord, current_task, group, signals  # noqa: F401 - for those who send
from celery.app.task import Task as BaseTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_durable import install
from celery_durable.aio import tasks as aio
from celery_durable.options import Options

app = Celery("asyncio_worker", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(task_default_queue="celery", task_routes={}, worker_max_tasks_per_child=None)
install(app)
logger = logging.getLogger(__name__)
LEDGER = Path(os.environ.get("LEDGER", "/dev/null"))


def note(*words: object) -> None:
    """Write a line, at once and outside of Redis."""
    with LEDGER.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@app.task(bind=True)
async def waiting(self: Task[Any, Any], seconds: float, name: str = "") -> str:
    """Wait, as for a language model."""
    note("start", name, os.getpid())
    await asyncio.sleep(seconds)
    note("end", name, os.getpid())
    return f"done {name}"


@app.task
async def timed(sent: float) -> float:
    """Return the seconds from sending to the start."""
    return time.time() - sent
