"""What an operator does with queues: nothing is lost or doubled, and what is said of a task is true."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.agents.worker import celery_app
from celery_durable import snapshot
from celery_durable.keys import ACCEPTED, DEAD_LETTERS, LEASES, deferred_list, unacked_list
from celery_durable.options import options_of
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.task_ids import new_task_id
from celery_durable.testing import wait_for
from durable_console.admin.diagnosis import queue_backlog, stuck_tasks
from test_task_safety import POISON
from tests.support import ADMIN, Api, Program, Stack, of_the_console

pytestmark = pytest.mark.integration

RECORDED, SLEEPING = "faulty_worker.recorded", "faulty_worker.sleeping"
DEFERRED = deferred_list(DEFAULT_QUEUE)


class Operator(Stack):
    """Signed messages, and the commands of an operator."""

    def __init__(self, directory: Path) -> None:
        """Start Redis alone."""
        super().__init__(directory)
        self.env["TASK_SIGNING_KEY"] = secrets.token_hex(32)
        self.broker = self.redis.client(0)

    def queues(self, *arguments: str, succeeds: bool = True) -> str:
        """Run a command and return what it says."""
        command = [*ADMIN, "queues", *arguments]
        program = Program(command, self.directory / "queues.log", of_the_console(self.env))
        assert (program.process.wait(30) == 0) is succeeds, program.output()
        return program.output()

    def asked(self, *arguments: str) -> dict[str, Any]:
        """Run a command that answers in JSON."""
        answer: dict[str, Any] = json.loads(self.queues(*arguments))
        return answer

    def send_recorded(self, numbers: range, seconds: float = 0) -> list[str]:
        """Send tasks that write down that they run."""
        call = f"recorded.delay(number, '{self.ledger}', {seconds})"
        return self.send(f"*[{call} for number in range({numbers.start}, {numbers.stop})]")

    def names(self, name: str) -> list[str]:
        """Return the tasks' names in a list, the next to be taken first."""
        return [json.loads(entry)["headers"]["task"] for entry in reversed(self.broker.lrange(name, 0, -1))]

    def ids(self, name: str) -> list[str]:
        """Return the tasks' ids in a list, the next to be taken first."""
        return [json.loads(entry)["headers"]["id"] for entry in reversed(self.broker.lrange(name, 0, -1))]


def old_id() -> str:
    """Return an id as the API makes them, of three minutes ago (RFC 9562: milliseconds, version, variant)."""
    milliseconds = int((time.time() - 180) * 1000)
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | secrets.randbits(62)))


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """Redis of this test alone."""
    operator = Operator(tmp_path)
    yield operator
    for worker in operator.workers:
        worker.stop(signal.SIGKILL)
    operator.redis.stop()


def test_deferred_tasks_stay_accepted_and_come_back_in_their_order(operator: Operator) -> None:
    first = operator.send_recorded(range(250))
    others = operator.send("sleeping.delay(0)", "sleeping.delay(0)")
    later = operator.send_recorded(range(250, 260))
    assert "260 tasks of celery are deferred" in operator.queues("defer", "--task", RECORDED)
    assert operator.ids(DEFAULT_QUEUE) == others
    assert operator.ids(DEFERRED) == first + later
    assert operator.broker.hlen(ACCEPTED) == 262
    assert "celery: 260 deferred" in operator.queues("list")
    assert "is deferred" in operator.asked("find", first[0])["verdict"]
    assert "0 tasks are in celery again" in operator.queues("resume", "--task", SLEEPING)
    assert "260 tasks are in celery again" in operator.queues("resume")
    assert operator.ids(DEFAULT_QUEUE) == others + first + later
    operator.start_worker()
    wait_for(operator.nothing_waits, seconds=30)
    assert sorted(map(int, operator.events("end"))) == list(range(260))
    assert operator.broker.llen(DEAD_LETTERS) == 0


def test_nothing_is_lost_or_doubled_while_workers_consume(operator: Operator) -> None:
    operator.send_recorded(range(3000))
    operator.start_worker("--concurrency=4", "--prefetch-multiplier=8")
    for _ in range(3):
        done = len(operator.events("end"))
        operator.queues("defer", "--task", RECORDED)
        assert operator.broker.llen(DEFERRED) > 0, "all done too early"
        assert operator.broker.llen(DEFAULT_QUEUE) == 0
        operator.queues("resume")
        wait_for(lambda: len(operator.events("end")) > done)  # noqa: B023 - called at once
    wait_for(operator.nothing_waits, seconds=60)
    assert sorted(map(int, operator.events("start"))) == list(range(3000))
    assert operator.broker.llen(DEFERRED) == operator.broker.llen(DEAD_LETTERS) == 0


