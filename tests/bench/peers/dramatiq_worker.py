"""``dramatiq tests.bench.peers.dramatiq_worker``."""

import asyncio
import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

from tests.bench.works import note_end

broker = RedisBroker(url=os.environ["BENCH_BROKER_URL"])
broker.add_middleware(AsyncIO())
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_RESULTS_URL"]), result_ttl=3_600_000))
dramatiq.set_broker(broker)


@dramatiq.actor(time_limit=60_000, store_results=True)
async def wait(seconds: float) -> float:
    """Wait, as for a language model."""
    await asyncio.sleep(seconds)
    note_end()
    return seconds


@dramatiq.actor(time_limit=60_000, store_results=True)
def tiny(number: int) -> int:
    """Do nothing."""
    note_end()
    return number


def fill(task: str, argument: float, count: int) -> None:
    """Put so many messages into the queue."""
    actor = broker.get_actor(task)
    for _ in range(count):
        actor.send(argument)
