"""A worker application whose tasks are coroutines: ``celery-durable -A asyncio_worker worker --pool asyncio``."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from celery import Celery, Task, chord, current_task, signals
from celery.app.task import Task as BaseTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import BaseModel

from celery_durable import install
from celery_durable.aio import tasks as aio

app = Celery("asyncio_worker", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(task_default_queue="celery", worker_soft_shutdown_timeout=1)
app.conf.task_time_limit = float(os.environ.get("TIME_LIMIT", "0")) or None
install(app)
logger = logging.getLogger(__name__)
LEDGER = Path(os.environ.get("LEDGER", "/dev/null"))


def note(*words: object) -> None:
    """Write a line, at once and outside of Redis."""
    with LEDGER.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class BeyondException(BaseException):
    """Neither an Exception nor one that Python knows."""


RAISES: dict[str, BaseException] = {
    "failure": ValueError("on purpose"),
    "ignore": Ignore(),
    "reject": Reject("on purpose", requeue=False),
    "memory": MemoryError(),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "beyond": BeyondException(),
    "generator-exit": GeneratorExit(),
    "cancel": asyncio.CancelledError(),
}


@app.task(bind=True)
async def ends(self: Task[Any, Any], how: str) -> str:
    """End in one of many ways."""
    note("start", how)
    await asyncio.sleep(0.01)
    if how in RAISES:
        raise RAISES[how]
    if how == "exit-of-a-part":
        await asyncio.gather(asyncio.sleep(0.01), leaving())
    if how == "retry" and not self.request.retries:
        raise self.retry(countdown=0.1, max_retries=1)
    if how == "requeue" and not self.request.delivery_info["redelivered"]:  # type: ignore[index]
        raise Reject("later", requeue=True)
    return "done"


async def leaving() -> None:
    """Exit."""
    raise SystemExit(4)


@app.task(bind=True, autoretry_for=(ValueError,), default_retry_delay=0, max_retries=2)
async def retried(self: Task[Any, Any]) -> int:
    """Fail twice."""
    await asyncio.sleep(0.01)
    if self.request.retries < 2:
        raise ValueError
    return self.request.retries


class Own(BaseTask):  # type: ignore[type-arg]
    """A base class whose ``run`` is a coroutine."""

    name = "own"

    async def run(self, number: int) -> tuple[int, str]:
        """Return twice the number, and whose code this is."""
        await asyncio.sleep(0.01)
        return 2 * number, current_task.name

    def on_success(self, retval: Any, task_id: str, *_: Any) -> None:
        """Leave a trace."""
        note("handled", task_id, retval[0])


app.register_task(Own())


class Called(BaseTask):  # type: ignore[type-arg]
    """A base class that is called in a way of its own."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add to what the task returns."""
        return f"called {await self.run(*args, **kwargs)}"


@app.task(base=Called)
async def called() -> str:
    """Be called."""
    return "well"


def decorated(function: Any) -> Any:
    """Return a function that is none of ``async def``."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@app.task
@decorated
async def add(x: int, y: int) -> int:
    """Add."""
    await asyncio.sleep(0.01)
    return x + y


class Model(BaseModel):
    """What a task takes and returns."""

    number: int


@app.task(pydantic=True, bind=True)
async def validated(self: Task[Any, Any], model: Model) -> Model:
    """Return a model, which Celery makes plain."""
    await asyncio.sleep(0.01)
    return Model(number=model.number + 1 + self.request.retries)


class Passing(BaseTask):  # type: ignore[type-arg]
    """A base class whose ``__call__`` is a plain function, like those that push a context."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let Celery call it."""
        return super().__call__(*args, **kwargs)


@app.task(base=Passing)
async def passed(number: int) -> int:
    """Be called by it."""
    await asyncio.sleep(0.01)
    return number


@app.task
def by_hand(number: int) -> int:
    """Call other tasks by hand, in all ways."""
    applied: Any = add.apply(args=(number, 3)).result
    return int(asyncio.run(add(number, 1)) + asyncio.run(add.run(number, 2)) + applied)


@app.task
async def nested(depth: int) -> int:
    """Run another task in place."""
    await asyncio.sleep(0.01)
    applied: Any = nested.apply(args=(depth - 1,)).result if depth else -1
    return 1 + int(applied)


@app.task
async def stopping() -> str:
    """Stop the loop, as careless code does."""
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)
    return "went on"


@app.task
async def total(numbers: list[int]) -> int:
    """End a chord."""
    return sum(numbers)


@app.task(bind=True)
async def waiting(self: Task[Any, Any], name: str, seconds: float) -> tuple[str, int]:
    """Wait, as for a language model."""
    note("start", name, os.getpid())
    await asyncio.sleep(seconds)
    note("end", name, os.getpid())
    return name, self.request.retries


