"""What a worker tells systemd, received on a real notification socket."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_durable.testing import RedisServer, wait_for
from tests.support import REPOSITORY, Program, start_worker

pytestmark = pytest.mark.integration

# Seconds, for WatchdogSec=.
LIMIT = 4


class Systemd:
    """The receiving end of a unit's notifications."""

    def __init__(self, directory: Path) -> None:
        """Listen on a socket in ``directory``."""
        self.path = str(directory / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.env = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": str(LIMIT * 1_000_000)}

    def wait_for(self, words: str, timeout: float = 15) -> None:
        """Wait for a message that holds ``words``."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if words in self.socket.recv(1000).decode():
                    return
            except TimeoutError:
                break
        pytest.fail(f"not told within {timeout} s: {words}")

    def beats(self, seconds: float) -> int:
        """Count the beats of the next ``seconds``."""
        deadline, count = time.monotonic() + seconds, 0
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                count += self.socket.recv(1000) == b"WATCHDOG=1"
            except TimeoutError:
                break
        return count


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A notification socket."""
    listener = Systemd(tmp_path)
    yield listener
    listener.socket.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Redis of this test alone."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def watched(systemd: Systemd, redis: RedisServer, tmp_path: Path) -> Iterator[Program]:
    """A worker whose unit has WatchdogSec=."""
    env = {**redis.environment(0, 1), **systemd.env}
    worker = start_worker(tmp_path / "worker.log", env, app="faulty_worker")
    yield worker
    worker.stop(signal.SIGKILL)


def run(code: str, redis: RedisServer, log: Path) -> None:
    """Run a line of Python that uses the application."""
    program = Program([sys.executable, "-c", f"from faulty_worker import *; {code}"], log, redis.environment(0, 1))
    assert program.process.wait(20) == 0


def test_beats_go_on_through_an_outage_and_a_drain(
    systemd: Systemd, redis: RedisServer, watched: Program, tmp_path: Path
) -> None:
    systemd.wait_for("READY=1")
    systemd.wait_for("STATUS=Consuming; 0 of 2 processes busy")
    assert systemd.beats(LIMIT) >= 2

    redis.stop()
    systemd.wait_for("STATUS=Waiting for the broker")
    assert systemd.beats(LIMIT + 1) >= 3
    redis.start()
    systemd.wait_for("STATUS=Consuming")

    run(f"sleeping.delay({LIMIT + 3})", redis, tmp_path / "send.log")
    systemd.wait_for("STATUS=Consuming; 1 of 2 processes busy")
    watched.process.send_signal(signal.SIGTERM)
    systemd.wait_for("STATUS=Finishing what runs")
    assert systemd.beats(LIMIT) >= 2
    assert watched.process.wait(20) == 0


def test_beats_stop_when_the_main_loop_hangs(
    systemd: Systemd, redis: RedisServer, watched: Program, tmp_path: Path
) -> None:
    systemd.wait_for("READY=1")
    assert systemd.beats(LIMIT) >= 2
    run("celery_app.control.broadcast('freeze')", redis, tmp_path / "freeze.log")
    systemd.beats(LIMIT / 2 + 1.5)
    assert systemd.beats(LIMIT) == 0
    assert watched.process.poll() is None


@pytest.mark.parametrize("fault", ["stopped process", "standing loop"])
def test_a_worker_without_systemd_brings_its_own_watchdog(redis: RedisServer, tmp_path: Path, fault: str) -> None:
    env = {**redis.environment(0, 1), "WORKER_WATCHDOG_SECONDS": str(LIMIT)}
    worker = start_worker(tmp_path / "worker.log", env, app="faulty_worker")
    try:
        run(f"sleeping.delay({LIMIT + 2}).get()", redis, tmp_path / "send.log")
        assert worker.process.poll() is None, "a busy worker was killed"
        if fault == "stopped process":
            worker.process.send_signal(signal.SIGSTOP)
        else:
            run("celery_app.control.broadcast('freeze')", redis, tmp_path / "freeze.log")
        assert worker.process.wait(2 * LIMIT + 2) == -signal.SIGKILL
        assert "No heartbeat" in worker.log_lines()[-1]["message"]
    finally:
        worker.stop(signal.SIGKILL)


def test_a_probe_knows_the_limit_by_each_of_its_names(tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    os.utime(heartbeat, (time.time() - 15,) * 2)
    command = [sys.executable, "-I", "-m", "celery_durable.probe", "worker"]
    for name in ("DURABLE_WATCHDOG_SECONDS", "WORKER_WATCHDOG_SECONDS"):
        env = {"WORKER_HEARTBEAT_FILE": str(heartbeat), name: "33"}
        assert subprocess.run(command, env=env, check=False).returncode == 0, name


def test_a_probe_knows_a_worker_by_its_heartbeat(redis: RedisServer, tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()  # a previous worker's
    env = {"WORKER_HEARTBEAT_FILE": str(heartbeat), "WORKER_WATCHDOG_SECONDS": str(LIMIT)}

    def probe() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-m", "celery_durable.probe", "worker"]
        return subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True, check=False
        )

    # Without the limit in its own environment, so that nothing kills it: the probe alone tells.
    only_file = {"WORKER_HEARTBEAT_FILE": str(heartbeat)}
    worker = start_worker(tmp_path / "worker.log", {**redis.environment(0, 1), **only_file})
    try:
        wait_for(lambda: probe().returncode == 0)
        worker.process.send_signal(signal.SIGSTOP)
        assert "No heartbeat" in wait_for(lambda: probe().stderr)
        worker.process.send_signal(signal.SIGCONT)
        wait_for(lambda: probe().returncode == 0)
    finally:
        worker.stop(signal.SIGKILL)
    heartbeat.unlink()
    assert "not begun" in probe().stderr
