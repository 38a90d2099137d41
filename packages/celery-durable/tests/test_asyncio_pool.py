"""The pool ``asyncio`` keeps every limit and promise of prefork, and coroutines are tasks in every pool."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_durable.keys import DEAD_LETTERS
from celery_durable.redelivery import MAX_REDELIVERIES
from tests.support import Program, Stack, wait_until

pytestmark = pytest.mark.integration

SLOTS = 20


class Farm:
    """A Redis, workers of asyncio_worker, and a client of theirs."""

    def __init__(self, directory: Path) -> None:
        """Start Redis alone."""
        self.stack = Stack(directory)
        self.env = {**self.stack.env, "LEDGER": str(self.stack.ledger)}
        self.client = Celery(broker=self.stack.redis.url(0), backend=self.stack.redis.url(1), set_as_current=False)
        self.client.conf.worker_prefetch_multiplier = 1

    def start_worker(self, *options: str, pool: str = "asyncio", **env: str) -> Program:
        """Start a worker and wait until it takes tasks."""
        log = self.stack.directory / f"worker-{len(self.stack.workers)}.log"
        command = ["-A", "asyncio_worker", "worker", "--pool", pool, "-c", str(SLOTS), "-l", "info"]
        program = Program(
            [sys.executable, "-m", "celery_durable", *command, "-n", "test@host", *options],
            log,
            {**self.env, **env},
            stderr=subprocess.STDOUT,
        )
        self.stack.workers.append(program)
        program.wait_for_output("ready")
        return program

    def send(self, name: str, *args: object, **options: Any) -> str:
        """Send a task and return its id."""
        full = name if name == "own" else f"asyncio_worker.{name}"
        return str(self.client.send_task(full, args, **options).id)

    def result(self, task_id: str, *states: str) -> Any:
        """Wait for a task's end and return its result."""
        return self.stack.result(task_id, *states)["result"]

    def error(self, task_id: str) -> str:
        """Wait until a task has failed and return the type of its error."""
        return str(self.result(task_id, "FAILURE")["exc_type"])

    def noted(self, word: str) -> list[str]:
        """Return what was written down after ``word``."""
        return self.stack.events(f"{word} ")

    def wait_for_start(self, *names: str) -> None:
        """Wait until tasks of these names have begun."""

        def all_have_begun() -> bool:
            return {*names} <= {line.split()[0] for line in self.noted("start")}

        wait_until(all_have_begun)

    def starts(self) -> Counter[str]:
        """Return how often each task of ``waiting`` has begun."""
        return Counter(line.split()[0] for line in self.noted("start"))

    def processes(self) -> list[int]:
        """Return the pool's processes, as the worker reports them."""
        pids = self.stats()["processes"]
        assert isinstance(pids, list)
        return sorted(pids)

    def stats(self) -> dict[str, Any]:
        """Return what the worker reports of its pool."""
        answer = wait_until(self.inspect().stats)
        return dict(answer["test@host"]["pool"])

    def inspect(self) -> Any:
        """Return what asks the worker, and waits no longer than it takes to answer."""
        return self.client.control.inspect(destination=["test@host"], timeout=5)

    def failed(self) -> set[str]:
        """Return the tasks that count as failed, when a worker has had the time to report them."""
        time.sleep(1.5)
        return {json.loads(entry)["id"] for entry in self.stack.redis.client(0).lrange("failures", 0, -1)}

    def stop(self) -> None:
        """Stop everything."""
        for worker in self.stack.workers:
            worker.stop(signal.SIGKILL)
        self.stack.redis.stop()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    """A farm of this test alone."""
    farm = Farm(tmp_path)
    yield farm
    farm.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm whose worker outlives what tests do to its processes."""
    farm = Farm(tmp_path_factory.mktemp("farm"))
    farm.start_worker()
    yield farm
    assert farm.stack.workers[0].stop() == 0
    farm.stop()


EXITS = ("exit", "interrupt", "beyond", "generator-exit", "cancel", "exit-of-a-part")


@pytest.mark.parametrize("pool", ["asyncio", "prefork", "threads", "solo"])
def test_coroutines_end_alike_in_every_pool(farm: Farm, pool: str) -> None:
    worker = farm.start_worker(*(["-c", "4"] if pool == "prefork" else []), pool=pool)
    ways = ("success", "failure", "retry", "requeue", "ignore", "reject", "memory", *EXITS)
    ids = {how: farm.send("ends", how) for how in ways}
    retried, own, called = farm.send("retried"), farm.send("own", 4), farm.send("called")
    for how in ("success", "retry", "requeue"):
        assert farm.result(ids[how]) == "done"
    assert farm.error(ids["failure"]) == "ValueError"
    assert farm.error(ids["memory"]) == "MemoryError"
    assert farm.error(ids["reject"]) == "Reject"
    assert {farm.error(ids[how]) for how in EXITS} == {"TaskExitedError"}
    assert farm.result(retried) == 2
    assert farm.result(own) == [8, "own"]
    assert farm.noted("handled") == [f"{own} 8"]
    assert farm.result(called) == "called well"
    wait_until(farm.stack.nothing_waits)
    assert farm.starts() == {how: 2 if how in ("retry", "requeue") else 1 for how in ids}
    if pool != "solo":  # a slot for each that is waited for
        assert farm.result(farm.send("awaiting")) == ["PROGRESS", 3, 6, "on purpose"]
    assert worker.process.poll() is None


@pytest.mark.parametrize("pool", ["asyncio", "prefork", "threads"])
def test_whatever_calls_a_coroutine_gets_what_it_returns(farm: Farm, pool: str) -> None:
    farm.start_worker(*(["-c", "1"] if pool == "prefork" else []), pool=pool)
    calls: dict[str, tuple[object, object]] = {
        "validated": ({"number": 1}, {"number": 2}),
        "passed": (7, 7),
        "by_hand": (1, 9),
        "nested": (2, 2),
    }
    ids = {name: farm.send(name, argument) for name, (argument, _) in calls.items()}
    ids["stopping"] = farm.send("stopping")
    assert {name: farm.result(task_id) for name, task_id in ids.items()} == {
        "stopping": "went on",
        **{name: expected for name, (_, expected) in calls.items()},
    }


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_the_soft_limit_is_raised_inside_the_coroutine(farm: Farm, pool: str) -> None:
    farm.start_worker(*(["-c", "3"] if pool == "prefork" else []), pool=pool)
    limits = {"soft_time_limit": 0.5, "time_limit": 20}
    returned, raised, inside = (farm.send("limited", how, **limits) for how in ("return", "raise", "inside"))
    assert farm.result(returned) == "cleaned up"
    assert farm.error(raised) == "SoftTimeLimitExceeded"
    assert farm.error(inside) == "SoftTimeLimitExceeded"
    assert {*farm.noted("soft")} == {"return", "raise", "inside"}
    # Not left behind on the loop.
    wait_until(lambda: farm.noted("part") == ["ended"])


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_what_is_requeued_at_its_limit_becomes_a_dead_letter(farm: Farm, pool: str) -> None:
    farm.start_worker(*(["-c", "1"] if pool == "prefork" else []), pool=pool)
    overdue = farm.send("overdue", returns=MAX_REDELIVERIES - 1)
    wait_until(lambda: farm.stack.redis.client(0).llen(DEAD_LETTERS))
    assert farm.starts() == {"overdue": 2}
    assert farm.error(overdue) == "TimeLimitExceeded"
    (letter,) = farm.stack.redis.client(0).lrange(DEAD_LETTERS, 0, -1)
    assert "hit its hard time limit in each of 11 runs" in str(letter)
    wait_until(farm.stack.nothing_waits)


def test_a_worker_has_limits_of_its_own(farm: Farm) -> None:
    farm.start_worker("--soft-time-limit", "1", "--time-limit", "2")
    assert farm.result(farm.send("limited", "return")) == "cleaned up"
    assert farm.error(farm.send("limited", "swallow", soft_time_limit=60)) == "TimeLimitExceeded"


class Neighbours:
    """Runs that wait in both processes, while something happens to one of these."""

    def __init__(self, farm: Farm, prefix: str, seconds: float = 3) -> None:
        """Start them."""
        self.farm, self.before = farm, farm.processes()
        self.names = [f"{prefix}-{number}" for number in range(6)]
        self.ids = [farm.send("waiting", name, seconds) for name in self.names]
        farm.wait_for_start(*self.names)

    def of(self, pid: int) -> set[str]:
        """Return those that began in a process."""
        lines = [line.split() for line in self.farm.noted("start")]
        return {name for name, *rest in lines if rest == [str(pid)] and name in self.names}

    def run_again(self, pid: int) -> None:
        """Check that those of ``pid`` ran again, not as failures, that no other did, and that it was replaced."""
        again = self.of(pid)
        assert again
        # None counts as a retry either.
        assert [self.farm.result(task) for task in self.ids] == [[name, 0] for name in self.names]
        starts = self.farm.starts()
        assert {name: starts[name] for name in self.names} == {name: 1 + (name in again) for name in self.names}
        self.are_in_new_process(pid)
        assert self.farm.failed().isdisjoint(self.ids)

    def are_in_new_process(self, pid: int) -> None:
        """Check that ``pid`` alone was replaced."""

        def replaced() -> bool:
            now = {*self.farm.processes()}
            return len(now) == len(self.before) and {*self.before} - now == {pid}

        wait_until(replaced)


@pytest.mark.parametrize("how", ["raise", "late"])
def test_a_run_that_is_over_its_hard_limit_is_cancelled_and_nothing_else(shared: Farm, how: str) -> None:
    before = shared.processes()
    task = shared.send("limited", how, time_limit=0.5)
    assert shared.error(task) == "TimeLimitExceeded"
    assert how in shared.noted("cancelled")
    assert shared.processes() == before


@pytest.mark.parametrize("how", ["swallow", "block", "busy"])
def test_a_run_that_cannot_be_cancelled_loses_its_process_and_its_neighbours_run_again(shared: Farm, how: str) -> None:
    neighbours = Neighbours(shared, how)
    culprit = shared.send("limited", how, time_limit=0.3)
    assert shared.error(culprit) == "TimeLimitExceeded"
    (pid,) = {*neighbours.before} - {*shared.processes()}
    neighbours.run_again(pid)
    assert shared.starts()[how] == 1
    assert culprit in shared.failed()


def test_a_neighbour_whose_own_limit_passes_on_a_blocked_loop_is_not_to_blame(shared: Farm) -> None:
    names = [f"late-{number}" for number in range(6)]
    ids = [shared.send("waiting", name, 2.5, time_limit=4) for name in names]
    shared.wait_for_start(*names)
    culprit = shared.send("limited", "block", time_limit=5)
    assert shared.error(culprit) == "TimeLimitExceeded"
    assert {shared.stack.result(task)["status"] for task in ids} == {"SUCCESS"}


def test_a_thread_that_is_over_its_hard_limit_loses_its_process(shared: Farm) -> None:
    assert shared.result(shared.send("blocking", "short", 0.1)) == "short"
    neighbours = Neighbours(shared, "thread")
    culprit = shared.send("blocking", "long", 60, time_limit=0.3)
    assert shared.error(culprit) == "TimeLimitExceeded"
    (pid,) = {*neighbours.before} - {*shared.processes()}
    neighbours.run_again(pid)


def test_a_process_that_is_killed_costs_its_runs_a_restart_and_no_failure(shared: Farm) -> None:
    neighbours = Neighbours(shared, "killed")
    os.kill(neighbours.before[0], signal.SIGKILL)
    neighbours.run_again(neighbours.before[0])


def test_a_run_that_exits_is_retried_and_in_the_end_a_dead_letter(shared: Farm) -> None:
    neighbours = Neighbours(shared, "exited", 2)
    once, always = shared.send("dying", "coroutine", 1), shared.send("dying", "coroutine", 9)
    assert shared.result(once) == "survived"
    assert shared.error(always) == "WorkerLostError"
    assert [shared.result(task) for task in neighbours.ids] == [[name, 0] for name in neighbours.names]
    assert shared.failed().isdisjoint([*neighbours.ids, once])
    wait_until(shared.stack.nothing_waits)
    letters = shared.stack.dead_letters("list")
    assert f"{always}" in letters
    assert once not in letters


def test_what_ends_processes_from_a_thread_is_found_by_isolation(shared: Farm) -> None:
    ids = [shared.send("waiting", f"isolated-{number}", 1) for number in range(4)]
    poison = shared.send("dying", "thread", 99)
    assert shared.error(poison) == "NeighbourLostError"
    assert [shared.stack.result(task)["status"] for task in ids] == ["SUCCESS"] * len(ids)
    assert shared.failed().isdisjoint(ids)
    wait_until(shared.stack.nothing_waits)
    assert poison in shared.stack.dead_letters("list")
    wait_until(lambda: len(shared.processes()) == 2)


def test_a_task_that_forks_copies_no_run(shared: Farm) -> None:
    neighbours = Neighbours(shared, "forked", 1)
    assert shared.result(shared.send("forking")) == "done"
    assert [shared.result(task) for task in neighbours.ids] == [[name, 0] for name in neighbours.names]
    ends = Counter(line.split()[0] for line in shared.noted("end"))
    assert {ends[name] for name in neighbours.names} == {1}
    assert len(shared.noted("forked")) == 2
    assert len(shared.noted("after")) == 1


@pytest.mark.parametrize("how", ["raise", "swallow"])
def test_a_revoked_run_is_cancelled_alone(shared: Farm, how: str) -> None:
    neighbours = Neighbours(shared, f"revoked-{how}", 3)
    cancelled = shared.noted("cancelled").count(how)
    task = shared.send("limited", how, task_id=f"revoked-{how}")
    wait_until(lambda: shared.starts()[how] > cancelled)
    shared.client.control.revoke(task, terminate=True)
    shared.stack.result(task, "REVOKED")
    wait_until(lambda: shared.noted("cancelled").count(how) > cancelled)
    if how == "raise":
        assert [shared.result(one) for one in neighbours.ids] == [[name, 0] for name in neighbours.names]
        assert shared.processes() == neighbours.before
    else:
        wait_until(lambda: neighbours.before != shared.processes())
        (pid,) = {*neighbours.before} - {*shared.processes()}
        neighbours.run_again(pid)
    wait_until(shared.stack.nothing_waits)
    assert shared.stack.result(task, "REVOKED")["status"] == "REVOKED"


def test_a_blocked_loop_is_reported_with_task_and_stack_and_counted(shared: Farm) -> None:
    task = shared.send("lagging")
    assert shared.result(task) == "done"
    output = shared.stack.workers[0].output()
    assert re.search(rf"WARNING.*is blocked by task asyncio_worker.lagging\[{task}\]", output)
    assert "time.sleep(1.8)" in output
    field = "loop_lag\x1fasyncio_worker.lagging\x1f2.0"
    wait_until(lambda: shared.stack.redis.client(0).hget("figures", field) == "1")


def test_a_loop_that_is_blocked_until_its_process_is_replaced_is_counted(shared: Farm) -> None:
    def blocked() -> int:
        # Its hard limit, and the two seconds until its process is replaced.
        return int(shared.stack.redis.client(0).hget("figures", "loop_lag\x1fasyncio_worker.limited\x1f5.0") or 0)

    before = blocked()
    assert shared.error(shared.send("limited", "block", time_limit=0.3)) == "TimeLimitExceeded"
    wait_until(lambda: blocked() == before + 1)


def test_neither_progress_nor_sending_holds_the_loop_while_redis_hangs(shared: Farm) -> None:
    ticks = [shared.send("ticking", 4) for _ in range(4)]
    tasks = [shared.send("waiting", f"hold-{number}", 0) for number in range(2)]
    assert all(shared.result(task) for task in tasks)
    reports = [shared.send("reporting", f"r{number}") for number in range(4)]
    wait_until(lambda: len(shared.noted("held")) == 4)
    shared.stack.redis.hang()
    time.sleep(2)  # the runs end meanwhile
    shared.stack.redis.program.process.send_signal(signal.SIGCONT)
    assert max(shared.result(task) for task in ticks) < 0.5
    for number, task in enumerate(reports):
        child = shared.result(task)
        assert shared.result(child) == [f"child of r{number}", 0]
    assert max(float(line.split()[1]) for line in shared.noted("held")) < 0.5


def test_what_a_process_shares_is_opened_once_and_closed_at_its_end(farm: Farm) -> None:
    worker = farm.start_worker()
    clients = {farm.result(task) for task in [farm.send("sharing") for _ in range(10)]}
    pids = {*farm.noted("opened")}
    assert clients == {f"client of {pid}" for pid in pids}
    assert len(farm.noted("opened")) == len(pids) == 2
    assert {*farm.noted("process")} == pids
    assert worker.stop() == 0
    assert {*farm.noted("closed")} == pids
    assert {*farm.noted("process-end")} == pids


def test_each_line_of_the_log_names_its_own_run(farm: Farm) -> None:
    worker = farm.start_worker(DURABLE_LOGS="json")
    ids = {farm.send("talking", headers={"request_id": f"request-{number}"}) for number in range(10)}
    assert all(farm.result(task) is None for task in ids)
    written = [json.loads(line) for line in worker.output().splitlines() if line.startswith("{")]
    lines = [line for line in written if line["message"].startswith(("corou", "part", "thread", "callb"))]
    assert len(lines) == 10 * 12
    assert all(line["message"].split()[1] == line["task_id"] for line in lines)
    requests = {(line["task_id"], line["request_id"]) for line in lines}
    assert len(requests) == 10


def test_operators_see_and_resize_it(farm: Farm) -> None:
    farm.start_worker("-c", "2")
    control = farm.client.control
    ids = [farm.send("waiting", f"n{number}", 3) for number in range(5)]
    farm.wait_for_start("n0", "n1")
    assert farm.inspect().ping() == {"test@host": {"ok": "pong"}}
    active = farm.inspect().active()["test@host"]
    assert {task["id"] for task in active} <= {*ids}
    assert len(active) == 2
    assert {task["worker_pid"] for task in active} == {*farm.processes()}
    assert farm.stats()["max-concurrency"] == 2
    reported: Any = wait_until(lambda: farm.stack.redis.client(0).hget("workers", "test@host"))
    state = json.loads(reported.partition(" ")[2])
    assert (state["pool"], state["size"]) == ("asyncio", 2)
    control.pool_grow(2, destination=["test@host"], reply=True)
    farm.wait_for_start("n2", "n3")
    assert len(farm.inspect().active()["test@host"]) == 4
    control.pool_shrink(3, destination=["test@host"], reply=True)
    assert farm.stats()["max-concurrency"] == 1
    assert [farm.result(task)[0] for task in ids] == ["n0", "n1", "n2", "n3", "n4"]


def test_a_process_is_drained_before_it_is_replaced(farm: Farm) -> None:
    worker = farm.start_worker("--max-tasks-per-child", "5")
    names = [f"n{number}" for number in range(12)]
    ids = [farm.send("waiting", name, 2) for name in names]
    farm.wait_for_start(*names)
    assert not farm.noted("end")
    runs = Counter(int(line.split()[1]) for line in farm.noted("start"))
    full = {pid for pid, number in runs.items() if number == 5}
    assert max(runs.values()) == 5
    assert len(runs) > 2  # the next ones run beside them
    assert [farm.result(task) for task in ids] == [[name, 0] for name in names]
    wait_until(lambda: len(farm.processes()) == 2 and full.isdisjoint(farm.processes()))
    assert {*farm.starts().values()} == {1}
    assert "has ended" not in worker.output()


def test_a_process_with_too_much_memory_is_replaced(farm: Farm) -> None:
    worker = farm.start_worker("--max-memory-per-child", "1000")
    task = farm.send("waiting", "n", 2)
    assert farm.result(task) == ["n", 0]
    assert "it is replaced" in worker.output()


def test_a_warm_stop_finishes_what_runs(farm: Farm) -> None:
    worker = farm.start_worker()
    ids = [farm.send("waiting", f"n{number}", 2) for number in range(4)]
    farm.wait_for_start("n0", "n1", "n2", "n3")
    assert worker.stop() == 0
    assert [farm.result(task)[1] for task in ids] == [0, 0, 0, 0]
    assert farm.stack.nothing_waits()


def test_a_cold_stop_requeues_what_runs(farm: Farm) -> None:
    worker = farm.start_worker()
    names = [f"n{number}" for number in range(4)]
    ids = [farm.send("waiting", name, 5) for name in names]
    farm.wait_for_start(*names)
    worker.stop(signal.SIGQUIT)
    assert not farm.noted("end")
    assert farm.stack.redis.client(0).llen("celery") == 4
    farm.start_worker()
    assert [farm.result(task) for task in ids] == [[name, 0] for name in names]
    assert farm.failed() == set()


def test_the_second_phase_of_a_stop_requeues_what_has_longer_limits(farm: Farm) -> None:
    worker = farm.start_worker(TIME_LIMIT="1")
    farm.send("waiting", "n", 100, time_limit=600)
    farm.wait_for_start("n")
    worker.stop(timeout=20)
    assert farm.stack.redis.client(0).llen("celery") == 1


def test_no_process_outlives_its_worker(farm: Farm) -> None:
    worker = farm.start_worker()
    pids = farm.processes()
    farm.send("waiting", "n", 100)
    farm.wait_for_start("n")
    worker.stop(signal.SIGKILL)
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def test_celerys_own_door_leads_to_it(farm: Farm) -> None:
    farm.start_worker(pool="custom", CELERY_CUSTOM_WORKER_POOL="celery_durable.worker.asyncio_pool:TaskPool")
    assert farm.result(farm.send("waiting", "n", 0)) == ["n", 0]
    assert "asyncio_pool" in farm.stats()["implementation"]
