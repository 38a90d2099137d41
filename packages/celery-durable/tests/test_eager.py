"""Coroutines run where ``apply`` and ``task_always_eager`` call them, as in an application's own tests."""

import asyncio
from typing import Any

import pytest
from celery import Celery, chain
from celery.app.task import Task
from pydantic import BaseModel

from celery_durable import install

app = Celery("eager", broker="redis://127.0.0.1:1/0", backend="cache+memory://", set_as_current=False)
app.conf.task_always_eager = True
install(app)


class Model(BaseModel):
    """What a task takes and returns."""

    number: int


class Passing(Task):  # type: ignore[type-arg]
    """A base class that lets Celery call the task."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Add nothing."""
        return super().__call__(*args, **kwargs)


@app.task(base=Passing)
async def double(number: int) -> int:
    """Wait and double."""
    await asyncio.sleep(0.01)
    return 2 * number


@app.task(pydantic=True)
async def validated(model: Model) -> Model:
    """Return a model."""
    await asyncio.sleep(0.01)
    return Model(number=model.number + 1)


@app.task(bind=True, max_retries=2)
async def retried(self: Task) -> int:  # type: ignore[type-arg]
    """Fail twice."""
    await asyncio.sleep(0.01)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task
async def failing() -> None:
    """Fail."""
    await asyncio.sleep(0.01)
    raise ValueError("on purpose")


@app.task
async def calling(number: int) -> int:
    """Run another one in place, and a third by hand."""
    by_hand: Any = double(number)
    return int(double.delay(number).get(disable_sync_subtasks=False)) + int(await by_hand)


def everything() -> list[object]:
    with pytest.raises(ValueError, match="on purpose"):
        failing.delay().get()
    return [
        double.delay(2).get(),
        double.apply(args=(3,)).get(),
        chain(double.s(1), double.s()).delay().get(),
        validated.delay(Model(number=1)).get(),
        retried.delay().get(),
        calling.delay(1).get(),
    ]


RETURNED = [4, 6, 4, {"number": 2}, 2, 4]


def test_outside_of_a_loop() -> None:
    assert everything() == RETURNED
    by_hand: Any = double(5)
    assert asyncio.run(by_hand) == 10


def test_on_a_loop() -> None:
    async def test() -> list[object]:
        by_hand: Any = double(5)
        return [*everything(), await by_hand]

    assert asyncio.run(test()) == [*RETURNED, 10]


def test_an_application_without_the_library_is_left_alone() -> None:
    other = Celery("other", broker="redis://127.0.0.1:1/0", backend="cache+memory://", set_as_current=False)
    task = other.task(double.run)
    coroutine: Any = task.apply(args=(1,)).result
    assert asyncio.run(coroutine) == 2
