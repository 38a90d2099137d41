"""The page docs/reports/scaling-measured.md."""

import os
import platform
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tests.bench.scaling import costs, full, load, plan
from tests.bench.scaling.costs import GUIDE, OURS, ApiCosts, Replicated, Tiny, Waiting
from tests.bench.scaling.full import Limits
from tests.bench.scaling.processes import GIB, MIB
from tests.support import REPOSITORY

TEMPLATE = Path(__file__).with_name("page.md.j2")
# A machine with more other work than that is no place to measure.
QUIET = 0.05
# What opens or describes a connection: it belongs to no task.
CONNECTION = ("hello", "auth", "select", "client|setinfo", "client|setname")

REFERENCE, PREFORK, THREADS = "Celery as it comes, prefork, 2 slots", "ours, prefork, 2 slots", "ours, threads, 8 slots"
TINY = {REFERENCE: (GUIDE, "prefork", 2), PREFORK: (OURS, "prefork", 2), THREADS: (OURS, "threads", 8)}


@dataclass(frozen=True)
class Measured:
    """Everything."""

    api: ApiCosts
    tiny: dict[str, list[Tiny]]
    waiting: dict[str, Waiting]
    limits: Limits
    replicas: dict[str, list[Replicated]]
    flush: float
    others: float  # share of the processors that other work took
    needed: float  # seconds
    quick: bool

    def median(self, name: str, value: Callable[[Tiny], float]) -> float:
        """Return the median of all rounds."""
        return statistics.median(map(value, self.tiny[name]))

    def prices(self, pool: str) -> plan.Prices:
        """Return what the worked example needs."""
        api, waiting = self.api, self.waiting[pool]
        return plan.Prices(
            api.enqueue.cpu,
            waiting.polls.cpu,
            waiting.run,
            waiting.base * plan.HOST_WORKERS[pool],
            waiting.slot + plan.TASK_MIB[pool],
            self.limits.best.rate,
            self.limits.stores.rate,
            api.polled[1].cpu / api.polls,
            api.broker.memory / api.enqueued / MIB,
            self.median(PREFORK, lambda run: run.results.memory / run.done) / MIB,
        )


def _calls(calls: Counter[str], count: float) -> str:
    """Show the commands for each of so many: their sum, then the names."""
    each = {name: number / count for name, number in calls.items() if name not in CONNECTION and number / count >= 0.05}
    names = (f"{name.upper().replace('|', ' ')} {number:.2g}" for name, number in sorted(each.items()))
    return f"**{sum(each.values()):.3g}**: {', '.join(names)}" if each else "none"


def _first_line(path: str, name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1] if found else "unknown processor"


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """Describe what is measured on; no names."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    redis = _output("redis-server", "--version").partition("v=")[2].split()[0]
    return (
        f"{os.cpu_count()} cores, {_first_line('/proc/cpuinfo', 'model name')}, {memory:.0f} GiB; "
        f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Redis {redis}, Python {platform.python_version()}"
    )


def _ratio(runs: Iterable[float], references: Iterable[float]) -> float:
    return statistics.median(run / reference for run, reference in zip(runs, references, strict=True))


def page(measured: Measured) -> str:
    """Return the page."""
    environment = Environment(  # noqa: S701 - no HTML
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "ms": lambda seconds: f"{seconds * 1000:.2f}",
        "percent": lambda share, digits=0: f"{share:.{digits}%}",
        "number": lambda value, digits=0: f"{value:,.{digits}f}",
        "calls": _calls,
        "median": statistics.median,
        "ratio": _ratio,
    }
    return environment.from_string(TEMPLATE.read_text()).render(
        m=measured,
        api=measured.api,
        tiny=measured.tiny[PREFORK][-1],
        limits=measured.limits,
        best=measured.limits.best,
        runs_full=measured.limits.stores.rate / (2 + costs.REPORTS),
        reference=REFERENCE,
        quiet=measured.others < QUIET,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        commit=_output("git", "describe", "--always", "--dirty"),
        machine=machine(),
        costs=costs,
        full=full,
        load=load,
        plan=plan,
        MIB=MIB,
        GIB=GIB,
    )
