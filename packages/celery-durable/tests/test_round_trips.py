"""What a run costs Redis, and that what is stored with less of it is as safe."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

import celery_durable
from celery_durable.testing import Program, RedisServer, wait_for

pytestmark = pytest.mark.integration

TASKS = 300
# For each run: its message is taken, its start and its end are stored, it is acknowledged, and in the first minute of a
# connection its result is looked up before. What a worker does each second counts, too.
MOST = {"prefork": 5.5, "asyncio": 2.5}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Redis, for queue and results."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.mark.parametrize("pool", MOST)
def test_runs_take_few_round_trips(server: RedisServer, tmp_path: Path, pool: str) -> None:
    ledger = tmp_path / "ledger"
    env = {**server.environment(0, 1), "LEDGER": str(ledger)}
    client, observer = Celery(broker=server.url(0), set_as_current=False), server.client(0)
    for number in range(TASKS):
        client.send_task("asyncio_worker.waiting", (f"n{number}", 0))

    def round_trips() -> int:
        return int(observer.info("stats")["total_reads_processed"])

    def ended() -> int:
        return ledger.read_text().count("end ") if ledger.exists() else 0

    options = ["--pool", pool, "-c", {"prefork": "4", "asyncio": "100"}[pool], "-l", "info"]
    command = [sys.executable, "-m", "celery_durable", "-A", "asyncio_worker", "worker", *options]
    before = round_trips()
    worker = Program(command, tmp_path / "worker.log", env, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: ended() == TASKS, "all have ended", 60)
        assert (round_trips() - before) / TASKS < MOST[pool]
        wait_for(lambda: observer.hlen("accepted") == 0)
    finally:
        worker.stop(signal.SIGTERM)


@pytest.fixture
def app(server: RedisServer) -> Celery:
    """An application that has the library."""
    app = Celery(broker=server.url(0), backend=server.url(1), set_as_current=False)
    celery_durable.install(app)
    return app


def test_the_first_success_of_a_task_stays(app: Celery) -> None:
    for state, result in [("STARTED", {}), ("SUCCESS", "first")]:
        app.backend.store_result("task", result, state)
        assert app.AsyncResult("task").status == state
    for state, result in [("STARTED", {}), ("SUCCESS", "second")]:
        app.backend.store_result("task", result, state)
        assert app.AsyncResult("task").result == "first"


@pytest.mark.parametrize("earlier", [states.RETRY, "PROGRESS", states.STARTED, states.FAILURE])
def test_a_start_replaces_what_is_no_success(app: Celery, earlier: str) -> None:
    result: Any = ValueError("earlier") if earlier in states.EXCEPTION_STATES else {}
    app.backend.store_result("task", result, earlier)
    app.backend.store_result("task", {"pid": 1}, states.STARTED)
    assert app.AsyncResult("task").status == states.STARTED
    app.backend.store_result("task", "done", states.SUCCESS)
    assert app.AsyncResult("task").result == "done"


def test_results_go_after_their_time(app: Celery, server: RedisServer) -> None:
    app.conf.result_expires = 60
    for state in (states.STARTED, states.SUCCESS):
        app.backend.store_result("task", "done", state)
        assert 0 < server.client(1).ttl("celery-task-meta-task") <= 60


def unread(server: RedisServer) -> int:
    """Return the bytes of Redis' that lie in the kernel's memory, because nobody reads them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].partition(":")[2], 16) for line in lines if line[2].endswith(f":{server.port:04X}"))


def test_who_sends_tasks_and_waits_for_no_result_leaves_nothing_unread(app: Celery, server: RedisServer) -> None:
    """https://github.com/celery/celery/issues/6963."""
    for _ in range(500):
        app.send_task("unknown")
    assert unread(server) < 5_000


def test_who_waits_gets_a_result_while_others_send(app: Celery) -> None:
    app.conf.result_backend_thread_safe = True  # one connection for results, as in many web processes
    waiting = [app.send_task("unknown") for _ in range(20)]
    with ThreadPoolExecutor(len(waiting)) as threads:
        results = [threads.submit(result.get, timeout=20) for result in waiting]
        for result in waiting:
            for _ in range(10):
                app.send_task("unknown")
            app.backend.store_result(result.id, result.id, states.SUCCESS)
        assert [result.result() for result in results] == [result.id for result in waiting]
