"""``arq tests.bench.peers.arq_worker.WorkerSettings``."""

import asyncio
import os
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from tests.bench.works import note_end

REDIS = RedisSettings.from_dsn(os.environ["BENCH_BROKER_URL"])


async def wait(_: dict[str, Any], seconds: float) -> float:
    """Wait, as for a language model."""
    await asyncio.sleep(seconds)
    note_end()
    return seconds


async def tiny(_: dict[str, Any], number: int) -> int:
    """Do nothing."""
    note_end()
    return number


class WorkerSettings:
    """A job stays in the queue until its result is stored, and can be aborted."""

    functions = (wait, tiny)
    redis_settings = REDIS
    max_jobs = int(os.environ.get("BENCH_SLOTS", "10"))
    job_timeout = 60
    keep_result = 3600
    allow_abort_jobs = True


def fill(task: str, argument: float, count: int) -> None:
    """Put so many jobs into the queue."""

    async def enqueue() -> None:
        pool = await create_pool(REDIS)
        for _ in range(count):
            await pool.enqueue_job(task, argument)
        await pool.aclose()

    asyncio.run(enqueue())
