"""What the tests share: real servers that start on free ports, and waiting for conditions instead of sleeping."""

import importlib.util
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import httpx
import redis
import trustme

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED, LEASES, UNACKED

REPOSITORY = Path(__file__).parent.parent
# faulty_worker and asyncio_worker, for the programs that tests start.
APPLICATIONS = str(REPOSITORY / "packages/celery-durable/tests")
T = TypeVar("T")


# Ansible in one process, without a fork for each task of each host.
INLINE = {
    "ANSIBLE_STRATEGY": "inline",
    "ANSIBLE_STRATEGY_PLUGINS": str(REPOSITORY / "tests/plugins/strategy"),
    "ANSIBLE_DEPRECATION_WARNINGS": "false",
}

# How the units and containers run the API's server, beyond address and log.
SERVER_OPTIONS = ["--http", "app.api.connections:Protocol", "--limit-concurrency", "500"]
# The operator's command, durable-admin.
ADMIN = [sys.executable, "-m", "durable_console"]
# What the console reads, and the sample's variable of the same meaning.
OF_THE_CONSOLE = {
    "DURABLE_SIGNING_KEY": "TASK_SIGNING_KEY",
    "DURABLE_CONTROL_KEY": "CONTROL_SIGNING_KEY",
    "DURABLE_SENTINEL_PASSWORD": "SENTINEL_PASSWORD",
    "DURABLE_BROKER_PRIMARY": "BROKER_PRIMARY",
    "DURABLE_RESULTS_PRIMARY": "RESULTS_PRIMARY",
    "DURABLE_QUEUES": "QUEUES",
    "DURABLE_MESSAGE_LIMIT": "MAX_MESSAGE_BYTES",
    "DURABLE_WORKERS_EXPECTED": "WORKERS_EXPECTED",
    "DURABLE_TASK_TIME_LIMIT": "TASK_TIME_LIMIT",
    "DURABLE_RESULT_EXPIRES": "RESULT_EXPIRES",
}


def of_the_console(env: dict[str, str]) -> dict[str, str]:
    """Return an environment of the sample with what the console reads."""
    return {**env, **{name: env[sample] for name, sample in OF_THE_CONSOLE.items() if sample in env}}


