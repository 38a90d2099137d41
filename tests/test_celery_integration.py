"""The whole way of a task: API, Redis, worker and back; and how workers stop.

Redis, worker and API are started by the tests themselves, see ``conftest.py``.
"""

import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.agents.config import DEFAULT_QUEUE
from celery_durable.defaults import SOFT_SHUTDOWN_TIMEOUT
from celery_durable.worker.lifecycle import SECOND_PHASE_MARGIN
from tests.support import Api, Program, RedisServer, nothing_is_held, start_worker, wait_until

pytestmark = pytest.mark.integration

# Part of a task's data, which no log may hold.
CANARY = secrets.token_hex(16)


class TestTask:
    """What a client sees of a task, and what the logs say about it."""

    def test_progress_and_success(self, api: Api) -> None:
        task_id = api.enqueue({"key": "value"})
        progress = api.wait_for(task_id, "PROGRESS")
        assert progress["meta"].keys() == {"current", "total", "status"}
        assert (progress["result"], progress["error"]) == (None, None)
        assert api.wait_for(task_id, "SUCCESS") == {
            "task_id": task_id,
            "status": "SUCCESS",
            "result": {
                "task_id": task_id,
                "status": "completed",
                "result": "Success",
                "attempts": 1,
                "data": {"key": "value"},
            },
            "error": None,
            "meta": None,
        }

    def test_logs_carry_task_and_request_but_no_arguments(self, api: Api, worker: Program) -> None:
        task_id = api.enqueue({"password": CANARY}, **{"X-Request-ID": "follow-me"})
        api.wait_for(task_id, "SUCCESS")
        messages = [line["message"] for line in worker.log_lines() if line.get("task_id") == task_id]
        assert messages[0].endswith("received")
        assert messages[1] == "Task started, attempt 1"
        assert messages[-1].startswith("Task finished in 2.")
        lines = [line for line in worker.log_lines() if line.get("request_id") == "follow-me"]
        assert {line["task_id"] for line in lines} == {task_id}
        assert {line["service"] for line in worker.log_lines()} == {"celery_worker"}
        accepted, access = [line for line in api.program.log_lines() if line.get("request_id") == "follow-me"]
        assert accepted["message"] == "Task accepted"
        assert (accepted["task_id"], accepted["queue"]) == (task_id, DEFAULT_QUEUE)
        assert accepted["task_name"].endswith("example_agent_task")
        assert "task_id" not in access
        assert {accepted["service"], access["service"]} == {"api"}
        assert CANARY not in worker.output() + api.program.output()

    def test_a_repeated_request_is_logged_as_such(self, api: Api) -> None:
        key = {"Idempotency-Key": secrets.token_hex(8)}
        task_id = api.enqueue({}, **key)
        assert api.enqueue({}, **key, **{"X-Request-ID": "once-more"}) == task_id
        lines = [line for line in api.program.log_lines() if line.get("task_id") == task_id]
        assert [line["message"] for line in lines] == [
            "Task accepted",
            "Task was accepted earlier, with the same Idempotency-Key",
        ]
        assert lines[1]["request_id"] == "once-more"

    def test_no_password_in_logs(self, api: Api, worker: Program, redis_server: RedisServer) -> None:
        assert "Connected to redis://:**@" in worker.output()
        assert redis_server.password not in worker.output() + api.program.output()


class TestHealth:
    """With a worker."""

    def test_worker_is_listed(self, api: Api) -> None:
        task_id = api.enqueue({})
        api.wait_for(task_id, "PROGRESS")
        response = api.client.get("/health/celery")
        assert response.status_code == 200
        health = response.json()
        assert health["status"] == "healthy"
        assert [name.partition("@")[0] for name in health["workers"]] == ["test"]
        assert health["active_tasks"] >= 1
        metrics = api.client.get("/metrics/celery").json()
        assert metrics["workers"] == {"count": 1, "names": health["workers"]}
        assert metrics["tasks"]["active"] >= 1
        api.wait_for(task_id, "SUCCESS")

    def test_returns_as_soon_as_all_have_answered(self, api: Api) -> None:
        assert min(api.client.get("/health/celery").elapsed.total_seconds() for _ in range(5)) < 0.2

    def test_hung_worker_is_left_out_after_a_second(self, api: Api, worker: Program) -> None:
        worker.process.send_signal(signal.SIGSTOP)
        try:
            response = api.client.get("/health/celery")
            assert response.status_code == 503
            assert response.elapsed.total_seconds() < 1.5  # a busy machine adds to the second
        finally:
            worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: api.client.get("/health/celery").status_code == 200)


