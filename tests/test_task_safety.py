"""No accepted task is lost, whatever dies: children, Redis."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.agents.config import DEFAULT_MAX_RETRIES, DEFAULT_QUEUE
from tests.support import Program, RedisServer, start_worker, wait_until

pytestmark = pytest.mark.integration


class Stack:
    """A durable Redis and the programs that use it."""

    def __init__(self, directory: Path) -> None:
        """Start Redis alone."""
        self.directory = directory
        self.redis = RedisServer(directory, durable=True)
        self.env = self.redis.environment(0, 1)
        self.worker: Program | None = None

    def start_worker(self, app: str = "tests.faulty_worker") -> Program:
        """Start a worker of ``app``."""
        self.worker = start_worker(self.directory / "worker.log", self.env, app=app)
        return self.worker

    def send(self, call: str) -> str:
        """Send a task, like ``dying.delay(1)``, and return its id."""
        code = f"from tests.faulty_worker import *; print({call}.id)"
        program = Program([sys.executable, "-c", code], self.directory / "send.log", self.env)
        assert program.process.wait(20) == 0
        return program.output().strip()

    def result(self, task_id: str, *states: str, timeout: float = 30) -> dict[str, Any]:
        """Wait until the task is in one of ``states`` and return what is stored of it."""

        def reached() -> dict[str, Any] | None:
            stored = self.redis.client(1).get(f"celery-task-meta-{task_id}")
            meta = json.loads(str(stored)) if stored else {}
            return meta if meta.get("status") in states else None

        found = wait_until(reached, timeout)
        assert found
        return found

    def nothing_waits(self) -> bool:
        """Tell whether the broker holds no message, queued or unacknowledged."""
        broker = self.redis.client(0)
        return broker.llen(DEFAULT_QUEUE) == 0 and broker.hlen("unacked") == 0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis of this test alone."""
    stack = Stack(tmp_path)
    yield stack
    if stack.worker:
        stack.worker.stop(signal.SIGKILL)
    stack.redis.stop()


def test_a_task_whose_process_was_killed_runs_again(stack: Stack) -> None:
    stack.start_worker()
    assert stack.result(stack.send("dying.delay(1)"), "SUCCESS", "FAILURE")["result"] == "survived"
    wait_until(stack.nothing_waits)


def test_a_task_that_always_kills_its_process_ends_as_a_failure_and_blocks_nothing(stack: Stack) -> None:
    stack.start_worker()
    failed = stack.result(stack.send("dying.delay(1000)"), "FAILURE")
    assert failed["result"]["exc_type"] == "WorkerLostError"
    assert failed["retries"] == DEFAULT_MAX_RETRIES
    wait_until(stack.nothing_waits)
    assert stack.result(stack.send("sleeping.delay(0)"), "SUCCESS")["result"] == "done"


@pytest.mark.parametrize("mended", [True, False])
def test_a_worker_with_a_running_task_survives_a_restart_of_redis(stack: Stack, mended: bool) -> None:
    """Without the workaround it does not: when that changes, remove app/agents/kombu_workaround.py."""
    worker = stack.start_worker("tests.faulty_worker" if mended else "tests.unmended_worker")
    task_id = stack.send("sleeping.delay(3)")
    stack.result(task_id, "STARTED")
    stack.redis.program.stop(signal.SIGTERM)
    stack.redis.start()
    if mended:
        assert stack.result(task_id, "SUCCESS")["result"] == "done"
        assert stack.result(stack.send("sleeping.delay(0)"), "SUCCESS")["result"] == "done"
        assert worker.process.poll() is None
    else:
        worker.wait_for_output("Unrecoverable error: AttributeError")
