"""What /metrics says of queues, workers and requests, with real ones behind it."""

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_durable.aio.workforce import ALIVE_SECONDS
from durable_console.web.prometheus import SNAPSHOT_SECONDS
from tests.support import Api, Program, RedisServer, free_port, start_worker, wait_until

pytestmark = pytest.mark.integration

TASK = "app.agents.tasks.example_task.example_agent_task"


class Figures(dict[tuple[str, str], float]):
    """The samples of one scrape: (name, label values) -> value."""

    def of(self, name: str, *labels: str) -> float:
        """Return a sample by its name and its labels' values in the order of their names; NaN when there is none."""
        return self.get((name, ",".join(labels)), math.nan)


def scrape(api: Api) -> Figures:
    """Read /metrics as Prometheus does."""
    answer = api.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    figures = Figures()
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            figures[sample.name, ",".join(value for _, value in sorted(sample.labels.items()))] = sample.value
    return figures


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis of these tests alone: they count."""
    server = RedisServer(tmp_path_factory.mktemp("metrics") / "redis")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def env(redis: RedisServer) -> dict[str, str]:
    """Two workers are wanted."""
    return {**redis.environment(0, 1), "WORKERS_EXPECTED": "2"}


@pytest.fixture(scope="module")
def api(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API of these tests alone."""
    api = Api(tmp_path_factory.mktemp("metrics") / "api.log", env)
    yield api
    api.stop()


def test_a_key_is_needed(api: Api) -> None:
    assert httpx.get(f"{api.url}/metrics").status_code == 401


def test_what_waits_is_counted_without_a_worker(api: Api) -> None:
    for _ in range(3):
        api.enqueue({})
    seen = wait_until(lambda: (found := scrape(api)).of("celery_queue_length", "celery") == 3 and found, 10)
    assert isinstance(seen, Figures)
    assert 0 <= seen.of("celery_queue_oldest_seconds", "celery") < 10
    assert seen.of("celery_tasks_enqueued_total", TASK) == 3
    assert seen.of("celery_accepted_tasks") == 3
    assert (seen.of("celery_workers_expected"), seen.of("celery_workers_alive")) == (2, 0)
    assert seen.of("http_requests_total", "/tasks/enqueue", "POST", "2xx") >= 3


