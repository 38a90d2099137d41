"""Measure, and write the page."""

import os
import tempfile
import time
from pathlib import Path

import click

from tests.bench.scaling.costs import SLOTS, Tiny, measure_api, measure_replicas, measure_tiny, measure_waiting
from tests.bench.scaling.full import check_mix, measure_limits
from tests.bench.scaling.page import PREFORK, TINY, Measured, page
from tests.bench.scaling.processes import flush_seconds, machine_ticks
from tests.support import REPOSITORY

PAGE = REPOSITORY / "docs/reports/scaling-measured.md"


@click.command()
@click.option("--rounds", default=3, show_default=True, help="How often rates that have a reference are measured.")
@click.option("--quick", is_flag=True, help="One short round, only to try the script.")
@click.option("--page", "path", default=PAGE, type=click.Path(path_type=Path), help="Where the page is written.")
def main(rounds: int, quick: bool, path: Path) -> None:
    """Measure and write the page; some five minutes."""
    seconds, tasks, share = (1.0, 600, 0.5) if quick else (5.0, 3000, 1.0)
    rounds = 1 if quick else rounds
    busy, began = machine_ticks(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scaling", dir="/var/tmp") as name:  # on a disk, unlike /tmp
        directory = Path(name)

        def step(what: str) -> None:
            click.echo(f"{time.monotonic() - began:4.0f} s  {what}")

        step("disk")
        flush = flush_seconds(directory)
        step("API")
        api = measure_api(directory / "api", seconds)
        tiny: dict[str, list[Tiny]] = {name: [] for name in TINY}
        for number in range(rounds):
            for kind, (app, pool, slots) in TINY.items():
                step(f"tasks that do nothing, round {number + 1}: {kind}")
                tiny[kind].append(measure_tiny(directory / f"tiny{number}{app}{pool}", app, pool, slots, tasks))
        waiting = {}
        for pool in SLOTS:
            step(f"runs that wait: {pool}")
            waiting[pool] = measure_waiting(directory / f"waiting-{pool}", pool, seconds, share)
        step("full Redis")
        limits = measure_limits(directory / "limits", api.sample, waiting["prefork"].result, seconds)
        check_mix(api, tiny[PREFORK][-1], limits.best)
        step("replicas")
        replicas = measure_replicas(directory / "replicas", rounds, seconds / 2)
    needed = time.monotonic() - began
    used = [now - before for now, before in zip(machine_ticks(), busy, strict=True)]
    ours = sum(os.times()[:4])
    others = max(used[0] - ours, 0) / used[1]
    path.write_text(page(Measured(api, tiny, waiting, limits, replicas, flush, others, needed, quick)))
    click.echo(f"{needed:4.0f} s  {path}")


if __name__ == "__main__":
    main()
