"""Load test: ``python tests/load_test_celery.py --tasks 100 --concurrent 10`` against a running API and worker.

The API's key comes from the environment, BACKEND_API_KEY; of several the first is taken.

Each of the concurrent clients enqueues a task, waits for its end and takes the next one. The task time is how long a
task ran, without its wait in the queue: from the first status that says it runs to the one that says it is done. The
statuses are polled, so that each figure is exact to POLL_INTERVAL or so.

Exit code 1: the API cannot be used, fewer than 95 % of the tasks succeeded, a worker vanished, or the mean task time
exceeds 5 seconds.
"""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass
from statistics import fmean, quantiles

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

MIN_COMPLETED = 0.95
MAX_MEAN_TASK_TIME = 5.0  # seconds
POLL_INTERVAL = 0.1  # seconds
TASK_TIMEOUT = 120.0  # seconds from its acceptance until a task counts as not completed


@dataclass
class Sample:
    """One task; seconds, None for what was not reached."""

    enqueue: float | None = None
    run: float | None = None
    total: float | None = None


async def workers(client: httpx.AsyncClient) -> set[str]:
    """Return the names of the workers that answer."""
    names: list[str] = (await client.get("/health/celery")).json()["workers"]
    return set(names)


async def run_task(client: httpx.AsyncClient) -> Sample:
    """Enqueue one task and follow it to its end; a refused or failed task is a sample without times."""
    started = time.monotonic()
    response = await client.post("/tasks/enqueue", json={"data": {"load_test": True}})
    accepted = time.monotonic()
    if response.status_code != 202:
        return Sample()
    sample = Sample(enqueue=accepted - started)
    task_id = response.json()["task_id"]
    running: float | None = None
    while time.monotonic() - accepted < TASK_TIMEOUT:
        answer = await client.get(f"/tasks/status/{task_id}")
        now = time.monotonic()
        status = answer.json()["status"] if answer.status_code == 200 else "PENDING"
        if status == "SUCCESS":
            sample.run, sample.total = now - (running or now), now - accepted
            return sample
        if status in {"FAILURE", "REVOKED"}:
            return sample
        if status != "PENDING" and running is None:
            running = now
        await asyncio.sleep(POLL_INTERVAL)
    return sample


def key_header() -> dict[str, str]:
    """Return the header with the key, if there is one: a laptop's API may need none."""
    keys = os.environ.get("BACKEND_API_KEY", "").replace(",", " ").split()
    return {"X-API-Key": keys[0]} if keys else {}


async def run_all(url: str, tasks: int, concurrent: int, console: Console) -> tuple[list[Sample], set[str]]:
    """Run the tasks and return their samples and the workers that vanished meanwhile.

    Raises:
        SystemExit: there is no API, it wants another key, or it has no workers.
    """
    samples: list[Sample] = []
    limits = httpx.Limits(max_connections=concurrent)
    columns = (TextColumn("Tasks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with httpx.AsyncClient(base_url=url, headers=key_header(), limits=limits, timeout=10) as client:
        try:
            before = await workers(client)
        except (httpx.HTTPError, ValueError, KeyError):
            raise SystemExit(
                f"The API does not answer at {url}: start it, or name another address with --url."
            ) from None
        if (await client.get("/metrics/celery")).status_code == 401:
            raise SystemExit("The API refuses the key: give it in the environment, as BACKEND_API_KEY.")
        if not before:
            raise SystemExit(f"No worker answers (see {url}/health/celery): start one first.")

        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("tasks", total=tasks)
            numbers = iter(range(tasks))

            async def take_tasks() -> None:
                for _ in numbers:
                    try:
                        samples.append(await run_task(client))
                    except httpx.HTTPError:
                        samples.append(Sample())
                    progress.advance(bar)

            await asyncio.gather(*(take_tasks() for _ in range(concurrent)))
        return samples, before - await workers(client)


def report(samples: list[Sample], vanished: set[str], seconds: float, console: Console) -> list[str]:
    """Print the figures and return what is wrong with them, a sentence each."""
    completed = [sample for sample in samples if sample.run is not None]
    figures = {
        "Enqueue": [sample.enqueue for sample in samples if sample.enqueue is not None],
        "Task time": [sample.run for sample in completed if sample.run is not None],
        "Completion": [sample.total for sample in completed if sample.total is not None],
    }
    table = Table("seconds", "mean", "p50", "p95", "p99", "max")
    for name, values in figures.items():
        if len(values) > 1:
            cuts = quantiles(values, n=100, method="inclusive")
            shown = (fmean(values), cuts[49], cuts[94], cuts[98], max(values))
            table.add_row(name, *(f"{value:.3f}" for value in shown))
    console.print(table)
    console.print(f"{len(completed)} of {len(samples)} tasks completed in {seconds:.1f} s.")

    problems = []
    if len(completed) < MIN_COMPLETED * len(samples):
        problems.append(
            f"Only {len(completed) / len(samples):.1%} of the tasks completed, {MIN_COMPLETED:.0%} are needed."
        )
    if vanished:
        problems.append(f"Workers vanished during the test: {', '.join(sorted(vanished))}.")
    if completed and (mean := fmean(figures["Task time"])) > MAX_MEAN_TASK_TIME:
        problems.append(f"The mean task time is {mean:.1f} s, more than {MAX_MEAN_TASK_TIME:.0f} s.")
    return problems


def positive(text: str) -> int:
    """Convert an argument that must be a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> None:
    """Run the test; exit 1 with a sentence for each criterion that is not met."""
    parser = argparse.ArgumentParser(description="Load test of API and workers.")
    parser.add_argument("--tasks", type=positive, default=100, help="tasks in all (100)")
    parser.add_argument("--concurrent", type=positive, default=10, help="tasks at the same time (10)")
    parser.add_argument("--url", default="http://localhost:8000", help="address of the API (http://localhost:8000)")
    arguments = parser.parse_args()
    console = Console()
    started = time.monotonic()
    samples, vanished = asyncio.run(run_all(arguments.url, arguments.tasks, arguments.concurrent, console))
    if problems := report(samples, vanished, time.monotonic() - started, console):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