def test_a_request_that_runs_is_in_flight(api: Api) -> None:
    port = int(api.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        head = f"POST /tasks/enqueue HTTP/1.1\r\nHost: api\r\nX-API-Key: {api.key}\r\nContent-Length: 12\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        wait_until(lambda: scrape(api).of("http_requests_inprogress") == 1)
        client.sendall(b'{"data": 12}')  # no task: others count them
        assert b" 422 " in client.recv(100)
    wait_until(lambda: scrape(api).of("http_requests_inprogress") == 0)


def test_a_worker_counts_and_its_counts_outlive_it(api: Api, env: dict[str, str], tmp_path: Path) -> None:
    worker = start_worker(tmp_path / "worker.log", env, app="faulty_worker", name="one")
    code = "from faulty_worker import *; greedy.delay(); dying.delay(9); sleeping.apply_async((0,), countdown=2)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)

    def ended() -> Figures | None:
        seen = scrape(api)
        outcomes = [
            seen.of("celery_tasks_ended_total", outcome, task)
            for outcome, task in (
                ("succeeded", TASK),
                ("failed", "faulty_worker.greedy"),
                ("retried", "faulty_worker.dying"),
                ("died", "faulty_worker.dying"),
                ("succeeded", "faulty_worker.sleeping"),
            )
        ]
        return seen if outcomes == [3, 1, 3, 1, 1] else None

    seen = wait_until(ended, 60)
    assert seen is not None
    assert seen.of("celery_tasks_started_total", TASK) == 3
    # Prometheus sees the first of them only as an increase from 0.
    assert seen.of("celery_tasks_ended_total", "timed_out", TASK) == 0
    assert seen.of("celery_event_loop_lag_seconds_count", TASK) == 0
    assert seen.of("celery_task_run_seconds_count", TASK) == 3
    assert 6 < seen.of("celery_task_run_seconds_sum", TASK) < 12
    assert seen.of("celery_task_run_seconds_bucket", "+Inf", TASK) == 3
    assert (seen.of("celery_task_run_seconds_bucket", "1.0", TASK), seen.of("celery_dead_letters")) == (0, 1)
    # Its countdown is no waiting.
    assert seen.of("celery_task_wait_seconds_sum", "faulty_worker.sleeping") < 2
    node = f"one@{os.uname().nodename}"
    assert (seen.of("celery_workers_alive"), seen.of("celery_worker_pool_size", node)) == (1, 2)
    assert seen.of("celery_worker_starts_total", node) == 1

    worker.stop(signal.SIGKILL)
    worker = start_worker(tmp_path / "again.log", env, app="faulty_worker", name="one")
    again = wait_until(lambda: (found := scrape(api)).of("celery_worker_starts_total", node) == 2 and found, 20)
    worker.stop(signal.SIGKILL)
    assert isinstance(again, Figures)
    assert again.of("celery_tasks_ended_total", "succeeded", TASK) == 3
    wait_until(lambda: scrape(api).of("celery_workers_alive") == 0, ALIVE_SECONDS + 2 * SNAPSHOT_SECONDS)


def test_a_worker_holds_what_it_could_run_and_nothing_when_it_was_stopped(
    api: Api, env: dict[str, str], tmp_path: Path
) -> None:
    held = "celery_unacknowledged_oldest_seconds"
    worker = start_worker(tmp_path / "worker.log", env, app="faulty_worker", name="two")
    code = "from faulty_worker import *; sleeping.apply_async((0,), countdown=600)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)
    wait_until(lambda: scrape(api).of("celery_unacknowledged_tasks") == 1, 20)
    time.sleep(2 * SNAPSHOT_SECONDS)
    assert scrape(api).of(held) == 0  # it waits for its time
    code = "from faulty_worker import *; sleeping.delay(8)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)
    wait_until(lambda: scrape(api).of(held) > 0, 20)
    worker.stop(signal.SIGTERM)  # it gives the task back, and has no time to report that
    wait_until(lambda: scrape(api).of(held) == 0, 2 * SNAPSHOT_SECONDS)


def test_a_worker_that_dies_of_its_first_task_was_started(api: Api, env: dict[str, str], tmp_path: Path) -> None:
    code = "from faulty_worker import *; fatal.apply_async(queue='lethal')"  # nobody else serves it
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)
    command = [sys.executable, "-m", "celery", "-A", "faulty_worker", "worker", "--pool=threads"]
    worker = Program([*command, "-Q", "lethal", "-n", "short@%h"], tmp_path / "worker.log", env)
    assert worker.process.wait(30) == -signal.SIGKILL
    node = f"short@{os.uname().nodename}"
    wait_until(lambda: scrape(api).of("celery_worker_starts_total", node) == 1, 10)


def test_a_task_that_code_enqueues_has_an_age(api: Api, env: dict[str, str], redis: RedisServer) -> None:
    redis.client(0).delete("celery")
    code = "from faulty_worker import *; sleeping.delay(0)"  # Celery makes its id, which tells no time
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)
    wait_until(lambda: scrape(api).of("celery_queue_oldest_seconds", "celery") > 2, 15)


def test_scrapes_ask_redis_no_more_often(api: Api, redis: RedisServer) -> None:
    def asked() -> int:
        return int(redis.client(0).info("commandstats")["cmdstat_hgetall"]["calls"])

    before = asked()
    for _ in range(100):
        scrape(api)
    assert asked() - before <= 2 * 2


def test_several_processes_answer_as_one(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    port, key = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), "--workers", "2"]
    processes = {"BACKEND_API_KEY": key, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts")}
    server = Program(command, tmp_path / "api.log", {**env, **processes})
    url, headers = f"http://127.0.0.1:{port}", {"X-API-Key": key}

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers)
    for _ in range(40):  # each over a connection of its own, so that both processes get some
        assert httpx.post(f"{url}/tasks/enqueue", headers=headers, json={"data": {}}).status_code == 202
    assert len(list((tmp_path / "counts").glob("counter_*.db"))) == 2
    for _ in range(10):
        text = httpx.get(f"{url}/metrics", headers=headers).text
        assert f'celery_tasks_enqueued_total{{task="{TASK}"}} 40.0' in text
        assert text.count("# TYPE celery_queue_length gauge") == 1
    server.stop()


def test_without_redis_it_says_so(api: Api, redis: RedisServer) -> None:
    """Last in this file: its Redis is gone afterwards."""
    redis.stop()
    seen = wait_until(lambda: (found := scrape(api)).of("celery_broker_up") == 0 and found, 2 * SNAPSHOT_SECONDS)
    assert isinstance(seen, Figures)
    assert math.isnan(seen.of("celery_queue_length", "celery"))
    assert seen.of("http_requests_total", "/tasks/enqueue", "POST", "2xx") >= 3
