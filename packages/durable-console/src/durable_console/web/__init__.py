"""Metrics, status page, workers' health and alerts: routers, which an application of FastAPI's may include.

``durable-console serve`` is a service of these alone, for an application that has none of them.
"""

from typing import Any

from redis.asyncio import Redis

from celery_durable.aio.inspector import Inspector
from celery_durable.options import Options
from durable_console.web import alerts, health, metrics
from durable_console.web.prometheus import Prometheus
from durable_console.web.status import page

ROUTERS = (metrics.scraped, health.router, metrics.router, page.router, alerts.router)
# Content security policies of pages, by their path, for ``SecurityHeaders``.
POLICIES = {page.PATH: page.POLICY}


def prepare(state: Any, options: Options, broker: Redis, results: Redis, *, name: str) -> None:
    """Put what the routers need into an application's state; besides, they want ``guard`` and ``max_body_bytes`` there.

    Args:
        state: the application's.
        options: of the Celery application that is observed.
        broker: a client of the broker.
        results: a client of the Redis with the results.
        name: what the status page calls the service that makes it.
    """
    state.broker, state.inspector, state.prometheus = broker, Inspector(options, broker), Prometheus(options, broker)
    state.observer = page.Observer(state.prometheus, broker, results, name=name)
