"""`.delay()` in a web process: with the profile "web" it takes a second at most, whatever Redis does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import REPOSITORY, RedisServer, wait_until

pytestmark = pytest.mark.integration
BOUND = 1.0

# A line for each line that it reads: what became of a task, and how long that took.
PRODUCER = """
import json, sys, time
from kombu.exceptions import OperationalError
from app.agents.tasks.example_task import example_agent_task
for line in sys.stdin:
    began = time.monotonic()
    try:
        example_agent_task.delay("id", {})
        told = "sent"
    except OperationalError:
        told = "unavailable"
    print(json.dumps([told, time.monotonic() - began]), flush=True)
"""


class Producer:
    """A process that sends a task when it is told."""

    def __init__(self, redis: RedisServer) -> None:
        """Start it; it has not talked to Redis yet."""
        env = {**os.environ, **redis.environment(0, 1), "CELERY_CLIENT_PROFILE": "web"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self) -> str:
        """Send a task and return what became of it; it must be over in time."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told, seconds = json.loads(self.process.stdout.readline())
        assert seconds < BOUND, (told, seconds)
        return str(told)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis that the test may stop."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.program.process.send_signal(signal.SIGCONT)
    server.stop()


@pytest.fixture
def producer(redis: RedisServer) -> Iterator[Producer]:
    """Start a producer."""
    started = Producer(redis)
    yield started
    started.process.kill()
    started.process.communicate()


def test_redis_hangs_goes_and_comes_back(redis: RedisServer, producer: Producer) -> None:
    assert [producer.send() for _ in range(3)] == ["sent"] * 3
    redis.hang()
    assert [producer.send() for _ in range(3)] == ["unavailable"] * 3
    time.sleep(6)  # longer than health_check_interval: a connection is tried before it is used
    assert producer.send() == "unavailable"
    redis.program.process.send_signal(signal.SIGCONT)
    wait_until(lambda: producer.send() == "sent")
    redis.stop()
    assert [producer.send() for _ in range(3)] == ["unavailable"] * 3
    redis.start()
    wait_until(lambda: producer.send() == "sent")


def test_redis_hangs_from_the_beginning(redis: RedisServer, producer: Producer) -> None:
    redis.hang()
    assert [producer.send() for _ in range(3)] == ["unavailable"] * 3
    redis.program.process.send_signal(signal.SIGCONT)
    wait_until(lambda: producer.send() == "sent")


def test_nobody_listens_from_the_beginning(redis: RedisServer, producer: Producer) -> None:
    redis.stop()
    assert [producer.send() for _ in range(3)] == ["unavailable"] * 3
    redis.start()
    wait_until(lambda: producer.send() == "sent")
