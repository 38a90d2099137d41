"""Measure, judge, and write the page."""

import importlib.metadata
import json
import os
import subprocess
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tests.bench.performance import measures, sides
from tests.bench.performance.figures import API, ASYNCIO, BARE, BATCH, GUIDE, IDEAL, Figures, fallen
from tests.bench.performance.page import page
from tests.bench.scaling.page import machine
from tests.bench.scaling.processes import machine_ticks
from tests.support import REPOSITORY

BASELINE = "docs/reports/performance.json"
DRAFTS = REPOSITORY / ".cache/performance"
PEERS = {sides.BENCH: ("dramatiq", "taskiq", "taskiq-redis"), sides.BENCH_ARQ: ("arq",)}
# A machine with more other work than that is no place to measure.
QUIET = 0.1


class Run:
    """The figures of all rounds so far."""

    def __init__(self, rounds: int, draft: bool) -> None:
        """Choose how long it takes."""
        self.rounds = rounds
        self.wait_seconds, self.burst_seconds, self.tasks, self.load_seconds = (
            (0.2, 0.5, 500, 1.0) if draft else (1.0, 10.0, 3000, 5.0)
        )
        self.figures: Figures = {}
        self._began = time.monotonic()

    def _step(self, what: str) -> None:
        click.echo(f"{time.monotonic() - self._began:4.0f} s  {what}")

    def add(self, name: str, side: str, value: float) -> None:
        """Keep the value of a round."""
        self.figures.setdefault(name, {}).setdefault(side, []).append(value)

    def _add_load(self, name: str, side: str, load: measures.Load) -> None:
        self.add(name, side, load.rate)
        for key, value in asdict(load).items():
            if key != "rate":
                self.add(f"{name}_{key}", side, value)

    def measure(self, root: Path, number: int) -> None:
        """Measure each side once."""

        def new() -> Path:
            return Path(tempfile.mkdtemp(dir=root))

        for side in sides.WAITING:
            self._step(f"round {number}: runs that wait, {side.name}")
            rate, mib = measures.waiting(side, new(), self.wait_seconds)
            self.add("waiting", side.name, rate)
            self.add("waiting_mib", side.name, mib)
        for side in sides.NOTHING:
            self._step(f"round {number}: tasks that do nothing, {side.name}")
            self.add("nothing", side.name, measures.nothing(side, new(), self.tasks))
        self._step(f"round {number}: a thousand runs")
        (pool,) = (side for side in sides.WAITING if side.name == ASYNCIO)
        self.add("thousand", ASYNCIO, measures.burst(pool, new(), self.burst_seconds))
        self.add("thousand", IDEAL, 2 * self.burst_seconds)
        self._step(f"round {number}: requests")
        self._add_load("health", BARE, measures.bare_route(new(), self.load_seconds))
        for name, load in measures.guide_api(new(), self.load_seconds).items():
            self._add_load(name, GUIDE, load)
        loads = measures.our_api(new(), self.load_seconds)
        self._add_load("batch", API, loads.pop("single"))
        self._add_load("batch", BATCH, loads.pop("batch"))
        self.figures["batch"][BATCH][-1] *= measures.BATCH  # tasks
        for name, load in loads.items():
            self._add_load(name, API, load)

    def report(self) -> dict[str, Any]:
        """Return what the page and later runs need."""
        return {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "commit": _git("describe", "--always", "--dirty"),
            "machine": machine(),
            "versions": _versions(),
            "rounds": self.rounds,
            "wait_seconds": self.wait_seconds,
            "burst_seconds": self.burst_seconds,
            "tasks": self.tasks,
            "seconds": round(time.monotonic() - self._began),
            "figures": self.figures,
        }


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()


def _versions() -> dict[str, str]:
    """Return the releases that are compared."""
    found = {name: importlib.metadata.version(name) for name in ("celery", "redis")}
    for python, names in PEERS.items():
        code = f"from importlib.metadata import version\nfor name in {names}: print(name, version(name))"
        output = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
        found |= dict(line.split() for line in output.splitlines())
    return found


def _baseline() -> Figures | None:
    """Return the committed figures, whatever lies in the tree."""
    result = subprocess.run(
        ["git", "show", f"HEAD:{BASELINE}"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        return None
    figures: Figures = json.loads(result.stdout)["figures"]
    return figures


def _write(report: dict[str, Any], reports: Path, images: Path) -> None:
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "performance.json").write_text(json.dumps(report, indent=1) + "\n")
    (reports / "performance.md").write_text(page(report))
    images.mkdir(parents=True, exist_ok=True)
    command = [sides.BENCH, "-m", "tests.bench.performance.plots", str(reports / "performance.json"), str(images)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    click.echo(reports / "performance.md")


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often each side is measured.")
@click.option("--draft", is_flag=True, help=f"Short rounds of whatever is in the tree; written into {DRAFTS.name}.")
def main(rounds: int, draft: bool) -> None:
    """Measure and write docs/reports/performance.md; some twelve minutes."""
    if not draft and _git("status", "--porcelain"):
        raise click.ClickException("files are changed that no commit has: commit them, or measure with --draft.")
    run, busy = Run(rounds, draft), machine_ticks()
    with tempfile.TemporaryDirectory(prefix="performance", dir="/var/tmp") as directory:  # on a disk, unlike /tmp
        for number in range(1, rounds + 1):
            run.measure(Path(directory), number)
    used = [now - before for now, before in zip(machine_ticks(), busy, strict=True)]
    others = max(used[0] - sum(os.times()[:4]) - sum(measures.orphans_cpu), 0) / used[1]
    report = {**run.report(), "others": round(others, 3), "draft": draft}
    found = fallen(_baseline() or {}, run.figures)
    if draft or found or others > QUIET:
        _write(report, DRAFTS / "reports", DRAFTS / "images")
    else:
        _write(report, REPOSITORY / "docs/reports", REPOSITORY / "docs/images")
    if found:
        raise click.ClickException(f"{'; '.join(found)}: find the change that did it, or run it again.")
    if others > QUIET and not draft:
        raise click.ClickException(f"other work took {others:.0%} of the processors: run it on a quiet machine.")


if __name__ == "__main__":
    main()
