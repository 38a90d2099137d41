"""What the tests share: the sample application's programs, and Ansible without hosts."""

import atexit
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import redis
import trustme

from celery_durable import testing
from celery_durable.keys import ACCEPTED, LEASES, UNACKED
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.testing import RedisServer, free_port, wait_for
from tests.api_client import ApiClient

REPOSITORY = Path(__file__).parent.parent
# Every program that tests start finds faulty_worker and asyncio_worker.
APPLICATIONS = str(REPOSITORY / "packages/celery-durable/tests")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (APPLICATIONS, os.environ.get("PYTHONPATH"))))


# Ansible in one process, without a fork for each task of each host.
INLINE = {
    "ANSIBLE_STRATEGY": "inline",
    "ANSIBLE_STRATEGY_PLUGINS": str(REPOSITORY / "tests/plugins/strategy"),
    "ANSIBLE_DEPRECATION_WARNINGS": "false",
}

# How the units and containers run the API's server, beyond address and log.
SERVER_OPTIONS = ["--http", "durable_console.web.connections:Protocol", "--limit-concurrency", "500"]
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


class Ansible:
    """Ansible with one environment, loaded once for all runs of ansible-playbook."""

    def __init__(self, env: dict[str, str]) -> None:
        """Load it, in a process of its own."""
        self.process = subprocess.Popen(
            [sys.executable, "tests/ansible_forks.py"],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook in the repository."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            request = {"arguments": arguments, "stdout": stdout.name, "stderr": stderr.name}
            try:
                self.process.stdin.write(f"{json.dumps(request)}\n")
                self.process.stdin.flush()
                status = int(self.process.stdout.readline())
            except BaseException:  # a test's time is over
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise
            return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


ansibles: dict[tuple[tuple[str, str], ...], Ansible] = {}


@atexit.register
def stop_ansibles() -> None:
    """Let them remove their temporary files."""
    for ansible in ansibles.values():
        ansible.process.communicate()


def ansible_playbook(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in the repository, in one process."""
    environment = {**os.environ, **INLINE, **env}
    environment.pop("PYTEST_CURRENT_TEST", None)
    key = tuple(sorted(environment.items()))
    if key not in ansibles or ansibles[key].process.poll() is not None:
        ansibles[key] = Ansible(environment)
    return ansibles[key].run(*map(str, arguments))


def ansible_report(*arguments: str | Path, **env: str) -> dict[str, Any]:
    """Run ansible-playbook in the repository, in one process; return what its JSON callback reports."""
    result = ansible_playbook(*arguments, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json", **env)
    assert "{" in result.stdout, result.stderr
    report: dict[str, Any]
    report, _ = json.JSONDecoder().raw_decode(result.stdout[result.stdout.index("{") :])
    return report


def load_plugin(path: str) -> ModuleType:
    """Import a role's plugin or a script, which lies in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


class Program(testing.Program):
    """A program of the repository, or of its tests."""

    def __init__(
        self, command: list[str], log: Path, env: dict[str, str] | None = None, stderr: int = subprocess.DEVNULL
    ) -> None:
        """Start it with ``env`` on top of the environment."""
        super().__init__(command, log, env, stderr, cwd=REPOSITORY)


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
    """Tell whether no worker, alive or dead, has a message in flight."""
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

        found = wait_for(reached, f"{task_id} as wanted", timeout)
        assert found
        return found

    def nothing_waits(self) -> bool:
        """Tell whether the broker holds no message, queued or unacknowledged."""
        broker = self.redis.client(0)
        return broker.llen(DEFAULT_QUEUE) == 0 and nothing_is_held(broker) and broker.hlen(ACCEPTED) == 0


class Api(ApiClient):
    """An API server of the sample, and its client."""

    def __init__(self, log: Path, env: dict[str, str], app: str = "app.main:app") -> None:
        """Start it on a free port, all of its log lines in JSON, and wait until it answers."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = secrets.token_hex(16)
        command = [sys.executable, "-m", "uvicorn", app, "--port", self.url.rpartition(":")[2]]
        command += ["--log-config", "app/log_config.json", "--no-server-header", *SERVER_OPTIONS]
        self.program = Program(command, log, {"BACKEND_API_KEY": self.key, **env})
        self.program.wait_for_output("Uvicorn running")
        super().__init__(self.url, self.key)

    def stop(self) -> None:
        """Stop client and server."""
        self.close()
        self.program.stop()


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

    wait_for(counts)
    wait_for(asks)
    wait_for(hears)
    flower.stop()
