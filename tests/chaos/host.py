"""A host under test: a container that is entered from below, so that no fault inside can keep the harness out."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from celery_durable.testing import wait_for

PROJECT = Path(__file__).parents[2]
LEDGER = "/var/lib/chaos/ledger/ledger.jsonl"
API_KEY = "/etc/typesafe/secrets/api/BACKEND_API_KEY"
BEAT = "typesafe-beat"
REDIS_CONFIGS = {6379: "/etc/redis/redis.conf", 6380: "/etc/redis/redis-broker.conf"}

# Process 1 of each host, as this machine numbers it.
_PIDS: dict[str, str] = {}


class ChaosError(Exception):
    """The harness could not do or see what the row is about."""


def command(*words: str | Path, stdin: str = "", check: bool = True, seconds: float = 60) -> str:
    """Run a program and return what it prints.

    Raises:
        ChaosError: it failed (unless ``check`` is false) or took longer than ``seconds``.
    """
    try:
        result = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise ChaosError(f"{error.cmd} took longer than {seconds:.0f} s") from error
    if check and result.returncode:
        raise ChaosError(f"{words} failed: {(result.stderr or result.stdout).strip()[-300:]}")
    return result.stdout.strip()


def podman(*arguments: str, seconds: float = 60) -> str:
    """Run podman and return what it prints."""
    return command(PROJECT / "scripts/podman.sh", *arguments, seconds=seconds)


@dataclass(frozen=True)
class Host:
    """One host; its name is chaos-SUPERVISION-POOL-SYSTEM."""

    name: str

    @property
    def supervision(self) -> str:
        """What runs the worker: systemd or supervisor."""
        return self.name.split("-")[1]

    @property
    def supervised(self) -> bool:
        """Whether supervisor runs the worker, not systemd."""
        return self.supervision == "supervisor"

    @property
    def pool(self) -> str:
        """Type of the worker's pool: prefork, asyncio or threads."""
        return self.name.split("-")[2]

    @property
    def task(self) -> str:
        """What the load enqueues: coroutines, where the pool is for them."""
        return "agent_run" if self.pool == "asyncio" else "example_agent_task"

    @cached_property
    def url(self) -> str:
        """Address of the API on the controller; Podman keeps the port when the container starts anew."""
        return "http://" + podman("port", self.name, "8000/tcp").splitlines()[0]

    @property
    def api_key(self) -> str:
        """A key of the API, the newest: all secrets may have been replaced."""
        return self.run(f"cat {API_KEY}").replace(",", " ").split()[0]

    def run(self, script: str, check: bool = True, seconds: float = 60) -> str:
        """Run a shell script as root and return its output. It comes on standard input, so that no process shows it."""
        return self.enter("--all", "bash", stdin=script, check=check, seconds=seconds)

    def enter(self, *words: str, stdin: str, check: bool = True, seconds: float = 60) -> str:
        """Run a program in namespaces of the host; much faster than ``podman exec``, and needs nothing inside."""
        return command(*self._inside(*words), stdin=stdin, check=check, seconds=seconds)

    def start_client(self) -> subprocess.Popen[str]:
        """Start a Celery client with an operator's rights (tests/chaos/probe/client.py); it ends with its input."""
        code = (PROJECT / "tests/chaos/probe/client.py").read_text()
        # A unit of its own: nsenter and runuser stop when a host's shutdown stops their child, and hold both.
        enter = (PROJECT / "scripts/podman.sh", "exec", "--interactive", self.name, "systemd-run", "--quiet", "--pipe")
        client = ("typesafe-admin", "--as=operator", "--run", "venv/bin/python", "-c", code, "app.agents.worker")
        return subprocess.Popen(
            [*enter, "--wait", "--collect", "--setenv=CELERY_CLIENT_PROFILE=web", *client],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _inside(self, *words: str) -> tuple[str, ...]:
        as_root = () if os.geteuid() == 0 else ("sudo", "--non-interactive")
        return (*as_root, "nsenter", "--target", self._pid(), *words)

    def _pid(self) -> str:
        """Return the host's process 1 as this machine numbers it."""
        if not Path(f"/proc/{_PIDS.get(self.name, '-')}").exists():
            _PIDS[self.name] = podman("container", "inspect", "--format", "{{.State.Pid}}", self.name)
        return _PIDS[self.name]

    # Processes

    def main_pid(self, unit: str) -> int:
        """Return a unit's main process, 0 when none runs."""
        return int(self.run(f"systemctl show --value --property MainPID {unit}"))

    def worker_pid(self) -> int:
        """Return the worker's main process, 0 when none runs."""
        if self.supervised:
            answer = self.run("supervisorctl pid typesafe-celery-worker", check=False)
            return int(answer) if answer.isdigit() else 0
        return self.main_pid("typesafe-celery")

    def process_state(self, pid: int) -> str:
        """Return the letter by which ps shows a process's state, nothing when it is gone."""
        return self.run(f"ps -o state= -p {pid}", check=False)

    def wait_for_boot(self) -> None:
        """Wait until systemd has started everything."""
        booted = ("running", "degraded")
        wait_for(lambda: self.run("systemctl is-system-running", check=False) in booted, "the end of the boot", 90)

    # Redis

    def redis(self, port: int, command: str, seconds: float = 10) -> str:
        """Ask one Redis through its socket; errors come back as text. The password stays on the host."""
        socket = f"/run/redis{'-broker' if port == 6380 else ''}/redis-server.sock"
        login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {REDIS_CONFIGS[port]})"
        return self.run(f"{login}; timeout {seconds} redis-cli -s {socket} {command} 2>&1", check=False)

    def redis_answers(self) -> bool:
        """Tell whether both instances answer and have their data loaded."""
        return all(self.redis(port, "PING") == "PONG" for port in REDIS_CONFIGS)

    def queue_is_empty(self) -> bool:
        """Tell whether no message waits and none is held by a worker (celery_durable/keys.py names the keys)."""
        held = self.redis(6380, "--scan --pattern 'unacked:*'")
        return self.redis(6380, "EXISTS celery unacked") == "0" and not held

    # What the row asks

    def ledger(self) -> list[dict[str, Any]]:
        """Return the probe's events in the order in which they were written."""
        return [json.loads(line) for line in self.run(f"cat {LEDGER} 2>/dev/null || true").splitlines()]

    def forget_ledger(self) -> None:
        """Begin a new ledger; only while no task runs."""
        self.run(f"rm -f {LEDGER}")

    def is_healthy(self) -> bool:
        """Tell whether Redis, API, a worker and Flower answer."""
        urls = "http://127.0.0.1:8000/health/celery http://127.0.0.1:8000/health/ready"
        urls += " http://127.0.0.1:5555/flower/healthcheck"
        script = (
            f"for url in {urls}; do curl --silent --fail --max-time 5 --output /dev/null $url || exit 1; done; echo yes"
        )
        return self.redis_answers() and self.run(script, check=False) == "yes"

    def flower_answers(self) -> bool:
        """Tell whether Flower answers its health check."""
        script = "curl --silent --max-time 5 http://127.0.0.1:5555/flower/healthcheck"
        return self.run(script, check=False) == "OK"

    def versions(self) -> str:
        """Name the versions of what was under test."""
        script = """
          cd /opt/typesafe/backend
          code="import celery, kombu; print('Celery', celery.__version__ + ', kombu', kombu.__version__)"
          redis=$(redis-server --version | grep -o 'v=[^ ]*')
          echo "Debian $(cat /etc/debian_version), Redis ${redis#v=}, $(venv/bin/python --version)," \
            "$(venv/bin/python -c "$code")"
        """
        return self.run(script)
