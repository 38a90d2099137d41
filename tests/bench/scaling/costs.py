"""What requests, tasks and replicas cost."""

import json
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED
from celery_durable.metrics import WORKERS
from celery_durable.testing import RedisServer, wait_for
from tests.bench.scaling.load import Requests, enqueue_request, load, request
from tests.bench.scaling.processes import Stack, Use, cpu_seconds, family_cpu, family_mib, look
from tests.support import Api, Program

# Shares of the queue between which tasks that do nothing are counted: neither start-up nor the last few count.
FROM, TO = 0.85, 0.15
# Runs that wait: four progress reports, as the example task makes them, so many seconds apart.
REPORTS, REPORT_SECONDS = 4, 5.0
# Slots of the small and of the large worker that wait, for each pool.
SLOTS = {"prefork": (4, 24), "threads": (8, 160)}
# Until a worker that has started does nothing but wait.
SETTLE_SECONDS = 3.0
# Bytes of the larger payload.
PAYLOAD = 10_000


@dataclass(frozen=True)
class ApiCosts:
    """One API process and its Redis, without a worker."""

    health: Requests
    enqueue: Requests
    status: Requests  # of a waiting task
    enqueued: int
    broker: Use  # while tasks were enqueued
    polls: int
    polled: tuple[Use, Use]  # broker and results, while their status was asked for
    message: int  # bytes
    larger: float  # bytes of memory for each further byte of payload
    idle: Use  # of the broker, nothing waits
    full: Use  # the same while `waiting` tasks wait
    waiting: int
    sample: tuple[bytes, bytes]  # a message and its task's id


def measure_api(directory: Path, seconds: float) -> ApiCosts:
    """Load an API process until thousands of tasks wait."""
    with Stack(directory) as stack:
        api, client = stack.api(), stack.broker.client(0)
        idle = _during(lambda: time.sleep(seconds), stack.broker)
        health = load(api, [request(api, "GET", "/health")], 200, seconds / 2)
        before = look(stack.broker)
        enqueue = load(api, [enqueue_request(api)], 202, seconds)
        used = look(stack.broker).since(before)
        enqueued = int(client.llen(DEFAULT_QUEUE))
        ids: list[str] = client.hrandfield(ACCEPTED, 1000)  # type: ignore[assignment]
        message: str = client.lindex(DEFAULT_QUEUE, -1)  # type: ignore[assignment]
        requests = [request(api, "GET", f"/tasks/status/{task_id}") for task_id in ids]
        earlier = look(stack.broker), look(stack.results)
        status = load(api, requests, 200, seconds)
        polled = look(stack.broker).since(earlier[0]), look(stack.results).since(earlier[1])
        full = _during(lambda: time.sleep(seconds), stack.broker)
        before, length = look(stack.broker), int(client.llen(DEFAULT_QUEUE))
        load(api, [enqueue_request(api, PAYLOAD)], 202, seconds / 5, 8)
        large = look(stack.broker).since(before).memory / (int(client.llen(DEFAULT_QUEUE)) - length)
        return ApiCosts(
            health,
            enqueue,
            status,
            enqueued,
            used,
            polled[1].calls["get"],
            polled,
            len(message),
            (large - used.memory / enqueued) / PAYLOAD,
            idle,
            full,
            length,
            (message.encode(), json.loads(message)["headers"]["id"].encode()),
        )


def _during(action: Callable[[], object], server: RedisServer) -> Use:
    before = look(server)
    action()
    return look(server).since(before)


@dataclass(frozen=True)
class Tiny:
    """A worker that takes tasks which do nothing from a full queue."""

    rate: float  # tasks a second
    main: float  # CPU seconds of the worker's main process for each task
    slots: float  # the same of its children
    done: int
    broker: Use
    results: Use

    @property
    def cpu(self) -> float:
        """CPU seconds of the worker for each task."""
        return self.main + self.slots


OURS, GUIDE = "tests.bench.our_worker", "tests.bench.guide_worker"


def measure_tiny(directory: Path, app: str, pool: str, slots: int, tasks: int) -> Tiny:
    """Fill a queue, start a worker, and count in the middle of its work."""
    with Stack(directory) as stack:
        code = f"from {app} import tiny\nfor number in range({tasks}): tiny.delay(number)"
        fill = Program([sys.executable, "-c", code], directory / "fill.log", stack.env, stderr=subprocess.STDOUT)
        if fill.process.wait(120) != 0:
            raise RuntimeError(fill.output())
        worker, broker = stack.worker(["-m", "celery", "-A", app], pool, slots), stack.broker.client(0)
        pid = worker.process.pid

        def length() -> int:
            return int(broker.llen(DEFAULT_QUEUE))

        wait_for(lambda: length() <= FROM * tasks, seconds=60)
        left, main, cpu = length(), cpu_seconds(pid), family_cpu(pid)
        before = look(stack.broker), look(stack.results)
        wait_for(lambda: length() <= TO * tasks, seconds=120)
        used = look(stack.broker).since(before[0]), look(stack.results).since(before[1])
        cpu, done = family_cpu(pid) - cpu, left - length()
        main = cpu_seconds(pid) - main
        wait_for(lambda: broker.hlen(ACCEPTED) == 0 and length() == 0, seconds=60)
        del used[0].calls["llen"]  # our own
        return Tiny(done / used[0].seconds, main / done, (cpu - main) / done, done, *used)


