"""The status page: one look at everything, for people; it needs no script and nothing from elsewhere.

However many look, Redis is asked once in SNAPSHOT_SECONDS by each process: what Prometheus gets, and about 60 commands
in one round trip for the last hour.
"""

import asyncio
import os
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from redis.asyncio import Redis
from redis.exceptions import RedisError

from celery_durable import entries
from celery_durable.aio.workforce import ALIVE_SECONDS
from celery_durable.keys import ALERTS
from celery_durable.metrics import DIED, FAILED, FAILURES, FAILURES_KEPT, MINUTE, RETRIED, SUCCEEDED, TIMED_OUT
from durable_console.web.alerts import Firing, firing, heard
from durable_console.web.errors import documented
from durable_console.web.headers import page_policy
from durable_console.web.prometheus import SNAPSHOT_SECONDS, Prometheus, Snapshot
from durable_console.web.security import PageRoute

T = TypeVar("T")

PATH = "/status"
MINUTES = 60
# Seconds for the answers of Redis; a reader waits for one second at most.
BUDGET = 0.8
# Seconds after which Alertmanager counts as silent; its watchdog comes every five minutes.
SILENT_SECONDS = 600
REFRESH_SECONDS = 10
# Heights in a plot are shares of this.
FULL = 100.0

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "status.css").read_text()
POLICY = page_policy(_STYLE)

router = APIRouter(tags=["status"], route_class=PageRoute, responses=documented(401, 429))


@router.get(PATH, response_model=None, responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}})
async def status(request: Request) -> HTMLResponse:
    """Show the state of all parts, the last hour, and what fails; for people."""
    observer: Observer = request.app.state.observer
    return HTMLResponse(await observer.page())


@dataclass(frozen=True)
class Part:
    """A part of the platform; ``state`` (ok, warn, bad, unknown) chooses the colour of ``word``."""

    name: str
    state: str
    word: str
    text: str