def test_a_dropped_task_says_so_and_never_runs(operator: Operator) -> None:
    dropped = operator.send_recorded(range(20), seconds=0.2)
    operator.queues("defer", "--task", RECORDED)
    dropped += operator.send_recorded(range(20, 60), seconds=0.2)
    kept = operator.send("sleeping.delay(0)")
    operator.start_worker()
    wait_for(lambda: operator.events("start"))
    said = operator.queues("drop", "--task", RECORDED, "--reason", "Sent twice.")
    wait_for(operator.nothing_waits)
    operator.result(*kept)
    ran = {int(number) for number in operator.events("start")}
    assert f"{60 - len(ran)} tasks of celery are ended" in said
    assert ran
    for number, task_id in enumerate(dropped):
        state = "SUCCESS" if number in ran else "REVOKED"
        stored = operator.result(task_id, state)
        assert number in ran or stored["result"]["exc_message"] == ["Sent twice."]


def test_clients_are_told_what_became_of_deferred_and_dropped_tasks(operator: Operator, tmp_path: Path) -> None:
    api = Api(tmp_path / "api.log", operator.env)
    try:
        task_id, example = api.enqueue({}), "app.agents.tasks.example_task.example_agent_task"
        operator.queues("defer", "--task", example)
        assert api.status(task_id)["status"] == "PENDING"
        assert 'celery_deferred_tasks{queue="celery"} 1.0' in api.get("/metrics").text
        operator.queues("drop", "--task", example, "--reason", "Sent twice.")
        told = api.status(task_id)
        assert (told["status"], told["error"]) == ("REVOKED", "TaskRevokedError: Sent twice.")
    finally:
        api.stop()


def test_forged_messages_are_left_alone(operator: Operator) -> None:
    forged = json.dumps(
        {"headers": {"task": RECORDED, "id": new_task_id()}, "body": "", "properties": {"delivery_info": {}}}
    )
    for entry in (*POISON.values(), forged):
        operator.broker.lpush(DEFAULT_QUEUE, entry)
    operator.send_recorded(range(5))
    operator.broker.lpush(DEFERRED, forged)
    assert f"{len(POISON) + 1} x (forged or broken)" in operator.queues("list")
    assert "5 tasks of celery are deferred" in operator.queues("defer", "--task", RECORDED)
    assert operator.broker.llen(DEFAULT_QUEUE) == len(POISON) + 1
    assert "5 tasks of celery are ended" in operator.queues("drop", "--task", RECORDED)
    assert operator.broker.lrange(DEFERRED, 0, -1) == [forged]
    # It counts for nothing, and its id may be that of somebody else's task.
    assert operator.broker.hlen(ACCEPTED) == 0
    assert operator.asked("stuck")["tasks"] == []
    assert operator.asked("examine", "--seconds=0.1")["wrong"] is False


def test_a_task_is_dead_lettered_wherever_it_lies(operator: Operator) -> None:
    operator.send_recorded(range(1))
    operator.queues("defer", "--task", RECORDED)
    worker = operator.start_worker("--pool=threads")
    held, *_ = operator.send("sleeping.delay(60)", "sleeping.delay(60)")
    wait_for(lambda: operator.broker.llen(DEFAULT_QUEUE) == 0)
    (waiting,) = operator.send("recorded.delay('x', '/dev/null', 0)")
    wait_for(lambda: operator.broker.llen(DEFAULT_QUEUE) == 1)
    (deferred,) = operator.ids(DEFERRED)
    for task_id in (held, waiting, deferred):
        assert "is a dead letter now" in operator.queues("dead-letter", task_id, "--reason", "It hangs.")
        failed = operator.result(task_id, "FAILURE")["result"]
        assert failed["exc_message"] == ["It hangs."]
        told = operator.asked("find", task_id)
        assert "its status is FAILURE" in told["verdict"]
        assert "because: It hangs." in told["verdict"]
        assert not operator.broker.hexists(ACCEPTED, task_id)
    assert "No message" not in operator.queues("dead-letter", held, succeeds=False)  # an error goes to stderr
    worker.stop(signal.SIGKILL)
    operator.start_worker("--pool=threads")
    wait_for(lambda: operator.broker.hlen(ACCEPTED) == 1)
    wait_for(lambda: operator.broker.llen(DEFAULT_QUEUE) == 0)
    assert operator.result(held, "FAILURE")