class TestFaults:
    """A worker whose example task fails on its first attempt and that knows an endless task."""

    @pytest.fixture
    def faulty_api(self, redis_server: RedisServer, tmp_path: Path) -> Iterator[Api]:
        """Start an API on databases of its own."""
        api = Api(tmp_path / "api.log", redis_server.environment(4, 5))
        yield api
        api.stop()

    def test_retry(self, redis_server: RedisServer, faulty_api: Api, tmp_path: Path) -> None:
        worker = start_worker(tmp_path / "worker.log", redis_server.environment(4, 5), app="faulty_worker")
        try:
            task_id = faulty_api.enqueue({"simulate_failure": True}, **{"X-Request-ID": "try-again"})
            retrying = faulty_api.wait_for(task_id, "RETRY")
            assert retrying["error"] == "SimulatedFailureError: Simulated failure"
            done = faulty_api.wait_for(task_id, "SUCCESS")
            assert done["result"]["attempts"] == 2
            messages = [line["message"] for line in worker.log_lines() if line.get("request_id") == "try-again"]
            assert "Task started, attempt 2" in messages
            assert any(message.startswith("Task will be retried") for message in messages)
        finally:
            worker.stop()


class TestStop:
    """TERM lets tasks finish; what does not finish goes back to the queue."""

    def test_running_task_is_finished(self, redis_server: RedisServer, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.settimeout(20)
            env = redis_server.environment(6, 7)
            worker = start_worker(tmp_path / "worker.log", {**env, "NOTIFY_SOCKET": str(tmp_path / "notify")})
            api = Api(tmp_path / "api.log", env)
            try:
                assert b"READY=1" in iter(lambda: systemd.recv(200), b"")
                task_id, waiting = api.enqueue({}), [api.enqueue({}) for _ in range(5)]
                api.wait_for(task_id, "PROGRESS")
                assert worker.stop(signal.SIGTERM) == 0
                assert b"STOPPING=1" in iter(lambda: systemd.recv(200), b"")
                assert api.status(task_id)["status"] == "SUCCESS"
                states = [api.status(other)["status"] for other in waiting]
                assert set(states) == {"SUCCESS", "PENDING"}
                assert redis_server.client(6).llen(DEFAULT_QUEUE) == states.count("PENDING")
                assert nothing_is_held(redis_server.client(6))
                assert worker.log_lines()[-1]["service"] == "celery_worker"
            finally:
                worker.stop()
                api.stop()

    @pytest.mark.parametrize(
        ("settings", "options"),
        [
            ({"TASK_SOFT_TIME_LIMIT": "1", "TASK_TIME_LIMIT": "2"}, ()),
            ({}, ("--soft-time-limit=1", "--time-limit=2")),
        ],
        ids=["settings", "command line"],
    )
    def test_second_phase_requeues_what_does_not_finish(
        self, redis_server: RedisServer, tmp_path: Path, settings: dict[str, str], options: tuple[str, ...]
    ) -> None:
        env = {**redis_server.environment(8, 9), **settings}
        worker = start_worker(tmp_path / "worker.log", env, *options, app="faulty_worker")
        enqueue = "from faulty_worker import endless; endless.delay()"
        Program([sys.executable, "-c", enqueue], tmp_path / "enqueue.log", env).process.wait(10)
        worker.wait_for_output("Task started")
        started = time.monotonic()
        assert worker.stop(signal.SIGTERM) == 0
        assert time.monotonic() - started < 2 + SECOND_PHASE_MARGIN + SOFT_SHUTDOWN_TIMEOUT + 5
        assert redis_server.client(8).llen(DEFAULT_QUEUE) == 1
        assert nothing_is_held(redis_server.client(8))
        redis_server.client(8).delete(DEFAULT_QUEUE)


def test_log_level_of_the_command_line_wins(redis_server: RedisServer, tmp_path: Path) -> None:
    """``--loglevel`` beats LOG_LEVEL, and debug lines hold neither arguments nor secrets."""
    signing_key = secrets.token_hex(32)
    env = {**redis_server.environment(12, 13), "LOG_LEVEL": "error", "TASK_SIGNING_KEY": signing_key}
    command = [sys.executable, "-m", "celery", "-A", "app.agents.worker", "worker", "-c", "1"]
    quiet = Program(command, tmp_path / "quiet.log", env)
    loud = Program([*command, "--loglevel=debug", "--task-events", "-n", "loud"], tmp_path / "loud.log", env)
    loud.wait_for_output("ready.")
    enqueue = (
        "from app.agents.tasks.example_task import example_agent_task; "
        f"example_agent_task.delay('id', {{'password': '{CANARY}'}})"
    )
    Program([sys.executable, "-c", enqueue], tmp_path / "enqueue.log", env).process.wait(10)
    wait_until(lambda: redis_server.client(13).keys("celery-task-meta-*"))
    assert quiet.stop() == loud.stop() == 0
    assert "INFO" not in quiet.output()
    assert {"DEBUG"} < {line["level"] for line in loud.log_lines()}
    for hidden in (CANARY, signing_key, redis_server.password):
        assert hidden not in quiet.output() + loud.output()
