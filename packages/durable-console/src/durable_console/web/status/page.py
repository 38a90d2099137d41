"""The page: what is looked at, and how it is rendered."""

import asyncio
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from redis.asyncio import Redis
from redis.exceptions import RedisError

from celery_durable.aio.workforce import ALIVE_SECONDS
from celery_durable.metrics import RETRIED, SUCCEEDED
from durable_console.web.errors import documented
from durable_console.web.headers import page_policy
from durable_console.web.prometheus import SNAPSHOT_SECONDS, Prometheus, Snapshot
from durable_console.web.security import PageRoute
from durable_console.web.status.formats import date_and_time, duration
from durable_console.web.status.last_hour import Recent, ended, failed, last_hour
from durable_console.web.status.parts import Part, headline, parts_of
from durable_console.web.status.plots import throughput, waiting

T = TypeVar("T")

PATH = "/status"
# Seconds for the answers of Redis; a reader waits for one second at most.
BUDGET = 0.8
REFRESH_SECONDS = 10

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "status.css").read_text()
POLICY = page_policy(_STYLE)

router = APIRouter(tags=["status"], route_class=PageRoute, responses=documented(401, 429))


@router.get(PATH, response_model=None, responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}})
async def status(request: Request) -> HTMLResponse:
    """Show the state of all parts, the last hour, and what fails; for people."""
    observer: Observer = request.app.state.observer
    return HTMLResponse(await observer.page())


class Observer:
    """Looks, and keeps the page for a moment."""

    def __init__(self, prometheus: Prometheus, broker: Redis, results: Redis, *, name: str = "API") -> None:
        """Look at these; ``name`` is what makes the page."""
        self._prometheus, self._broker, self._results, self._name = prometheus, broker, results, name
        self._page = ""
        self._taken = float("-inf")
        self._lock = asyncio.Lock()

    async def page(self) -> str:
        """Return the page; it says so when Redis does not answer."""
        async with self._lock:
            if time.monotonic() - self._taken > SNAPSHOT_SECONDS:
                seen, recent, results = await asyncio.gather(
                    _in_time(self._prometheus.snapshot()),
                    _in_time(last_hour(self._broker)),
                    _in_time(self._results.ping()),
                )
                self._page = render(seen or Snapshot(), recent, results=bool(results), name=self._name)
                self._taken = time.monotonic()
            return self._page


async def _in_time(question: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(BUDGET):
            return await question
    except (RedisError, OSError):  # OSError: TimeoutError, too
        return None


def render(seen: Snapshot, recent: Recent | None, *, results: bool, name: str = "API") -> str:
    """Return the page.

    Args:
        seen: what Prometheus gets.
        recent: the last hour; None when the broker does not answer.
        results: whether the Redis with the results answers.
        name: what makes the page.
    """
    broker = seen.up and recent is not None
    recent = recent or Recent(now=int(time.time()))
    parts = [Part(name, "ok", "works", "It made this page."), *parts_of(seen, recent, broker=broker, results=results)]
    outcomes = {name: sum(minute.get(name, 0) for minute in recent.minutes) for name in (SUCCEEDED, RETRIED)}
    waits = [minute["wait_sum"] / minute["wait"] for minute in recent.minutes if minute.get("wait")]
    waited = sum(minute.get("wait", 0) for minute in recent.minutes)
    return _PAGE.render(
        style=Markup(_STYLE),  # noqa: S704 - our own file
        refresh=REFRESH_SECONDS,
        host=os.uname().nodename,
        headline=headline(parts, recent.alerts),
        parts=parts,
        broker=broker,
        seen=seen,
        recent=recent,
        alive_seconds=ALIVE_SECONDS,
        succeeded=outcomes[SUCCEEDED],
        retried=outcomes[RETRIED],
        failed=sum(map(failed, recent.minutes)),
        most_ended=max(map(ended, recent.minutes)),
        throughput=throughput(recent),
        mean_wait=sum(minute.get("wait_sum", 0) for minute in recent.minutes) / waited if waited else None,
        longest_wait=max(waits, default=0),
        waiting=waiting(recent, max(waits, default=0)),
    )


_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(duration=duration, time=date_and_time)
_PAGE = _environment.get_template("status.html")