def test_a_gone_workers_tasks_are_taken_back_at_once(operator: Operator) -> None:
    gone = operator.start_worker(name="gone")
    node = f"gone@{socket.gethostname()}"
    operator.send_recorded(range(2), seconds=1)
    wait_for(lambda: len(operator.events("start")) == 2)
    gone.stop(signal.SIGKILL)
    operator.queues("reclaim", node, succeeds=False)
    unacked = unacked_list(node, DEFAULT_QUEUE)
    operator.broker.zadd(LEASES, {unacked: time.time() - 20})
    assert f"{node}, which is silent for" in operator.asked("stuck")["verdict"]
    assert "2 tasks of celery are in their queue again" in operator.queues("reclaim", node)
    assert operator.broker.zscore(LEASES, unacked) is None
    assert {json.loads(entry)["headers"]["redeliveries"] for entry in operator.broker.lrange(DEFAULT_QUEUE, 0, -1)} == {
        1
    }
    operator.start_worker(name="other")
    wait_for(operator.nothing_waits)
    assert sorted(operator.events("end")) == ["0", "1"]
    operator.queues("reclaim", node, succeeds=False)


def test_what_comes_back_again_and_again_is_called_so(operator: Operator) -> None:
    (poison,) = operator.send("fatal.delay()")
    for _ in range(3):
        worker = operator.start_worker("--pool=threads", name="x")
        worker.process.wait(10)
    node = f"x@{socket.gethostname()}"
    operator.broker.zadd(LEASES, {unacked_list(node, DEFAULT_QUEUE): time.time() - 20})
    operator.queues("reclaim", node)
    told = operator.asked("stuck")
    assert [(task["id"], task["poison"]) for task in told["tasks"]] == [(poison, True)]
    assert "3 workers have died with it" in told["verdict"]


def test_tasks_move_to_another_queue_in_their_order(operator: Operator) -> None:
    ids = operator.send(*(f"recorded.apply_async(({n}, '{operator.ledger}', 0), queue='old')" for n in range(120)))
    again = operator.send(f"ends.apply_async(('retry', '{operator.ledger}.2'), queue='old')")
    operator.broker.lpush("old", "forged")
    # Nothing names this queue, and nobody takes from it.
    assert "old: 122 waiting" in operator.queues("list")
    deferred = operator.broker.rpop("old")
    operator.broker.lpush(deferred_list("old"), str(deferred))
    assert "121 entries of old are taken out" in operator.queues("move", "old", DEFAULT_QUEUE)
    assert operator.ids(DEFAULT_QUEUE) == ids[1:] + again
    assert operator.ids(DEFERRED) == ids[:1]
    assert operator.broker.exists("old", deferred_list("old")) == 0
    assert operator.broker.llen(DEAD_LETTERS) == 1
    operator.queues("resume")
    operator.start_worker()
    wait_for(operator.nothing_waits, seconds=30)
    assert [operator.result(task_id)["status"] for task_id in ids + again] == ["SUCCESS"] * 121
    assert sorted(map(int, operator.events("end"))) == list(range(120))
    for source, target in (("old", "old"), ("old", "unknown"), (DEFAULT_QUEUE, "accepted")):
        operator.queues("move", source, target, succeeds=False)


