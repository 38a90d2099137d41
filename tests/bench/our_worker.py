"""The same tiny task in our application, with single guarantees taken away: ``BENCH_WITHOUT=ledger,delivery``."""

import asyncio
import os

import kombu

from app.agents.worker import celery_app
from celery_durable import scripts
from tests.bench.works import note_end

without = os.environ.get("BENCH_WITHOUT", "").split(",")
if "delivery" in without:
    celery_app.finalize()
    celery_app.amqp.Connection = kombu.Connection
if "ledger" in without:
    scripts.ACKNOWLEDGE = "redis.call('LREM', KEYS[1], 1, ARGV[1])"
    scripts.ENQUEUE = "redis.call('LPUSH', KEYS[1], ARGV[1])"
    scripts._texts += [scripts.ACKNOWLEDGE, scripts.ENQUEUE]


@celery_app.task(name="tiny")
def tiny(number: int) -> int:
    """Do nothing, so that only the price of the queue is measured."""
    note_end()
    return number


@celery_app.task(name="wait")
async def wait(seconds: float) -> float:
    """Wait, as for a language model."""
    await asyncio.sleep(seconds)
    note_end()
    return seconds


def fill(task: str, argument: float, count: int) -> None:
    """Put so many tasks into the queue."""
    for _ in range(count):
        celery_app.tasks[task].delay(argument)
