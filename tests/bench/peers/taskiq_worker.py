"""``taskiq worker tests.bench.peers.taskiq_worker:broker``."""

import asyncio
import os

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.bench.works import note_end

# Of taskiq's brokers the one that acknowledges.
broker = RedisStreamBroker(os.environ["BENCH_BROKER_URL"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["BENCH_RESULTS_URL"], result_ex_time=3600)
)


@broker.task(task_name="wait", timeout=60)
async def wait(seconds: float) -> float:
    """Wait, as for a language model."""
    await asyncio.sleep(seconds)
    note_end()
    return seconds


@broker.task(task_name="tiny", timeout=60)
async def tiny(number: int) -> int:
    """Do nothing."""
    note_end()
    return number


def fill(task: str, argument: float, count: int) -> None:
    """Put so many messages into the stream, whose group of consumers is made first."""

    async def kick() -> None:
        await broker.startup()
        for _ in range(count):
            await {"wait": wait, "tiny": tiny}[task].kiq(argument)
        await broker.shutdown()

    asyncio.run(kick())