def test_a_probe_goes_through_each_queue_and_comes_back(operator: Operator) -> None:
    operator.queues("probe", "celery", "--within=1", succeeds=False)
    operator.broker.delete(DEFAULT_QUEUE, ACCEPTED)
    worker = operator.start_worker("--queues=celery,reports", "--concurrency=1")
    assert "each of celery, reports" in operator.queues("probe", "celery", "reports")
    assert operator.redis.client(1).keys("celery-task-meta-*") == []
    assert "each of celery," in operator.queues("probe", "celery")
    operator.queues("probe", "celery", "elsewhere", "--within=2", succeeds=False)
    # Not for want of workers.
    operator.send("sleeping.delay(60)")
    wait_for(lambda: "1 of 1 slots busy" in operator.queues("list"))
    assert "Not proven: all workers of celery are busy" in operator.queues("probe", "celery", "--within=20")
    worker.stop(signal.SIGKILL)
    operator.broker.hdel("workers", f"test@{socket.gethostname()}")
    # Those of another queue do not count.
    operator.start_worker("--queues=reports", "--concurrency=1", name="reports")
    operator.send("sleeping.apply_async((60,), queue='reports')")
    wait_for(lambda: "reports@" in operator.queues("list"))
    operator.queues("probe", "celery", "--within=12", succeeds=False)


def test_a_task_that_waits_for_its_rate_is_not_stuck(operator: Operator) -> None:
    operator.env["TASK_DEFAULT_RATE_LIMIT"] = "1/h"
    operator.start_worker()
    first, _ = operator.send("sleeping.delay(0)", "sleeping.apply_async((0,), countdown=1)")
    operator.result(first)
    # The probe has no limit.
    assert "a chord over all of them" in operator.queues("probe", "celery")
    limited, *_ = operator.send("sleeping.delay(0)")
    wait_for(lambda: operator.broker.llen(DEFAULT_QUEUE) == 0)
    time.sleep(3)
    (told,) = operator.broker.hgetall("workers").values()
    assert json.loads(str(told).partition(" ")[2])["held"] == 0, told
    assert "No task is stuck" in operator.asked("stuck")["verdict"]
    assert "is under way" in operator.asked("stuck", limited)["verdict"]


@pytest.mark.parametrize("group", ["queues", "dead-letters"])
def test_a_redis_that_is_away_is_said_in_one_line(operator: Operator, group: str) -> None:
    operator.redis.stop()
    run = subprocess.run(
        [*ADMIN, group, "list"], env=os.environ | operator.env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("Redis does not answer: ")
    assert len(run.stderr.splitlines()) == 1


def test_a_queue_that_is_new_at_the_second_look_may_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_app, "durable_options", replace(options_of(celery_app), workers_expected=1))
    first, last = (snapshot.Look(at, {}, {}, [], {}, {}, 0) for at in (1.0, 2.0))
    last.queues["new"] = snapshot.Waiting(101, 1.0, Counter({RECORDED: 101}), [])
    assert queue_backlog.backlog(first, last, celery_app)["wrong"]


def test_a_task_that_waits_for_a_slot_is_not_stuck() -> None:
    """Buried with the one that it waits for, it would never run."""

    def look(busy: int, task_id: str = "") -> dict[str, Any]:
        headers = [{"id": name, "task": RECORDED} for name in ("runs", "waits")]
        headers.append({"id": "waits for its rate", "task": SLEEPING})
        held = snapshot.Held("unacked:n@h:celery", "n@h", DEFAULT_QUEUE, 0.0, headers)
        workers = {"n@h": {"size": 1, "busy": busy, "held": 900.0}}
        seen = snapshot.Look(0.0, {}, {}, [held], workers, {}, 0)
        asked = SimpleNamespace(
            active=lambda: {"n@h": [{"id": "runs", "time_start": time.time() - 900}]},
            reserved=lambda: {"n@h": [{"id": "waits"}]},
            scheduled=dict,
            registered=lambda _: {"n@h": [f"{SLEEPING} [rate_limit=1/h]"]},
        )
        control = SimpleNamespace(inspect=lambda **_: asked)
        app: Any = SimpleNamespace(control=control, conf=SimpleNamespace(task_time_limit=60))
        return stuck_tasks.stuck(seen, app, task_id)

    assert [task["id"] for task in look(busy=1)["tasks"]] == ["runs"]
    assert [task["id"] for task in look(busy=0)["tasks"]] == ["runs", "waits"]
    assert look(busy=1, task_id="another")["verdict"].startswith("The task another is in flight at no worker")