@app.task
async def limited(how: str) -> str:
    """Run into a limit."""
    note("start", how)
    try:
        if how == "inside":
            await asyncio.wait_for(part(), 60)
        elif how == "block":
            time.sleep(60)  # noqa: ASYNC251 - on purpose
        elif how == "busy":
            while True:
                pass
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        note("soft", how)
        if how == "return":
            await asyncio.sleep(0.1)
            return "cleaned up"
        raise
    except asyncio.CancelledError:
        note("cancelled", how)
        if how == "swallow":
            await asyncio.sleep(60)
        if how == "late":
            return "all the same"
        raise
    return "never"


@app.task(acks_late=True, acks_on_failure_or_timeout=False, time_limit=0.5)
async def overdue() -> None:
    """Hit the hard limit in each run, and be requeued."""
    note("start", "overdue")
    await asyncio.sleep(60)


async def part() -> None:
    """Be what a run waits for."""
    try:
        await asyncio.sleep(60)
    finally:
        note("part", "ended")


@app.task
def blocking(name: str, seconds: float) -> str:
    """Run in a thread."""
    note("start", name, os.getpid())
    time.sleep(seconds)
    note("end", name, os.getpid())
    return name


@app.task(bind=True, default_retry_delay=0, max_retries=1)
async def dying(self: Task[Any, Any], where: str, deaths: int) -> str:
    """End the process in each of the first runs: from the coroutine, or from a thread that it has started."""
    note("start", where, os.getpid())
    await asyncio.sleep(0.3)
    if self.request.retries < deaths:
        if where == "thread":
            await asyncio.to_thread(leave_later)
        os._exit(1)
    return "survived"


def leave_later() -> None:
    """End the process while its loop waits."""
    time.sleep(0.1)
    os._exit(1)


@app.task
async def forking() -> str:
    """Make a copy of the process, and go on in both."""
    pid = os.fork()
    note("forked", os.getpid())
    await asyncio.sleep(0.1)
    note("after", os.getpid())
    if pid:
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended
    return "done"


@app.task
async def lagging() -> str:
    """Hold the loop."""
    time.sleep(1.8)  # noqa: ASYNC251 - on purpose
    return "done"


@app.task(bind=True)
async def reporting(self: Task[Any, Any], name: str) -> str:
    """Report progress and send a task, as a task does that knows nothing of loops."""
    began = time.monotonic()
    progress = {"part": 1}
    self.update_state(state="PROGRESS", meta=progress)
    progress["part"] = 2
    sent = waiting.delay(f"child of {name}", 0)
    note("held", name, round(time.monotonic() - began, 3))
    await asyncio.sleep(1)
    return sent.id


@app.task
async def ticking(seconds: float) -> float:
    """Return the longest time in which the loop did not come round."""
    longest, began = 0.0, time.monotonic()
    while time.monotonic() - began < seconds:
        tick = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - tick)
    return longest


@app.task(bind=True)
async def awaiting(self: Task[Any, Any]) -> list[Any]:
    """Use the forms that are awaited."""
    await aio.update_state(self, "PROGRESS", {"part": 1})
    stored = (await aio.call(self.AsyncResult, str(self.request.id))).state
    sum_ = await aio.result(await aio.send(add, 1, 2), 20)
    chord_ = await aio.result(await aio.call(chord([add.s(1, 1), add.s(2, 2)]), total.s()), 20)
    try:
        await aio.result(await aio.send(ends, "failure"), 20)
    except ValueError as error:
        failed = str(error)
    return [stored, sum_, chord_, failed]


@app.task(bind=True)
async def talking(self: Task[Any, Any]) -> None:
    """Log from wherever a run's code can be."""
    mine = self.request.id
    for place in range(3):
        logger.info("coroutine %s %s", mine, place)
        await asyncio.sleep(0.05)
        await asyncio.gather(saying("part", mine), asyncio.to_thread(logger.info, "thread %s 0", mine))
        asyncio.get_running_loop().call_soon(logger.info, "callback %s 0", mine)


async def saying(what: str, mine: object) -> None:
    """Log."""
    await asyncio.sleep(0.01)
    logger.info("%s %s 0", what, mine)


@aio.per_process
@asynccontextmanager
async def client() -> AsyncIterator[str]:
    """Be what the tasks of a process share."""
    note("opened", os.getpid())
    await asyncio.sleep(0.05)
    yield f"client of {os.getpid()}"
    await asyncio.sleep(0.05)
    note("closed", os.getpid())


@app.task
async def sharing() -> str:
    """Use it."""
    return await client()


@signals.worker_process_init.connect
def _on_process(**_: Any) -> None:
    note("process", os.getpid())


@signals.worker_process_shutdown.connect
def _on_process_end(**_: Any) -> None:
    note("process-end", os.getpid())
