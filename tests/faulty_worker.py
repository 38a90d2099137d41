"""A worker application with tasks that misbehave: ``celery -A tests.faulty_worker worker``."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.control import control_command

from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app


@celery_app.task(soft_time_limit=590, time_limit=600)
def endless() -> None:
    """Run past every limit that the settings know."""
    while True:
        time.sleep(0.1)


@celery_app.task(soft_time_limit=1, time_limit=2)
def deaf() -> None:
    """Run on when the soft limit is over."""
    with contextlib.suppress(SoftTimeLimitExceeded):
        time.sleep(60)
    time.sleep(60)


@celery_app.task(bind=True, default_retry_delay=1)
def dying(self: Task[Any, Any], deaths: int) -> str:
    """Kill the process that runs it, as the kernel does when memory is short, in each of the first runs."""
    if self.request.retries < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@celery_app.task(default_retry_delay=0)
def dying_until(mended: str) -> str:
    """Kill the process that runs it until the file ``mended`` exists."""
    if not Path(mended).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@celery_app.task
def fatal() -> None:
    """Kill the whole worker, if it runs tasks in threads."""
    os.kill(os.getpid(), signal.SIGKILL)


@celery_app.task
def talkative() -> None:
    """Fail with a secret in the error, as clients of providers do."""
    raise ValueError({"url": f"https://provider.example/?key={os.environ['GEMINI_API_KEY']}"})


@celery_app.task
def greedy() -> None:
    """Ask for more memory than there is."""
    raise MemoryError


@celery_app.task
def recorded(name: object, ledger: str, seconds: float) -> None:
    """Write down start and end in a file, outside of Redis."""
    with Path(ledger).open("a") as file:
        print("start", name, file=file, flush=True)
        time.sleep(seconds)
        print("end", name, file=file, flush=True)


@celery_app.task
def sleeping(seconds: float) -> str:
    """Work for a while without looking at anything."""
    time.sleep(seconds)
    return "done"


@celery_app.task
def collect(results: list[str]) -> list[str]:
    """End a chord."""
    return results


@control_command()
def freeze(_state: Any, seconds: float = 60) -> str:
    """Hold the worker's main loop, as a dead lock in it would."""
    time.sleep(seconds)
    return "thawed"


def _fail_first_attempt() -> float:
    return 1.0 if example_agent_task.request.retries else 0.0


random.random = _fail_first_attempt
