"""One measurement of one side, from empty Redis servers on."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from celery_durable.testing import RedisServer, free_port, wait_for
from tests.bench.performance.sides import Side
from tests.bench.scaling.processes import cpu_seconds, family, family_mib
from tests.support import Api, Program

# CPU seconds of processes whose parents were killed with them.
orphans_cpu: list[float] = []
SCRIPT = Path(__file__).with_name("request.lua")
# Connections of a load, and of clients that send batches.
CONNECTIONS, BATCH_CONNECTIONS = 64, 4
# Rounds of all slots that are run first, that are counted, and that still wait then.
BEFORE, COUNTED, BEHIND = 2, 5, 2
# Shares of the tasks that do nothing between which the clock runs: neither start-up nor the last few count.
FROM, TO = 0.15, 0.85
# Finished tasks whose status is asked for, and tasks in a batch.
FINISHED = BATCH = 100
# Ours, with tasks that end at once.
AT_ONCE = (
    "from app.agents.tasks import agent_run; agent_run.STEPS = (('Asking the model', 0.0),);"
    "from celery_durable.__main__ import main; main()"
)


class Installation:
    """Redis servers and the programs of one side."""

    def __init__(self, directory: Path, fsync: str, env: dict[str, str] | None = None) -> None:
        """Start Redis: one, or a broker with ``fsync`` and another for results."""
        self.directory = directory
        self._running = ExitStack()
        shared = self._redis("results", "everysec")
        broker = (self._redis("broker", fsync) if fsync else shared).url(0)
        results = shared.url(1)
        self.ended_file = directory / "ended"
        self.ended_file.touch()
        self.env = {
            "BENCH_BROKER_URL": broker,
            "BENCH_RESULTS_URL": results,
            "CELERY_BROKER_URL": broker,
            "CELERY_RESULT_BACKEND": results,
            "TASK_SIGNING_KEY": "k" * 64,
            "BENCH_ENDED": str(self.ended_file),
            # Limits that are never reached, but checked.
            "QUEUE_MAX_LENGTH": "10000000",
            "RATE_LIMIT": "10000000/second",
            **(env or {}),
        }

    def __enter__(self) -> Self:
        """Everything is there already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything, the last first."""
        self._running.close()

    def _redis(self, name: str, fsync: str) -> RedisServer:
        server = RedisServer(self.directory / name, durable=True, appendfsync=fsync)
        self._running.callback(server.stop)
        return server

    def start(self, command: list[str], log: str) -> Program:
        """Start a program that is killed at the end with all of its children."""
        program = Program(command, self.directory / log, self.env, stderr=subprocess.STDOUT)
        self._running.callback(_kill, program)
        return program

    def api(self, app: str) -> Api:
        """Start an API process as the platform's units do."""
        api = Api(self.directory / "api.log", self.env, app)
        self._running.callback(api.stop)
        return api

    def fill(self, side: Side, task: str, argument: float, count: int) -> None:
        """Put so many tasks into the queue."""
        code = f"from {side.module} import fill; fill({task!r}, {argument}, {count})"
        program = self.start([side.python, "-c", code], "fill.log")
        if program.process.wait(300) != 0:
            raise RuntimeError(f"{side.name} enqueues no tasks: {program.output()}")

    def work(self, side: Side) -> Program:
        """Start the side's worker."""
        return self.start([side.python, *side.arguments], "worker.log")

    def ended(self) -> int:
        """Return how many tasks have ended."""
        return self.ended_file.stat().st_size

    def wait_for(self, count: int, worker: Program, timeout: float) -> float:
        """Return when so many tasks had ended."""
        deadline = time.monotonic() + timeout
        while self.ended() < count:
            if worker.process.poll() is not None:
                raise RuntimeError(f"The worker has ended: {worker.output()[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.ended()} of {count} tasks have ended after {timeout:g} s")
            time.sleep(0.005)  # finer than any wait of the tests: it is measured
        return time.monotonic()


def _kill(program: Program) -> None:
    members = family(program.process.pid) if program.process.poll() is None else []
    # What nobody waits for is in no sum of children's times.
    orphans_cpu.extend(map(cpu_seconds, members[1:]))
    for member in members:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    program.process.wait(10)


def _rate(installation: Installation, worker: Program, first: int, last: int) -> float:
    began, before = installation.wait_for(first, worker, 60), installation.ended()
    ended = installation.wait_for(last, worker, 120)
    return (installation.ended() - before) / (ended - began)


def waiting(side: Side, directory: Path, seconds: float) -> tuple[float, float]:
    """Return the runs of a second and the MiB of a worker whose slots all wait."""
    with Installation(directory, side.fsync, side.env) as installation:
        installation.fill(side, "wait", seconds, (BEFORE + COUNTED + BEHIND) * side.slots)
        worker = installation.work(side)
        rate = _rate(installation, worker, BEFORE * side.slots, (BEFORE + COUNTED) * side.slots)
        return rate, family_mib(worker.process.pid)


