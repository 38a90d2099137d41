"""Ratios, and whether one of ours has fallen; with the standard library alone, for the plots' environment."""

import statistics
from dataclasses import dataclass

# Of each measure and side the value of each round.
Figures = dict[str, dict[str, list[float]]]

GUIDE, BARE, IDEAL = "the guide's way", "a bare route", "without any overhead"
PREFORK, THREADS, ASYNCIO = "ours, prefork", "ours, threads", "ours, asyncio"
EVERYSEC, API, BATCH = "ours, prefork, fsync each second", "ours", "ours, batches of 100"

# A ratio that falls below this share of the committed one fails the run.
LEAST = 0.8


@dataclass(frozen=True)
class Measure:
    """What is measured of several sides, beside a reference in the same round."""

    title: str
    reference: str = GUIDE
    more_is_better: bool = True
    judged: bool = True  # the slowest requests of a short run vary too much


MEASURES = {
    "waiting": Measure("runs of 1 s that wait, a second"),
    "waiting_mib": Measure("memory of the worker that waits", more_is_better=False),
    "nothing": Measure("tasks that do nothing, a second"),
    "thousand": Measure("1,000 runs of 10 s at 500 slots", IDEAL, more_is_better=False),
    "enqueue": Measure("enqueue requests a second"),
    "enqueue_p99": Measure("enqueue, 99th percentile", more_is_better=False, judged=False),
    "status": Measure("status requests a second"),
    "status_p99": Measure("status, 99th percentile", more_is_better=False, judged=False),
    "health": Measure("health requests a second", BARE),
    "batch": Measure("tasks enqueued in batches, a second", API),
}


def ratio(figures: Figures, name: str, side: str) -> float:
    """Return how much better a side is than the reference: the median of the rounds' ratios, above 1 is better."""
    measure, sides = MEASURES[name], figures[name]
    pairs = zip(sides[side], sides[measure.reference], strict=True)
    return statistics.median(value / other if measure.more_is_better else other / value for value, other in pairs)


def fallen(baseline: Figures, figures: Figures) -> list[str]:
    """Return which ratios of ours have fallen too far, or are measured no more."""
    found = []
    for name, measure in MEASURES.items():
        for side in baseline.get(name, {}):
            if not measure.judged or not side.startswith("ours") or side == measure.reference:
                continue
            if side not in figures.get(name, {}):
                found.append(f"{measure.title} ({side}) is missing")
                continue
            before, now = ratio(baseline, name, side), ratio(figures, name, side)
            if now < LEAST * before:
                found.append(f"{measure.title} ({side}) fell from {before:.2f} to {now:.2f} of {measure.reference}")
    return found
