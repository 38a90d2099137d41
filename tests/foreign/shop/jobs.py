"""Its tasks."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task


class Job(Task):  # type: ignore[type-arg]
    """A base class of its own, from Celery's and not from the application's."""

    abstract = True


app = Celery("shop", task_cls=Job)
app.config_from_object("shop.settings", namespace="SHOP")


def note(word: str) -> None:
    """Write down what happens, outside of Redis."""
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        print(word, file=ledger, flush=True)


@app.task
def order(number: int, seconds: float = 0) -> int:
    """Work for a while."""
    note(f"start {number}")
    time.sleep(seconds)
    note(f"end {number}")
    return number


@app.task
def total(numbers: list[int]) -> int:
    """End a chord."""
    return sum(numbers)


@app.task
def mail(address: str) -> str:
    """Go to a queue of its own."""
    return address


@app.task
def tick() -> None:
    """Be sent by beat."""
    note("tick")


@app.task(acks_late=False)
def once(number: int) -> None:
    """Kill the process that runs it; at most once."""
    note(f"start {number}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def dies_first(self: Any) -> str:
    """Kill the process that runs it the first time."""
    note(f"start {self.request.id}")
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.task
def leak() -> None:
    """Fail with a secret in the error, as clients of databases do."""
    raise ValueError(f"no connection to {os.environ['DATABASE_URL']}")
