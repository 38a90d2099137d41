"""A worker application with tasks that misbehave: ``celery -A faulty_worker worker``."""

import contextlib
import logging
import os
import random
import signal
import time
import uuid  # noqa: F401 - for those who send
from pathlib import Path
from typing import Any

from celery import Task, chord, group  # noqa: F401 - for those who send
from celery.app.task import Task as BaseTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker.control import control_command
from celery.worker.request import Request as CeleryRequest

from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app

# Seconds that a child takes to begin.
os.register_at_fork(after_in_child=lambda: time.sleep(float(os.environ.get("FORK_SECONDS", "0"))))


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
def dying_until(repaired: str) -> str:
    """Kill the process that runs it until the file ``repaired`` exists."""
    if not Path(repaired).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@celery_app.task(bind=True, default_retry_delay=0, max_retries=None, reject_on_worker_lost=True)
def dying_without_end(self: Task[Any, Any], ledger: str) -> None:
    """Kill each process that runs it."""
    with Path(ledger).open("a") as file:
        print("start", self.request.id, file=file, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@celery_app.task(bind=True, default_retry_delay=0, max_retries=None)
def dying_now_and_then(self: Task[Any, Any], deaths: int) -> str:
    """Kill its process in every second run, and ask for a retry in the others."""
    if self.request.retries >= 2 * deaths:
        return "survived"
    if self.request.retries % 2:
        raise self.retry(countdown=0)
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@celery_app.task
def fatal() -> None:
    """Kill the whole worker, if it runs tasks in threads."""
    os.kill(os.getpid(), signal.SIGKILL)


@celery_app.task
def consuming(queue: str) -> str:
    """Take a message as a consumer that is no worker."""
    with celery_app.connection_for_read() as connection:
        return str(connection.SimpleQueue(queue).get(timeout=1))


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


class BeyondException(BaseException):
    """Neither an Exception nor one that Python knows, like gevent's GreenletExit."""


class UnrestorableError(Exception):
    """Can be pickled, but not be restored, like botocore's ClientError."""

    def __init__(self, code: int, name: str) -> None:
        """Pass on one of two arguments."""
        super().__init__(f"{name} {code}")


class UnrestorableIgnore(Ignore):
    """The same as a way to end."""

    def __init__(self, code: int, name: str) -> None:
        """Pass on one of two arguments."""
        super().__init__(f"{name} {code}")


UNRESTORABLE: dict[str, BaseException] = {
    "reject": Reject(UnrestorableError(1, "on purpose"), requeue=False),
    "reject a function": Reject(ValueError(lambda: 0), requeue=False),
    "ignore": Ignore(UnrestorableError(1, "on purpose")),
    "ignore in a way of its own": UnrestorableIgnore(1, "on purpose"),
    "failure": UnrestorableError(1, "on purpose"),
}


class Handling(BaseTask):  # type: ignore[type-arg]
    """A base class whose handler fails."""

    def on_failure(self, *_: Any) -> None:
        """Fail in a way that nobody can restore."""
        raise UnrestorableError(2, "in a handler")


@celery_app.task(base=Handling)
def unrestorable(how: str) -> None:
    """Raise what the main process cannot restore."""
    raise UNRESTORABLE.get(how, ValueError("on purpose"))


RAISES: dict[str, BaseException] = {
    "failure": ValueError("on purpose"),
    "outage of its own": ConnectionResetError("an upstream API hung up"),
    "ignore": Ignore(),
    "reject": Reject("on purpose", requeue=False),
    "memory": MemoryError(),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "beyond": BeyondException(),
    "generator exit": GeneratorExit(),
}


def end(task: Task[Any, Any], how: str, ledger: str) -> str:
    """Write down that ``task`` runs, then end it in one of many ways."""
    with Path(ledger).open("a") as file:
        print("start", task.request.id, file=file, flush=True)
    if how in RAISES:
        raise RAISES[how]
    if how == "retry" and not task.request.retries:
        raise task.retry(countdown=1, max_retries=1)
    if how == "death" and not task.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
    while how in ("soft limit", "hard limit"):
        time.sleep(0.05)
    return "done"


@celery_app.task(bind=True, default_retry_delay=0, track_started=False)
def ends(self: Task[Any, Any], how: str, ledger: str) -> str:
    """End in one of many ways."""
    return end(self, how, ledger)


@celery_app.task(bind=True, default_retry_delay=0, track_started=False, acks_late=False)
def ends_early(self: Task[Any, Any], how: str, ledger: str) -> str:
    """End in one of many ways, acknowledged before."""
    return end(self, how, ledger)


@celery_app.task(bind=True)
def sending(self: Task[Any, Any], how: str, ledger: str, seconds: float) -> None:
    """Work for a while, then send: itself once more as a retry, or another task."""
    with Path(ledger).open("a") as file:
        print("start", how, file=file, flush=True)
    if self.request.retries:
        return
    time.sleep(seconds)
    with Path(ledger).open("a") as file:
        print("end", how, file=file, flush=True)
    if how == "retry":
        raise self.retry(countdown=0)
    recorded.delay("other", ledger, 0)


@celery_app.task(bind=True)
def rejecting_once(self: Task[Any, Any], ledger: str) -> None:
    """Put the message back when it comes for the first time."""
    with Path(ledger).open("a") as file:
        print("start", self.request.id, file=file, flush=True)
    if not self.request.delivery_info["redelivered"]:  # type: ignore[index]
        raise Reject("later", requeue=True)


@celery_app.task(bind=True)
def growing(self: Task[Any, Any], content: str) -> None:
    """Ask for a retry that is larger than any worker takes."""
    raise self.retry(args=(content * 10_000_000,), countdown=0)


class Own(BaseTask):  # type: ignore[type-arg]
    """A base class that does not come from the application."""


class OwnRequest(CeleryRequest):
    """A request of the application's own."""

    def on_accepted(self, pid: Any, time_accepted: Any) -> None:
        """Leave a trace, as applications do."""
        super().on_accepted(pid, time_accepted)
        logging.getLogger(__name__).warning("OwnRequest knows that %s has begun", self.name)


class Requesting(Own):
    """One that brings its request along."""

    Request = OwnRequest  # type: ignore[assignment]


own = celery_app.task(base=Own, name="own")(recorded.run)
requesting = celery_app.task(base=Requesting, name="requesting")(recorded.run)
own_dying = celery_app.task(base=Own, name="own_dying", default_retry_delay=0)(dying_until.run)


@celery_app.task
def collect(results: list[str]) -> list[str]:
    """End a chord."""
    return results


@celery_app.task(bind=True)
def dying_part(self: Task[Any, Any], ledger: str, whom: str) -> str:
    """Be a part of a chord whose process or worker dies the first time between its result and its chord."""
    with Path(ledger).open("a") as file:
        print("start", self.request.id, file=file, flush=True)

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getppid() if whom == "worker" else os.getpid(), signal.SIGKILL)
        time.sleep(60)

    self.backend.on_chord_part_return = die  # type: ignore[method-assign]
    return "part"


@celery_app.task(bind=True)
def dying_last_part(self: Task[Any, Any], how: str) -> str:
    """Be the last part of a chord whose worker dies the first time with the claim to the chord's body."""
    backend: Any = self.backend

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    if not self.request.delivery_info["redelivered"]:  # type: ignore[index]
        backend._chord_publish_claim_expires = backend.chord_error_from_stack = die
    if how == "failure":
        raise RAISES[how]
    return "part"


@control_command()
def freeze(_state: Any, seconds: float = 60) -> str:
    """Hold the worker's main loop, as a dead lock in it would."""
    time.sleep(seconds)
    return "thawed"


if os.environ.get("WITHOUT_RESULTS"):
    celery_app.conf.result_backend = "disabled"  # type: ignore[misc]


def _fail_first_attempt() -> float:
    return 1.0 if example_agent_task.request.retries else 0.0


random.random = _fail_first_attempt
