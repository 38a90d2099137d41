"""The plots of the last hour."""

from dataclasses import dataclass

from celery_durable.metrics import RETRIED, SUCCEEDED
from durable_console.web.status.formats import date_and_time, duration
from durable_console.web.status.last_hour import MINUTES, Recent, ended, failed

# Heights in a plot are shares of this.
FULL = 100.0


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


def throughput(recent: Recent) -> list[Column]:
    """Return the runs that ended in each minute, by outcome."""
    most = max(map(ended, recent.minutes))
    columns = []
    for x, minute in enumerate(recent.minutes):
        if not ended(minute):
            continue
        counts = {"ok": minute.get(SUCCEEDED, 0), "warn": minute.get(RETRIED, 0), "bad": failed(minute)}
        bars, y = [], FULL
        for kind, count in counts.items():
            height = FULL * count / most
            y -= height
            if count:
                bars.append(Bar(kind, y, height))
        title = f"{counts['ok']:.0f} succeeded, {counts['warn']:.0f} retried, {counts['bad']:.0f} failed"
        columns.append(Column(x, f"{_clock(recent, x)}: {title}", bars))
    return columns


def waiting(recent: Recent, longest: float) -> list[Column]:
    """Return how long tasks waited in each minute."""
    columns = []
    for x, minute in enumerate(recent.minutes):
        if count := minute.get("wait"):
            mean = minute["wait_sum"] / count
            height = FULL * mean / (longest or 1)
            title = f"{_clock(recent, x)}: {duration(mean)} on average"
            columns.append(Column(x, title, [Bar("wait", FULL - height, height)]))
    return columns


def _clock(recent: Recent, x: int) -> str:
    return date_and_time((recent.now // 60 - MINUTES + 1 + x) * 60)[-8:-3]