def nothing(side: Side, directory: Path, tasks: int) -> float:
    """Return how many tasks that do nothing a worker runs a second."""
    with Installation(directory, side.fsync, side.env) as installation:
        installation.fill(side, "tiny", 1, tasks)
        return _rate(installation, installation.work(side), int(FROM * tasks), int(TO * tasks))


def burst(side: Side, directory: Path, seconds: float) -> float:
    """Return how long a ready worker needs for twice as many runs as it has slots, their enqueueing included."""
    with Installation(directory, side.fsync, side.env) as installation:
        worker = installation.work(side)
        worker.wait_for_output("ready.")
        began = time.monotonic()
        installation.fill(side, "wait", seconds, 2 * side.slots)
        return installation.wait_for(2 * side.slots, worker, 10 * seconds + 60) - began


@dataclass(frozen=True)
class Load:
    """What wrk reports; times are milliseconds."""

    rate: float  # a second
    p50: float
    p99: float
    answers: int
    failed: int  # of them not 2xx
    broken: int  # connections and answers that did not come


def wrk(
    directory: Path, api: tuple[str, str], seconds: float, paths: Iterable[str], body: Any = None, *, few: bool = False
) -> Load:
    """Send requests to an API (URL and key) over many connections or few, each after the answer to the one before."""
    (url, key), connections = api, BATCH_CONNECTIONS if few else CONNECTIONS
    file = directory / "paths"
    file.write_text("\n".join(paths) + "\n")
    env = {"BENCH_METHOD": "GET", "BENCH_KEY": key}
    if body is not None:
        env |= {"BENCH_METHOD": "POST", "BENCH_BODY": json.dumps(body)}
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--script={SCRIPT}", "--latency"]
    result = subprocess.run(
        [*command, f"--duration={seconds:.0f}s", url, "--", str(file)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    )
    load = Load(**json.loads(result.stdout.splitlines()[-1]))
    if load.answers == load.failed:
        raise RuntimeError(f"{url} has answered no request over {connections} connections with 2xx.")
    return load


def _finish(ask: Callable[[str], httpx.Response], paths: list[str]) -> None:
    """Wait until all tasks have succeeded."""
    for path in paths:
        wait_for(lambda path=path: ask(path).json()["status"] == "SUCCESS", seconds=60)  # type: ignore[misc]


def guide_api(directory: Path, seconds: float) -> dict[str, Load]:
    """Load a process of the guide's API, started as the guide does."""
    port, key = free_port(), secrets.token_hex(16)
    url = f"http://127.0.0.1:{port}"
    body = {"data": {"key": "value"}}
    with Installation(directory, "") as installation, httpx.Client(base_url=url) as client:
        api = installation.start(
            [sys.executable, "-m", "uvicorn", "tests.bench.guide_api:app", f"--port={port}"], "api.log"
        )
        api.wait_for_output("Uvicorn running")
        ids = [client.post("/tasks/enqueue", json=body).json()["task_id"] for _ in range(FINISHED)]
        paths = [f"/tasks/status/{task_id}" for task_id in ids]
        command = ["-m", "celery", "-A", "tests.bench.guide_worker", "worker", "--concurrency=2"]
        worker = installation.start([sys.executable, *command], "worker.log")
        _finish(client.get, paths)
        _kill(worker)
        return {
            "status": wrk(directory, (url, key), seconds, paths),
            "enqueue": wrk(directory, (url, key), seconds, ["/tasks/enqueue"], body),
        }


def bare_route(directory: Path, seconds: float) -> Load:
    """Load a route that only answers, in a server with our settings."""
    with Installation(directory, "") as installation:
        api = installation.api("tests.bench.guide_api:app")
        return wrk(directory, (api.url, api.key), seconds, ["/health"])


def our_api(directory: Path, seconds: float) -> dict[str, Load]:
    """Load a process of our API."""
    with Installation(directory, "always") as installation:
        api = installation.api("app.main:app")
        task = {"data": {"key": "value"}}
        batch = {"task": "agent_run", "tasks": [task] * BATCH}
        ids = api.post("/tasks/enqueue/batch", json=batch).raise_for_status().json()["task_ids"]
        paths = [f"/tasks/status/{task_id}" for task_id in ids]
        command = ["-c", AT_ONCE, "-A", "app.agents.worker", "worker", "--concurrency=2"]
        worker = installation.start([sys.executable, *command], "worker.log")
        _finish(api.get, paths)
        _kill(worker)

        server, single, batches = (api.url, api.key), ["/tasks/enqueue"], ["/tasks/enqueue/batch"]
        return {
            "health": wrk(directory, server, seconds, ["/health"]),
            "status": wrk(directory, server, seconds, paths),
            "enqueue": wrk(directory, server, seconds, single, task),
            "single": wrk(directory, server, seconds, single, task, few=True),
            "batch": wrk(directory, server, seconds, batches, batch, few=True),
        }
