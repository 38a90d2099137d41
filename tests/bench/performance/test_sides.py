"""Each side's worker runs both tasks, and stores their results."""

import subprocess
from pathlib import Path

import pytest
import redis

from celery_durable.testing import wait_for
from tests.bench.performance.measures import Installation
from tests.bench.performance.sides import NOTHING, Side
from tests.support import REPOSITORY

# Where the libraries that are not Celery keep results; arq's lie beside its queue.
RESULTS = {"arq": "arq:result:*", "dramatiq": "*", "taskiq": "*"}

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    subprocess.run([REPOSITORY / "scripts/setup.sh", "bench"], check=True)


@pytest.mark.parametrize("side", NOTHING, ids=lambda side: side.name)
def test_a_worker_runs_both_tasks(side: Side, tmp_path: Path) -> None:
    with Installation(tmp_path, side.fsync, side.env) as installation:
        installation.fill(side, "tiny", 1, 1)
        installation.fill(side, "wait", 0.1, 1)
        worker = installation.work(side)
        installation.wait_for(2, worker, 30)
        results = redis.Redis.from_url(installation.env[f"BENCH_{'BROKER' if side.name == 'arq' else 'RESULTS'}_URL"])
        pattern = RESULTS.get(side.name, "celery-task-meta-*")
        wait_for(lambda: len(list(results.scan_iter(pattern))) == 2)
