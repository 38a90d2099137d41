"""A pytest plugin for the tests of any Celery application: a real Redis and real workers.

Name it in the ``conftest.py`` at the root of your tests: ``pytest_plugins = ["celery_durable.testing"]``.
"""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import redis

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str = "", seconds: float = 15) -> T:
    """Return the first true value of ``condition``.

    Raises:
        AssertionError: there was none within ``seconds``; it says ``what`` was waited for, and the last value.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise AssertionError(f"{what or condition.__qualname__}: not within {seconds:g} s, but {value!r}")
        time.sleep(max(0.05, min(waited / 50, 0.25)))  # what takes long is asked about less often
    return value


def free_port() -> int:
    """Return a port on which nothing listens now.

    Below those that Linux gives to clients (32768 and more): a connection of another test could take it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program:
    """A child process whose output goes to a file."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        env: dict[str, str] | None = None,
        stderr: int = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> None:
        """Start it with ``env`` on top of the environment."""
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - what the test says
                command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=output, stderr=stderr
            )

    def output(self) -> str:
        """Return what it has written to stdout so far."""
        return self.log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return its log.

        Raises:
            AssertionError: a line is no JSON object.
        """
        lines = [json.loads(line) for line in self.output().splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise AssertionError(self.output())
        return lines

    def wait_for_output(self, text: str) -> None:
        """Wait until it has written ``text``.

        Raises:
            AssertionError: it ended, or wrote none within 20 s; the message is what it has written.
        """
        wait_for(lambda: text in self.output() or self.process.poll() is not None, f"{text!r} in {self.log}", 20)
        if text not in self.output():
            raise AssertionError(self.output())

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal, wait for the end and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


class RedisServer:
    """A private Redis with a password of its own; what it holds survives a restart if it is ``durable``."""

    def __init__(self, directory: Path, durable: bool = False, password: str = "", **settings: str) -> None:
        """Choose port and, unless one is given, password, and start it; ``settings`` are redis.conf's, with _ for -."""
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.settings = {"appendonly": "yes" if durable else "no", **settings}
        self.port = free_port()
        self.password = password or secrets.token_hex(16)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        config = self.directory / "redis.conf"
        config.write_text(
            f'port {self.port}\nbind 127.0.0.1\nrequirepass {self.password}\nsave ""\ndir {self.directory}\n'
            + "".join(f"{name.replace('_', '-')} {value}\n" for name, value in self.settings.items())
        )
        self.program = Program(["redis-server", str(config)], self.directory / "redis.log")
        self.program.wait_for_output("Ready to accept connections")

    def stop(self) -> None:
        """Kill it, hanging or not."""
        self.program.stop(signal.SIGKILL)

    def hang(self) -> None:
        """Keep its connections open but answer no more."""
        self.program.process.send_signal(signal.SIGSTOP)

    def url(self, database: int) -> str:
        """Return the URL of a database, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def client(self, database: int) -> redis.Redis:
        """Return a client that decodes answers."""
        return redis.Redis.from_url(self.url(database), decode_responses=True)

    def environment(self, broker: int, results: int) -> dict[str, str]:
        """Return the variables by which Celery finds these databases."""
        return {"CELERY_BROKER_URL": self.url(broker), "CELERY_RESULT_BACKEND": self.url(results)}


class StartWorker(Protocol):
    """What the fixture ``start_worker`` gives."""

    def __call__(self, app: str, *options: str, **env: str) -> Program:
        """Start ``celery-durable -A app worker`` with these options and variables, and wait until it takes tasks."""


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis, shared by all tests of a session."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def start_worker(redis_server: RedisServer, tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers on databases 0 (queues) and 1 (results) of ``redis_server``; those that still run are killed."""
    workers: list[Program] = []

    def start(app: str, *options: str, **env: str) -> Program:
        number = len(workers)
        command = [sys.executable, "-m", "celery_durable", "-A", app, "worker", f"--hostname=test{number}@%h"]
        variables = redis_server.environment(0, 1) | env
        command += ["--loglevel=info", *options]
        workers.append(Program(command, tmp_path / f"worker-{number}.log", variables, subprocess.STDOUT))
        workers[-1].wait_for_output("ready.")
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop(signal.SIGKILL)
    redis_server.client(0).flushall()