@dataclass(frozen=True)
class Bar:
    """A piece of a plot's column, from its lower end ``y`` on; y grows downwards."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True)
class Column:
    """A minute in a plot."""

    x: int
    title: str
    bars: list[Bar]


@dataclass
class Recent:
    """What Redis said of the last hour; nothing when it was away."""

    now: int = 0
    minutes: list[dict[str, float]] = field(default_factory=lambda: [{} for _ in range(MINUTES)])  # the oldest first
    failures: list[dict[str, Any]] = field(default_factory=list)
    heard: float | None = None
    alerts: list[Firing] = field(default_factory=list)
    bad: int = 0  # entries that are not of the expected form


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
                    _in_time(self._prometheus.snapshot()), _in_time(self._recent()), _in_time(self._results.ping())
                )
                self._page = render(seen or Snapshot(), recent, results=bool(results), name=self._name)
                self._taken = time.monotonic()
            return self._page

    async def _recent(self) -> Recent:
        now, _ = await self._broker.time()
        pipeline = self._broker.pipeline(transaction=False)
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
    parts = [Part(name, "ok", "works", "It made this page."), *_parts(seen, recent, broker=broker, results=results)]
    outcomes = {name: sum(minute.get(name, 0) for minute in recent.minutes) for name in (SUCCEEDED, RETRIED)}
    waits = [minute["wait_sum"] / minute["wait"] for minute in recent.minutes if minute.get("wait")]
    waited = sum(minute.get("wait", 0) for minute in recent.minutes)
    return _PAGE.render(
        style=Markup(_STYLE),  # noqa: S704 - our own file
        refresh=REFRESH_SECONDS,
        host=os.uname().nodename,
        headline=_headline(parts, recent.alerts),
        parts=parts,
        broker=broker,
        seen=seen,
        recent=recent,
        alive_seconds=ALIVE_SECONDS,
        succeeded=outcomes[SUCCEEDED],
        retried=outcomes[RETRIED],
        failed=sum(map(_failed, recent.minutes)),
        most_ended=max(map(_ended, recent.minutes)),
        throughput=_throughput(recent),
        mean_wait=sum(minute.get("wait_sum", 0) for minute in recent.minutes) / waited if waited else None,
        longest_wait=max(waits, default=0),
        waiting=_waiting(recent, max(waits, default=0)),
    )


def _parts(seen: Snapshot, recent: Recent, *, broker: bool, results: bool) -> list[Part]:
    return [
        _redis_part("Broker", broker, "tasks are neither accepted nor begun"),
        _redis_part("Results", results, "tasks in hand wait until they can store theirs"),
        _workers_part(seen, broker=broker),
        _alerting_part(recent, broker=broker),
        *_entries_part(seen, recent),
    ]


def _redis_part(name: str, up: bool, impact: str) -> Part:
    if up:
        return Part(name, "ok", "works", "Redis answers.")
    return Part(name, "bad", "broken", f"Redis does not answer: {impact}.")


def _workers_part(seen: Snapshot, *, broker: bool) -> Part:
    if not broker:
        return Part("Workers", "unknown", "unknown", "They report through the broker.")
    alive = sum(state["silent"] < ALIVE_SECONDS for state in seen.workers.values())
    expected = seen.workers_expected
    text = f"{alive} of {expected} alive." if expected else f"{alive} alive."
    if not alive:
        return Part("Workers", "bad", "broken", f"{text} Tasks wait.")
    if alive < expected:
        return Part("Workers", "warn", "too few", text)
    return Part("Workers", "ok", "works", text)


def _alerting_part(recent: Recent, *, broker: bool) -> Part:
    if not broker:
        return Part("Alerting", "unknown", "unknown", "Alerts are kept in the broker.")
    if recent.heard is None:
        return Part("Alerting", "unknown", "not heard", "Without a monitoring host there is nothing to hear.")
    if recent.heard > SILENT_SECONDS:
        text = f"Alertmanager was last heard {_duration(recent.heard)} ago: alerts may not arrive."
        return Part("Alerting", "bad", "silent", text)
    return Part("Alerting", "ok", "works", f"Alertmanager was heard {_duration(recent.heard)} ago.")


def _entries_part(seen: Snapshot, recent: Recent) -> list[Part]:
    """Return a part only when something is wrong."""
    keys = sorted(key for key, number in seen.bad.items() if number)
    if not keys and not recent.bad:
        return []
    where = f" ({', '.join(keys)})" if keys else ""
    text = f"Entries of the broker's keys{where} are not of the expected form and are not shown."
    return [Part("Entries", "warn", "unreadable", text)]


def _headline(parts: list[Part], alerts: list[Firing]) -> tuple[str, str]:
    """Return the state of the whole, and a sentence."""
    wrong = [part for part in parts if part.state in {"warn", "bad"}]
    sentences = [f"{part.name}: {part.word}" for part in wrong]
    if alerts:
        sentences.append("1 alert fires" if len(alerts) == 1 else f"{len(alerts)} alerts fire")
    if not sentences:
        return "ok", "All parts work"
    bad = any(part.state == "bad" for part in wrong) or any(alert.severity == "critical" for alert in alerts)
    return "bad" if bad else "warn", ", ".join(sentences)


def _failed(minute: dict[str, float]) -> float:
    return sum(minute.get(name, 0) for name in (FAILED, TIMED_OUT, DIED))


def _ended(minute: dict[str, float]) -> float:
    return minute.get(SUCCEEDED, 0) + minute.get(RETRIED, 0) + _failed(minute)


def _throughput(recent: Recent) -> list[Column]:
    most = max(map(_ended, recent.minutes))
    columns = []
    for x, minute in enumerate(recent.minutes):
        if not _ended(minute):
            continue
        counts = {"ok": minute.get(SUCCEEDED, 0), "warn": minute.get(RETRIED, 0), "bad": _failed(minute)}
        bars, y = [], FULL
        for kind, count in counts.items():
            height = FULL * count / most
            y -= height
            if count:
                bars.append(Bar(kind, y, height))
        title = f"{counts['ok']:.0f} succeeded, {counts['warn']:.0f} retried, {counts['bad']:.0f} failed"
        columns.append(Column(x, f"{_clock(recent, x)}: {title}", bars))
    return columns


def _waiting(recent: Recent, longest: float) -> list[Column]:
    columns = []
    for x, minute in enumerate(recent.minutes):
        if count := minute.get("wait"):
            mean = minute["wait_sum"] / count
            height = FULL * mean / (longest or 1)
            title = f"{_clock(recent, x)}: {_duration(mean)} on average"
            columns.append(Column(x, title, [Bar("wait", FULL - height, height)]))
    return columns


def _clock(recent: Recent, x: int) -> str:
    return _time((recent.now // 60 - MINUTES + 1 + x) * 60)[-8:-3]


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    """Say a duration in one unit, with two digits at least where it has them."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


_environment = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(duration=_duration, time=_time)
_PAGE = _environment.get_template("status.html")