class TestVerdict:
    """Each cause of a backlog has its sentence."""

    @staticmethod
    def _backlog(operator: Operator, seconds: float) -> None:
        ids = [old_id() for _ in range(102)]
        operator.send(f"*[sleeping.apply_async(({seconds},), task_id=task_id) for task_id in {ids}]")

    def test_workers_away(self, operator: Operator) -> None:
        operator.env["WORKERS_EXPECTED"] = "1"
        self._backlog(operator, 1)
        told = operator.asked("examine", "--seconds=0.1")
        assert told["wrong"]
        assert told["verdict"].startswith("1 of 1 workers are away")

    def test_nobody_takes_from_the_queue(self, operator: Operator) -> None:
        self._backlog(operator, 1)
        operator.start_worker("--queues=other")
        wait_for(lambda: operator.broker.hlen("workers") == 1)
        assert "No worker takes from the queue celery" in operator.asked("examine", "--seconds=0.1")["verdict"]

    def test_one_kind_floods(self, operator: Operator) -> None:
        operator.start_worker()
        operator.result(*operator.send("dying.delay(0)"))
        self._backlog(operator, 5)
        wait_for(lambda: operator.asked("examine", "--seconds=0.1").get("verb"), seconds=30)
        told = operator.asked("examine", "--seconds=0.1")
        assert (told["verb"], told["task"]) == ("defer", SLEEPING)
        operator.queues("defer", "--task", told["task"])
        assert operator.asked("examine", "--seconds=0.1")["wrong"] is False

    def test_too_few_slots(self, operator: Operator) -> None:
        operator.start_worker()
        self._backlog(operator, 5)
        wait_for(lambda: operator.asked("examine", "--seconds=0.1").get("verb"), seconds=30)
        told = operator.asked("examine", "--seconds=0.1")
        assert (told["verb"], told["slots"]) == ("scale", 2)

    def test_free_slots_of_another_pool_are_none(self, operator: Operator) -> None:
        full = operator.start_worker(name="full")
        operator.start_worker("--queues=other", "--concurrency=8", name="free")
        assert full.process.poll() is None
        self._backlog(operator, 60)
        wait_for(lambda: operator.asked("examine", "--seconds=0.1").get("verb"), seconds=30)
        told = operator.asked("examine", "--seconds=0.1")
        assert told["verdict"].startswith("There are too few slots for celery: 2 cannot keep up")
        assert (told["verb"], told["slots"]) == ("scale", 2)
        assert [node.partition("@")[0] for node in told["nodes"]] == ["full"]

    def test_tasks_are_slower(self, operator: Operator) -> None:
        operator.start_worker("-c", "8")
        operator.send("*[sleeping.delay(0) for _ in range(30)]")
        wait_for(operator.nothing_waits)
        time.sleep(2)
        self._backlog(operator, 1)
        wait_for(lambda: "slower than before" in operator.asked("examine", "--seconds=2")["verdict"], seconds=20)


class TestFind:
    """Each fate of a task has its sentence, and the API's status code."""

    def test_fates(self, operator: Operator, tmp_path: Path) -> None:
        operator.env["RESULT_EXPIRES"] = "5"
        api = Api(tmp_path / "api.log", operator.env)

        def told(task_id: str) -> tuple[str, int]:
            answer = operator.asked("find", task_id)
            code = api.get(f"/tasks/status/{task_id}").status_code
            assert answer["code"] == code, answer
            return answer["verdict"], code

        try:
            waiting = api.enqueue({})
            assert "waits in the queue celery, 0 tasks are before it" in told(waiting)[0]
            assert "never accepted here" in told(new_task_id())[0]
            assert told("00000000-0000-4000-8000-000000000000")[1] == 404
            operator.start_worker(name="w")
            wait_for(lambda: "has been running on w@" in operator.asked("find", waiting)["verdict"])
            operator.result(waiting)
            assert "its status is SUCCESS" in told(waiting)[0]
            wait_for(lambda: api.get(f"/tasks/status/{waiting}").status_code == 410, seconds=20)
            assert "has expired" in told(waiting)[0]
        finally:
            api.stop()

    def test_evicted(self, operator: Operator) -> None:
        results = operator.redis.client(1)
        results.config_set("maxmemory-policy", "allkeys-lru")
        used = results.info("memory")["used_memory"]
        results.config_set("maxmemory", used + 200_000)
        for number in range(100):
            results.set(f"celery-task-meta-{number}", "x" * 10_000)
        told = operator.asked("find", new_task_id())
        assert "evicted to make room" in told["verdict"]
        assert "stack_redis_maxmemory" in told["mend"]
