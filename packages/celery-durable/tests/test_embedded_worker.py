"""Applications whose own tests start a worker in their process, with Celery's tools."""

import sys
from pathlib import Path

import pytest

from tests.support import Program, Stack

pytestmark = pytest.mark.integration

PROGRAM = """
import sys
from celery import Celery
from celery.contrib.testing.worker import start_worker
import celery_durable

app = Celery("embedded", broker=sys.argv[1], backend=sys.argv[2], set_as_current=True)
celery_durable.install(app)

@app.task
def add(x, y):
    return x + y

for pool in ("solo", "threads", "solo"):
    with start_worker(app, pool=pool, concurrency=2, perform_ping_check=False):
        print(pool, add.delay(1, 2).get(timeout=10), flush=True)
"""


def test_a_worker_inside_another_process_works_and_may_be_started_again(stack: Stack, tmp_path: Path) -> None:
    urls = stack.redis.url(0), stack.redis.url(1)
    program = Program([sys.executable, "-c", PROGRAM, *urls], tmp_path / "embedded.log", {})
    assert program.process.wait(60) == 0, program.output()
    assert program.output().split() == ["solo", "3", "threads", "3", "solo", "3"]
    assert stack.nothing_waits()