@dataclass(frozen=True)
class Waiting:
    """A worker whose tasks wait most of the time, as agents do for the network."""

    pool: str
    base: float  # MiB of a worker without slots
    slot: float  # MiB for each slot
    idle: float  # CPU seconds of the worker a second, without tasks
    slots: int
    run: float  # CPU seconds of the worker for each run
    wait: float  # the same for each second that a run waits
    asked: Use  # of the broker, by one more worker without tasks
    polls: Requests  # of the API about runs that have ended
    result: bytes  # what is stored of a run
    stored: Use  # of the results, during the runs


def _slow_example(seconds: float) -> list[str]:
    """Return how to start Celery with the platform's own example task, its steps that many seconds long."""
    code = f"from app.agents.tasks import example_task\nexample_task.STEP_SECONDS = {seconds}\n"
    return ["-c", f"{code}from celery.__main__ import main\nmain()", "-A", "app.agents.worker"]


def _enqueue(api: Api) -> str:
    """Enqueue a task as a client does, which repeats what was refused."""
    key = {"Idempotency-Key": str(uuid.uuid4())}

    def accepted() -> str | None:
        response = api.post("/tasks/enqueue", json={"data": {"key": "value"}}, headers=key)
        return str(response.json()["task_id"]) if response.status_code == 202 else None

    task_id = wait_for(accepted)
    assert task_id
    return task_id


def measure_waiting(directory: Path, pool: str, seconds: float, share: float) -> Waiting:
    """Run a task in each slot of a small worker, then of a large one."""
    sizes = []
    small, large = SLOTS[pool]
    with Stack(directory) as stack:
        api, broker = stack.api(), stack.broker.client(0)
        alone = _during(lambda: time.sleep(seconds), stack.broker)

        def run_in_all(slots: int) -> list[str]:
            ids = [_enqueue(api) for _ in range(slots)]
            wait_for(lambda: stack.busy() == slots, seconds=60)
            return ids

        def all_ended() -> bool:
            return broker.hlen(ACCEPTED) == 0

        worker = stack.worker(_slow_example(1.0), pool, small)
        run_in_all(small)
        sizes.append(family_mib(worker.process.pid))
        wait_for(all_ended, seconds=60)
        worker.stop()
        broker.delete(WORKERS)

        worker = stack.worker(_slow_example(REPORT_SECONDS * share), pool, large)
        pid = worker.process.pid
        wait_for(lambda: broker.hlen(WORKERS) == 1, seconds=60)
        time.sleep(SETTLE_SECONDS)
        cpu = family_cpu(pid)
        together = _during(lambda: time.sleep(seconds), stack.broker)
        idle = (family_cpu(pid) - cpu) / together.seconds
        before, cpu = look(stack.results), family_cpu(pid)
        ids = run_in_all(large)
        sizes.append(family_mib(pid))
        # All have made their first report, none its second.
        waited, cpu_then = time.monotonic(), family_cpu(pid)
        time.sleep(REPORT_SECONDS * share / 3)
        wait = ((family_cpu(pid) - cpu_then) / (time.monotonic() - waited) - idle) / large
        wait_for(all_ended, seconds=120)
        stored = look(stack.results).since(before)
        run = (family_cpu(pid) - cpu - idle * stored.seconds) / large
        requests = [request(api, "GET", f"/tasks/status/{task_id}") for task_id in ids]
        polls = load(api, requests, 200, seconds)
        result: str = stack.results.client(1).get(f"celery-task-meta-{ids[0]}")  # type: ignore[assignment]
        slot = (sizes[1] - sizes[0]) / (large - small)
        # Both looks took as long: what differs is the worker's.
        calls = Counter(together.calls)
        calls.subtract(alone.calls)
        asked = Use(together.seconds, +calls, together.cpu - alone.cpu, 0, 0)
        return Waiting(
            pool, sizes[0] - small * slot, slot, idle, large, run, max(wait, 0), asked, polls, result.encode(), stored
        )


@dataclass(frozen=True)
class Replicated:
    """One way to accept a task."""

    name: str
    single: Requests  # over one connection
    many: Requests


def measure_replicas(directory: Path, rounds: int, seconds: float) -> dict[str, list[Replicated]]:
    """Enqueue without replicas, with two of them, and with two of which one must have the task; in turn."""
    with Stack(directory / "alone") as alone, Stack(directory / "replicated") as replicated:
        replicated.add_replicas()
        apis = {
            "no replica": alone.api(),
            "two replicas, nobody waits for them": replicated.api(),
            "two replicas, one must have the task": replicated.api(BROKER_REPLICAS_WANTED="1"),
        }
        runs: dict[str, list[Replicated]] = {name: [] for name in apis}
        for _ in range(rounds):
            for name, api in apis.items():
                requests = [enqueue_request(api)]
                single = load(api, requests, 202, seconds / 2, 1)
                runs[name].append(Replicated(name, single, load(api, requests, 202, seconds)))
        return runs