def ansible_report(*arguments: str | Path, **env: str) -> dict[str, Any]:
    """Run ansible-playbook in the repository, in one process; return what its JSON callback reports."""
    result = subprocess.run(
        ["ansible-playbook", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **INLINE, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert "{" in result.stdout, result.stderr
    report: dict[str, Any]
    report, _ = json.JSONDecoder().raw_decode(result.stdout[result.stdout.index("{") :])
    return report


def free_port() -> int:
    """Return a port on which nothing listens now.

    Below those that Linux gives to clients (32768 and more): a connection of another test could take it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], T], timeout: float = 15, interval: float = 0.05) -> T:
    """Return the first true value of ``condition``; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(interval)
    raise AssertionError(f"{condition.__qualname__} did not come true within {timeout} s")


def load_plugin(path: str) -> ModuleType:
    """Import a role's plugin or a script, which lies in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


class Program:
    """A child process whose output goes to a file."""

    def __init__(
        self, command: list[str], log: Path, env: dict[str, str] | None = None, stderr: int = subprocess.DEVNULL
    ) -> None:
        """Start it in the repository with ``env`` on top of the environment."""
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": APPLICATIONS, **(env or {})},
                stdout=output,
                stderr=stderr,
            )

    def output(self) -> str:
        """Return what it has written to stdout so far."""
        return self.log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return its log; fails when a line is not a JSON object."""
        lines = [json.loads(line) for line in self.output().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def wait_for_output(self, text: str) -> None:
        """Wait until it has written ``text``."""

        def written_or_ended() -> bool:
            return text in self.output() or self.process.poll() is not None

        wait_until(written_or_ended, timeout=20)
        assert text in self.output(), self.output()

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
        """Return the variables that make our programs use these databases."""
        return {"CELERY_BROKER_URL": self.url(broker), "CELERY_RESULT_BACKEND": self.url(results)}


class TlsRedisServer(RedisServer):
    """A Redis that speaks nothing but TLS."""

    def __init__(
        self, directory: Path, authority: trustme.CA, ca_file: Path, name: str = "127.0.0.1", **settings: str
    ) -> None:
        """Start it with a certificate for ``name``; its clients trust ``ca_file``."""
        directory.mkdir()
        self.ca_file = ca_file
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        certificate = str(directory / "server.pem")
        tls = {"port": "0", "tls_auth_clients": "no", "tls_cert_file": certificate, "tls_key_file": certificate}
        super().__init__(directory, durable=True, **tls, **settings)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.settings["tls_port"] = str(self.port)
        super().start()

    def url(self, database: int) -> str:
        """Return the URL of a database, as the platform writes it."""
        return super().url(database).replace("redis:", "rediss:") + f"?ssl_ca_certs={self.ca_file}"


def nothing_is_held(broker: redis.Redis) -> bool:
    """Tell whether no worker, alive or dead, has a message in its hands."""
    return [key for key in broker.scan_iter(f"{UNACKED}*") if key != LEASES] == []


def start_worker(
    log: Path, env: dict[str, str], *options: str, app: str = "app.agents.worker", name: str = "test"
) -> Program:
    """Start a worker with two children, unless ``options`` say otherwise, and wait until it takes tasks."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel=info", "-c", "2", "-n", f"{name}@%h"]
    worker = Program([*command, *options], log, env)
    worker.wait_for_output("ready.")
    return worker


class Stack:
    """A durable Redis and the programs that use it."""

    def __init__(self, directory: Path) -> None:
        """Start Redis alone."""
        self.directory = directory
        self.redis = RedisServer(directory, durable=True)
        self.env = self.redis.environment(0, 1)
        self.workers: list[Program] = []

    def start_worker(self, *options: str, name: str = "test") -> Program:
        """Start a worker of faulty_worker; all are killed at the end."""
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = start_worker(log, self.env, *options, app="faulty_worker", name=name)
        self.workers.append(worker)
        return worker

    def send(self, *calls: str) -> list[str]:
        """Send tasks, like ``dying.delay(1)``, and return their ids."""
        code = f"from faulty_worker import *; print(*[call.id for call in [{', '.join(calls)}]])"
        program = Program([sys.executable, "-c", code], self.directory / "send.log", self.env)
        assert program.process.wait(20) == 0
        return program.output().split()

    @property
    def ledger(self) -> Path:
        """Where ``recorded`` tasks write down each start and end, outside of Redis."""
        return self.directory / "ledger"

    def events(self, event: str) -> list[str]:
        """Return what was written down, in order: ``start`` or ``end``."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(event)]

    def dead_letters(self, *arguments: str) -> str:
        """Run the operator's command and return what it says."""
        log = self.directory / "dead_letters.log"
        program = Program([*ADMIN, "dead-letters", *arguments], log, of_the_console(self.env))
        assert program.process.wait(20) == 0, program.output()
        return program.output()

    def result(self, task_id: str, *states: str, timeout: float = 30) -> dict[str, Any]:
        """Wait until the task is in one of ``states`` (SUCCESS unless said otherwise); return what is stored of it."""

        def reached() -> dict[str, Any] | None:
            stored = self.redis.client(1).get(f"celery-task-meta-{task_id}")
            meta = json.loads(str(stored)) if stored else {}
            return meta if meta.get("status") in (states or ("SUCCESS",)) else None

        found = wait_until(reached, timeout)
        assert found
        return found

    def nothing_waits(self) -> bool:
        """Tell whether the broker holds no message, queued or unacknowledged."""
        broker = self.redis.client(0)
        return broker.llen(DEFAULT_QUEUE) == 0 and nothing_is_held(broker) and broker.hlen(ACCEPTED) == 0


class Api:
    """An API server and a client that sends its key."""

    def __init__(self, log: Path, env: dict[str, str], app: str = "app.main:app") -> None:
        """Start it on a free port, all of its log lines in JSON, and wait until it answers."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = secrets.token_hex(16)
        command = [sys.executable, "-m", "uvicorn", app, "--port", self.url.rpartition(":")[2]]
        command += ["--log-config", "app/log_config.json", "--no-server-header", *SERVER_OPTIONS]
        self.program = Program(command, log, {"BACKEND_API_KEY": self.key, **env})
        self.program.wait_for_output("Uvicorn running")
        self.client = httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=10)

    def stop(self) -> None:
        """Stop client and server."""
        self.client.close()
        self.program.stop()

    def enqueue(self, data: dict[str, Any], **headers: str) -> str:
        """Enqueue a task and return its id."""
        response = self.client.post("/tasks/enqueue", json={"data": data}, headers=headers)
        assert response.status_code == 202, response.text
        task_id: str = response.json()["task_id"]
        return task_id

    def status(self, task_id: str) -> dict[str, Any]:
        """Return what the API knows about a task."""
        response = self.client.get(f"/tasks/status/{task_id}")
        assert response.status_code == 200, response.text
        status: dict[str, Any] = response.json()
        return status

    def wait_for(self, task_id: str, state: str, timeout: float = 15, through_outages: bool = False) -> dict[str, Any]:
        """Wait until a task is in ``state`` and return its status; ``through_outages`` takes a 503 for "not yet"."""

        def reached() -> dict[str, Any] | None:
            response = self.client.get(f"/tasks/status/{task_id}")
            if through_outages and response.status_code == 503:
                return None
            assert response.status_code == 200, response.text
            status: dict[str, Any] = response.json()
            return status if status["status"] == state else None

        found = wait_until(reached, timeout)
        assert found is not None
        return found


def assert_flower_sees_all(directory: Path, environment: dict[str, str], key: str) -> None:
    """Start Flower with ``key`` as its password; it must count the empty queue, ask the worker and hear its events."""
    port = free_port()
    command = [sys.executable, "-m", "durable_console.flower", f"--port={port}"]
    environment = of_the_console(environment) | {"FLOWER_BASIC_AUTH": f"admin:{key}"}
    flower = Program(command, directory / "flower.log", environment)
    flower.wait_for_output("Visit me")

    def counts() -> bool:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/queues/length", auth=("admin", key))
        return answer.status_code == 200 and {"name": "celery", "messages": 0} in answer.json()["active_queues"]

    def asks() -> bool:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/workers?refresh=true", auth=("admin", key), timeout=10)
        return answer.status_code == 200 and all(worker["stats"] for worker in answer.json().values()) and answer.json()

    def hears() -> bool:
        answer = httpx.get(f"http://127.0.0.1:{port}/workers?json=1", auth=("admin", key))
        return answer.status_code == 200 and any(worker["status"] for worker in answer.json()["data"])

    wait_until(counts)
    wait_until(asks)
    wait_until(hears)
    flower.stop()
