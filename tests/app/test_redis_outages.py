"""A Redis that is busy with a script, or is demoted under its blocked clients: an outage that ends no process."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_durable.testing import RedisServer, wait_for
from hosttools import redis_connection
from tests.support import Api, Program, start_worker

pytestmark = pytest.mark.integration

# Milliseconds after which Redis answers BUSY instead of nothing; 5 s by default.
THRESHOLD = 300
# Seconds that the script runs: longer than any timeout of a client.
BUSY = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Redis of this test alone."""
    server = RedisServer(tmp_path / "redis", busy_reply_threshold=str(THRESHOLD))
    yield server
    server.stop()


@pytest.fixture
def worker(server: RedisServer, tmp_path: Path) -> Iterator[Program]:
    """A worker with tasks that sleep."""
    program = start_worker(tmp_path / "worker.log", server.environment(0, 1), app="faulty_worker")
    yield program
    program.stop(signal.SIGKILL)


@pytest.fixture
def api(server: RedisServer, tmp_path: Path) -> Iterator[Api]:
    """An API of the same Redis."""
    api = Api(tmp_path / "api.log", server.environment(0, 1))
    yield api
    api.stop()


def run_script(server: RedisServer) -> threading.Thread:
    """Keep Redis busy until somebody kills the script."""

    def run() -> None:
        # Neither a timeout nor a second try of redis-py's own.
        client = redis_py.Redis.from_url(server.url(0), socket_timeout=None, retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis_py.ResponseError, match=r"(?i)killed"):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def answers_busy(server: RedisServer) -> bool:
    """Tell whether Redis says that it is busy."""
    try:
        server.client(0).ping()
    except redis_py.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_busy_is_an_outage(server: RedisServer, worker: Program, api: Api) -> None:
    done = api.enqueue({"key": "value"})
    api.wait(done)

    script = run_script(server)
    wait_for(lambda: answers_busy(server))
    deadline = time.monotonic() + BUSY
    while time.monotonic() < deadline:
        began = time.monotonic()
        response = api.post("/tasks/enqueue", json={"data": {"key": "value"}})
        assert response.status_code == 503, response.text
        assert "Retry-After" in response.headers
        assert time.monotonic() - began < 1.5
        assert api.get("/health/ready").status_code == 503
        assert api.get(f"/tasks/status/{done}").status_code == 503
    assert worker.process.poll() is None, worker.output()
    server.client(0).script_kill()
    script.join()

    api.wait(api.enqueue({"key": "value"}), seconds=20)
    assert worker.process.poll() is None
    assert "Unrecoverable" not in worker.output()


def test_the_runbook_names_it(server: RedisServer) -> None:
    script = run_script(server)
    wait_for(lambda: answers_busy(server))
    cause, what = redis_connection.hops(urlsplit(server.url(0)))
    server.client(0).script_kill()
    script.join()
    assert (cause, what.startswith("BUSY ")) == ("busy", True)
    assert cause in redis_connection.RANKS
    assert redis_connection.hops(urlsplit(server.url(0))) == ("", "")


def test_a_worker_that_starts_meanwhile_waits(server: RedisServer, api: Api, tmp_path: Path) -> None:
    script = run_script(server)
    wait_for(lambda: answers_busy(server))
    command = ["python", "-m", "celery", "-A", "app.agents.worker", "worker", "-c", "1", "-n", "late@%h"]
    worker = Program(command, tmp_path / "late.log", server.environment(0, 1))
    try:
        wait_for(lambda: "BUSY" in worker.output() or worker.process.poll() is not None)
        time.sleep(1)
        assert worker.process.poll() is None, worker.output()
        server.client(0).script_kill()
        script.join()
        worker.wait_for_output("ready.")
        api.wait(api.enqueue({"key": "value"}))
    finally:
        worker.stop(signal.SIGKILL)


def test_a_task_that_ends_while_redis_is_busy_ends_once(server: RedisServer, worker: Program, tmp_path: Path) -> None:
    sender = Program(
        ["python", "-c", "from faulty_worker import *; print(sleeping.delay(1).id, flush=True)"],
        tmp_path / "send.log",
        server.environment(0, 1),
    )
    assert sender.process.wait(20) == 0
    task_id = sender.output().strip()
    wait_for(lambda: "received" in worker.output())

    script = run_script(server)
    wait_for(lambda: answers_busy(server))
    time.sleep(BUSY)
    server.client(0).script_kill()
    script.join()

    wait_for(lambda: server.client(1).get(f"celery-task-meta-{task_id}"), seconds=20)
    wait_for(lambda: server.client(0).hlen("accepted") == 0, seconds=20)
    assert (
        sum(
            line.get("task_id") == task_id and line["message"].startswith("Task started") for line in worker.log_lines()
        )
        == 1
    ), worker.output()


def test_a_demoted_primary_is_an_outage(server: RedisServer, worker: Program, api: Api, tmp_path: Path) -> None:
    api.wait(api.enqueue({"key": "value"}))
    other = RedisServer(tmp_path / "other", password=server.password)
    try:
        # The worker waits in BLMOVE, which gets UNBLOCKED.
        server.client(0).config_set("masterauth", server.password)
        server.client(0).replicaof("127.0.0.1", other.port)
        assert api.post("/tasks/enqueue", json={"data": {"key": "value"}}).status_code == 503
        time.sleep(1)
        assert worker.process.poll() is None, worker.output()
        server.client(0).replicaof("NO", "ONE")
        api.wait(api.enqueue({"key": "value"}), seconds=20)
        assert "Unrecoverable" not in worker.output()
    finally:
        other.stop()
