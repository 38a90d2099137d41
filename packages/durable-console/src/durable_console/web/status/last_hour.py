"""The last hour: runs by minute, failures, alerts."""

from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from celery_durable import entries
from celery_durable.keys import ALERTS
from celery_durable.metrics import DIED, FAILED, FAILURES, FAILURES_KEPT, MINUTE, RETRIED, SUCCEEDED, TIMED_OUT
from durable_console.web.alerts import Firing, firing, heard

MINUTES = 60


@dataclass
class Recent:
    """What Redis said of the last hour; nothing when it was away."""

    now: int = 0
    minutes: list[dict[str, float]] = field(default_factory=lambda: [{} for _ in range(MINUTES)])  # the oldest first
    failures: list[dict[str, Any]] = field(default_factory=list)
    heard: float | None = None
    alerts: list[Firing] = field(default_factory=list)
    bad: int = 0  # entries that are not of the expected form


async def last_hour(broker: Redis) -> Recent:
    """Ask the broker.

    Raises:
        redis.exceptions.RedisError: it does not answer.
    """
    now, _ = await broker.time()
    pipeline = broker.pipeline(transaction=False)
    this_minute = now // 60
    for minute in range(this_minute - MINUTES + 1, this_minute + 1):
        pipeline.hgetall(f"{MINUTE}{minute}")
    pipeline.lrange(FAILURES, 0, FAILURES_KEPT - 1)
    pipeline.hgetall(ALERTS)
    *minutes, failures, alerts = await pipeline.execute(raise_on_error=False)
    read = entries.Reading()
    groups = read(ALERTS, entries.alerts, alerts, {})
    return Recent(
        now=now,
        minutes=[read(MINUTE, entries.minute, minute, {}) for minute in minutes],
        failures=read(FAILURES, entries.failures, failures, []),
        heard=heard(groups, now),
        alerts=firing(groups, now),
        bad=sum(read.bad.values()),
    )


def failed(minute: dict[str, float]) -> float:
    """Return how many runs failed in a minute, for whatever reason."""
    return sum(minute.get(name, 0) for name in (FAILED, TIMED_OUT, DIED))


def ended(minute: dict[str, float]) -> float:
    """Return how many runs ended in a minute."""
    return minute.get(SUCCEEDED, 0) + minute.get(RETRIED, 0) + failed(minute)
