"""No accepted task is lost, whatever dies: children, Redis."""

import base64
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Task

from celery_durable.keys import DEAD_LETTERS, OWNER
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.redelivery import MAX_REDELIVERIES
from celery_durable.testing import RedisServer, wait_for
from celery_durable.worker import node_owner
from celery_durable.worker.transport.consuming import RECLAIM_INTERVAL
from tests.support import Program, Stack

pytestmark = pytest.mark.integration


def test_a_task_whose_process_was_killed_runs_again(stack: Stack) -> None:
    stack.start_worker()
    assert stack.result(*stack.send("dying.delay(1)"), "SUCCESS", "FAILURE")["result"] == "survived"
    wait_for(stack.nothing_waits)


def test_children_that_had_not_begun_end_with_their_worker(stack: Stack) -> None:
    """Without a control group around them, as under supervisor or by hand."""
    stack.env["FORK_SECONDS"] = "2"
    worker = stack.start_worker()
    children = subprocess.check_output(["pgrep", "--parent", str(worker.process.pid)], text=True).split()
    worker.process.kill()
    worker.process.wait()
    assert children
    wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))


def test_an_error_that_holds_a_secret_tells_it_to_nobody(stack: Stack) -> None:
    secret = stack.env["GEMINI_API_KEY"] = secrets.token_hex(16)
    with stack.redis.client(0).pubsub() as events:  # type: ignore[no-untyped-call]
        events.psubscribe("/0.celeryev/*")
        worker = stack.start_worker("--task-events")
        stored = stack.result(*stack.send("talkative.delay()"), "FAILURE")
        wait_for(lambda: "Task failed" in worker.output())

        def heard() -> str:
            message: Any = events.get_message(ignore_subscribe_messages=True)
            return base64.b64decode(json.loads(message["data"])["body"]).decode() if message else ""

        failed = wait_for(lambda: next((text for text in [heard()] if "task-failed" in text), ""))
    for told in (json.dumps(stored), failed, worker.output()):
        assert "provider.example/?key=**" in told
        assert secret not in told


def test_a_killed_worker_runs_its_tasks_again_as_soon_as_it_is_back(stack: Stack) -> None:
    worker = stack.start_worker()
    task_id, _ = stack.send(f"recorded.delay('a', '{stack.ledger}', 2)", f"recorded.delay('b', '{stack.ledger}', 2)")
    wait_for(lambda: len(stack.events("start")) == 2)
    worker.stop(signal.SIGKILL)
    back = stack.start_worker()
    wait_for(lambda: sorted(stack.events("end")) == ["a", "b"], seconds=4)
    stack.result(task_id)
    returned = [line for line in back.log_lines() if "goes back to its queue" in line["message"]]
    assert task_id in [line["task_id"] for line in returned]
    assert {line["queue"] for line in returned} == {DEFAULT_QUEUE}
    assert sorted(stack.events("start")) == ["a", "a", "b", "b"]
    wait_for(stack.nothing_waits)


def test_a_worker_of_several_queues_takes_from_all_and_loses_nothing_of_them(stack: Stack) -> None:
    def call(name: str, queue: str, seconds: float) -> str:
        return f"recorded.apply_async(('{name}', '{stack.ledger}', {seconds}), queue='{queue}')"

    worker = stack.start_worker("--queues=empty,slow,fast")
    stack.send(*[call(f"fast{number}", "fast", 0) for number in range(50)], call("slow", "slow", 2))
    wait_for(lambda: len(stack.events("end")) == 51, seconds=8)
    stack.send(call("killed", "slow", 2))
    wait_for(lambda: stack.events("start")[-1] == "killed")
    worker.stop(signal.SIGKILL)
    stack.start_worker("--queues=empty,slow,fast")
    wait_for(lambda: stack.events("end")[-1] == "killed", seconds=6)
    wait_for(stack.nothing_waits)


def test_another_worker_of_the_host_takes_over_at_once(stack: Stack) -> None:
    """It sees that the process is gone: the hard limit need not pass."""
    worker = stack.start_worker(name="first")
    stack.send(f"recorded.delay('a', '{stack.ledger}', 3)")
    wait_for(lambda: stack.events("start") == ["a"])
    worker.stop(signal.SIGKILL)
    stack.start_worker(name="second")
    wait_for(lambda: stack.events("start") == ["a", "a"], seconds=20)  # the hard limit is 60 s
    wait_for(stack.nothing_waits)


def test_a_worker_of_another_host_takes_over_after_the_hard_limit(stack: Stack) -> None:
    """Not before: until then a process of the first one might be running."""
    stack.env |= {"TASK_SOFT_TIME_LIMIT": "3", "TASK_TIME_LIMIT": "4"}
    worker = stack.start_worker(name="first")
    stack.send(f"recorded.delay('a', '{stack.ledger}', 3)")
    wait_for(lambda: stack.events("start") == ["a"])
    worker.stop(signal.SIGKILL)
    killed = time.monotonic()
    with stack.redis.client(0) as broker:
        (key,) = broker.scan_iter(f"{OWNER}*")
        ((owner, seen),) = broker.zrange(key, 0, -1, withscores=True)
        name, _machine, *rest = owner.split(node_owner.SEPARATOR)
        broker.zadd(key, {node_owner.SEPARATOR.join([name, "another machine", *rest]): seen})
        broker.zrem(key, owner)
    stack.start_worker(name="second")
    wait_for(lambda: stack.events("start") == ["a", "a"], seconds=4 + 30)
    assert time.monotonic() - killed > 4
    wait_for(stack.nothing_waits)


def test_a_task_that_runs_for_long_is_left_to_its_worker(stack: Stack) -> None:
    stack.env |= {"TASK_SOFT_TIME_LIMIT": "1", "TASK_TIME_LIMIT": "2"}
    stack.start_worker(name="first")
    stack.send(f"recorded.apply_async(('a', '{stack.ledger}', 26), time_limit=60, soft_time_limit=60)")
    wait_for(lambda: stack.events("start") == ["a"])
    stack.start_worker(name="second")
    wait_for(lambda: stack.events("end") == ["a"], seconds=40)
    assert stack.events("start") == ["a"]


@pytest.mark.timeout(240)
def test_killing_workers_under_full_load_loses_nothing(stack: Stack) -> None:
    """The gap between a pop and a note that a message is unacknowledged lost 3 tasks in 12 kills."""
    kills, tasks = 8, 10_000
    stack.send(f"*[recorded.delay(number, '{stack.ledger}', 0) for number in range({tasks})]")
    for _ in range(kills):
        worker = stack.start_worker("--concurrency=4", "--prefetch-multiplier=8")
        done = len(stack.events("end"))
        wait_for(lambda: len(stack.events("end")) > done)  # noqa: B023 - called at once
        time.sleep(random.uniform(0, 0.3))  # noqa: S311 - when it dies is left to chance
        worker.stop(signal.SIGKILL)
        assert len(set(stack.events("end"))) < tasks, "all done too early: nothing was under way when it was killed"
    stack.start_worker("--concurrency=4", "--prefetch-multiplier=8")
    wait_for(lambda: len(set(stack.events("end"))) == tasks, seconds=150)
    wait_for(stack.nothing_waits)
    assert stack.redis.client(0).llen(DEAD_LETTERS) == 0


@contextmanager
def a_task_on_its_way_to_a_child(stack: Stack, seconds: float) -> Iterator[Program]:
    """Give a child of a worker a task that it does not accept: all are stopped (SIGSTOP) until the block ends."""
    worker = stack.start_worker()
    # A child that is not up yet is given nothing.
    stack.result(*stack.send("sleeping.delay(0)"))
    children = subprocess.check_output(["pgrep", "--parent", str(worker.process.pid)], text=True).split()
    for child in children:
        os.kill(int(child), signal.SIGSTOP)
    try:
        stack.send(f"recorded.delay('a', '{stack.ledger}', {seconds})")
        worker.wait_for_output("recorded[")
        time.sleep(0.2)  # the pipe to the child; no log tells
        yield worker
    finally:
        for child in children:
            os.kill(int(child), signal.SIGCONT)


def test_a_worker_that_stops_waits_for_what_a_child_was_just_given(stack: Stack) -> None:
    with a_task_on_its_way_to_a_child(stack, 0.1) as worker:
        worker.process.terminate()
        worker.wait_for_output("Warm shutdown")
        time.sleep(1.5)  # until its loop ends; no log tells
    assert worker.process.wait(10) == 0
    assert stack.events("end") == ["a"]
    assert stack.nothing_waits()


def test_a_task_that_a_child_was_just_given_stays_there_when_redis_restarts(stack: Stack) -> None:
    with a_task_on_its_way_to_a_child(stack, 2 * RECLAIM_INTERVAL) as worker:
        stack.redis.stop()
        worker.wait_for_output("Connection to broker lost")
        stack.redis.start()
        time.sleep(0.5)  # it forgets what it thinks that nobody runs; no log tells
    wait_for(lambda: stack.events("end") == ["a"], seconds=30)
    wait_for(stack.nothing_waits)
    # A second time it would start beside the first, in another child.
    assert worker.output().count("recorded[") == 1


@pytest.mark.parametrize("fault", ["restart", "kill", "cut"])
def test_a_task_runs_once_whatever_redis_does(stack: Stack, fault: str) -> None:
    worker = stack.start_worker()
    task_id, *_ = stack.send(f"recorded.delay('a', '{stack.ledger}', 3)")
    wait_for(lambda: stack.events("start") == ["a"])
    if fault == "cut":
        stack.redis.client(0).client_kill_filter(_type="normal", skipme=True)
    else:
        stack.redis.program.stop(signal.SIGTERM if fault == "restart" else signal.SIGKILL)
        stack.redis.start()
    stack.result(task_id)
    stack.result(*stack.send(f"recorded.delay('b', '{stack.ledger}', 0)"), timeout=10)
    wait_for(stack.nothing_waits)
    assert stack.events("start") == ["a", "b"]
    assert worker.process.poll() is None


def test_who_waits_for_a_result_gets_it_when_redis_restarts_meanwhile(stack: Stack) -> None:
    worker = stack.start_worker()
    send = "from faulty_worker import sleeping; task = sleeping.delay(6)"
    waiting = Program(
        [sys.executable, "-c", f"{send}; print('sent', flush=True); print(task.get(timeout=50))"],
        stack.directory / "waiting.log",
        stack.env,
    )
    waiting.wait_for_output("sent")
    worker.wait_for_output("Task started")
    stack.redis.stop()
    time.sleep(2)  # longer than an attempt that fails and one more
    stack.redis.start()
    assert waiting.process.wait(30) == 0
    assert "done" in waiting.output()


def test_a_redis_that_hangs_for_longer_than_the_watchdog_waits_ends_no_worker(stack: Stack) -> None:
    stack.env["WORKER_WATCHDOG_SECONDS"] = "10"
    worker = stack.start_worker()
    stack.send(f"recorded.delay('a', '{stack.ledger}', 12)")
    wait_for(lambda: stack.events("start") == ["a"])
    stack.redis.hang()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(25)
    stack.redis.program.process.send_signal(signal.SIGCONT)
    stack.send(f"recorded.delay('b', '{stack.ledger}', 0)")
    wait_for(lambda: stack.events("end") == ["a", "b"], seconds=10)
    wait_for(stack.nothing_waits)
    assert stack.events("start") == ["a", "b"]


def test_a_read_only_redis_is_waited_for(stack: Stack) -> None:
    worker = stack.start_worker()
    task_id, other = stack.send(*[f"recorded.delay('{name}', '{stack.ledger}', 2)" for name in "ab"])
    wait_for(lambda: len(stack.events("start")) == 2)
    admin = stack.redis.client(0)
    admin.config_set("min-replicas-to-write", 1)  # refuses every write, like a full disk
    wait_for(lambda: len(stack.events("end")) == 2)
    worker.wait_for_output("Redis rejects the command")
    admin.config_set("min-replicas-to-write", 0)
    stack.result(task_id)
    stack.result(other)
    stack.result(*stack.send(f"recorded.delay('c', '{stack.ledger}', 0)"), timeout=10)
    wait_for(stack.nothing_waits)
    assert sorted(stack.events("start")) == ["a", "b", "c"]
    assert worker.process.poll() is None


def test_a_queue_that_fills_redis_is_worked_off(stack: Stack) -> None:
    results = RedisServer(stack.directory / "results")
    try:
        stack.env["CELERY_RESULT_BACKEND"] = results.url(1)
        worker = stack.start_worker()
        stack.send(*[f"recorded.delay({number}, '{stack.ledger}', 1)" for number in range(6)])
        wait_for(lambda: len(stack.events("start")) >= 2)
        stack.redis.client(0).config_set("maxmemory", 1)
        wait_for(lambda: len(stack.events("end")) == 6)
        wait_for(stack.nothing_waits)
        stack.redis.client(0).config_set("maxmemory", 0)
        stack.send(f"recorded.delay('later', '{stack.ledger}', 0)")
        wait_for(lambda: stack.events("end")[-1] == "later")
        assert worker.process.poll() is None
    finally:
        results.stop()


def message(headers: dict[str, Any], body: str = "W1tdLCB7fSwge31d", **properties: Any) -> str:
    """Return a queue entry as kombu writes it, with what shall be wrong."""
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": properties.pop("content_type", "application/json"),
            "headers": headers,
            "properties": {"delivery_info": {}, "body_encoding": "base64", "delivery_tag": "same", **properties},
        }
    )


POISON = {
    "not JSON": "\x00\xff",
    "not an object": "[1, 2]",
    "no properties": json.dumps({"headers": {}, "body": ""}),
    "no task": message({}),
    "unknown name": message({"task": "app.agents.tasks.forgotten", "id": "u1"}),
    "not base64": message({"task": "faulty_worker.sleeping", "id": "u2"}, body="!"),
    "unknown encoding": message({"task": "faulty_worker.sleeping", "id": "u3"}, body_encoding="rot13"),
    "pickle": message({"task": "faulty_worker.sleeping", "id": "u4"}, content_type="application/x-python-serialize"),
    "body is no task": message({"task": "faulty_worker.sleeping", "id": "u5"}, body="MQ=="),
    "headers of wrong types": message({"task": "faulty_worker.sleeping", "id": 5, "timelimit": 7, "eta": {}}),
    "unhashable name": message({"task": ["x"], "id": "u6"}),
}


def test_poison_becomes_dead_letters_and_stops_nobody(stack: Stack) -> None:
    worker = stack.start_worker()
    broker = stack.redis.client(0)
    for entry in POISON.values():
        broker.lpush(DEFAULT_QUEUE, entry)
    stack.result(*stack.send("sleeping.delay(0)"))
    wait_for(lambda: broker.llen(DEAD_LETTERS) == len(POISON))
    wait_for(stack.nothing_waits)
    assert worker.process.poll() is None
    listed = stack.dead_letters("list")
    assert "The worker knows no task named" in listed
    assert f"{len(POISON)} dead letters." in listed
    stack.dead_letters("drop", "u1", "u4")
    assert broker.llen(DEAD_LETTERS) == len(POISON) - 2
    stack.dead_letters("requeue", "--all")
    wait_for(lambda: broker.llen(DEAD_LETTERS) == len(POISON) - 2)
    stack.dead_letters("drop", "--all")
    assert broker.llen(DEAD_LETTERS) == 0


def test_a_task_that_always_kills_its_process_becomes_a_dead_letter_and_can_be_requeued(stack: Stack) -> None:
    worker = stack.start_worker()
    (task_id,) = stack.send(f"dying_until.delay('{stack.directory / 'repaired'}')")
    failed = stack.result(task_id, "FAILURE")
    assert failed["result"]["exc_type"] == "WorkerLostError"
    assert failed["retries"] == Task.max_retries
    wait_for(lambda: stack.redis.client(0).llen(DEAD_LETTERS) == 1)
    wait_for(stack.nothing_waits)
    [letter] = [line for line in worker.log_lines() if "becomes a dead letter" in line["message"]]
    assert letter["task_id"] == task_id
    stack.result(*stack.send("sleeping.delay(0)"))

    (stack.directory / "repaired").touch()
    assert task_id in stack.dead_letters("requeue", task_id)
    assert stack.result(task_id)["result"] == "survived"
    wait_for(stack.nothing_waits)


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_a_task_that_is_retried_without_end_does_not_kill_processes_without_end(stack: Stack, pool: str) -> None:
    """https://github.com/celery/celery/issues/9082: Celery repeats it for ever, requeued or retried."""
    stack.env["CELERY_CUSTOM_WORKER_POOL"] = "celery_durable.worker.asyncio_pool:TaskPool"
    worker = stack.start_worker(f"--pool={pool.replace('asyncio', 'custom')}")
    (task_id,) = stack.send(f"dying_without_end.delay('{stack.ledger}')")
    assert stack.result(task_id, "FAILURE", timeout=60)["result"]["exc_type"].endswith("LostError")
    wait_for(stack.nothing_waits)
    assert task_id in stack.dead_letters("list")
    assert len(stack.events("start")) == MAX_REDELIVERIES + 1
    assert f"Its process died in each of {MAX_REDELIVERIES + 1} runs" in worker.output()


def test_a_task_whose_processes_die_now_and_then_is_retried(stack: Stack) -> None:
    stack.start_worker("-c", "1")
    (task_id,) = stack.send(f"dying_now_and_then.delay({MAX_REDELIVERIES + 1})")
    assert stack.result(task_id, timeout=90)["result"] == "survived"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_without_prefetch_takes_what_it_has_slots_for(stack: Stack, pool: str) -> None:
    """https://github.com/celery/celery/issues/6500: what lies in a busy worker could run in another."""
    stack.send(*[f"recorded.delay({number}, '{stack.ledger}', 50)" for number in range(6)])
    stack.start_worker("--disable-prefetch", "--prefetch-multiplier=4", f"--pool={pool}")
    wait_for(lambda: len(stack.events("start")) == 2)
    time.sleep(1)  # nothing may happen
    assert stack.redis.client(0).llen(DEFAULT_QUEUE) == 4


def test_a_task_that_kills_every_worker_is_put_aside(stack: Stack) -> None:
    (task_id,) = stack.send("fatal.delay()")
    broker = stack.redis.client(0)
    entry = json.loads(str(broker.lpop(DEFAULT_QUEUE)))
    entry["headers"]["redeliveries"] = MAX_REDELIVERIES - 1
    broker.lpush(DEFAULT_QUEUE, json.dumps(entry))
    for _ in range(2):
        killed = stack.start_worker("--pool=threads")
        assert killed.process.wait(10) == -signal.SIGKILL
    worker = stack.start_worker("--pool=threads")
    wait_for(lambda: broker.llen(DEAD_LETTERS) == 1)
    assert task_id in stack.dead_letters("list")
    assert "workers died while they held it" in stack.result(task_id, "FAILURE")["result"]["exc_message"][0]
    stack.result(*stack.send("sleeping.delay(0)"))
    assert worker.process.poll() is None


def test_whoever_waits_for_a_task_that_kills_every_worker_learns_its_end(stack: Stack) -> None:
    part = f"fatal.s().on_error(recorded.si('told', '{stack.ledger}', 0))"
    (body,) = stack.send(f"chord([{part}, sleeping.s(0)])(collect.s())")
    broker = stack.redis.client(0)
    for index, raw in enumerate(broker.lrange(DEFAULT_QUEUE, 0, -1)):
        entry = json.loads(raw)
        entry["headers"]["redeliveries"] = MAX_REDELIVERIES
        broker.lset(DEFAULT_QUEUE, index, json.dumps(entry))
    killed = stack.start_worker("--pool=threads")
    assert killed.process.wait(10) == -signal.SIGKILL
    stack.start_worker("--pool=threads")
    assert stack.result(body, "FAILURE")["result"]["exc_type"] == "ChordError"
    wait_for(lambda: "told" in stack.events("end"))
    wait_for(stack.nothing_waits)


def test_a_task_that_runs_out_of_memory_fails_alone(stack: Stack) -> None:
    worker = stack.start_worker()
    assert stack.result(*stack.send("greedy.delay()"), "FAILURE")["result"]["exc_type"] == "MemoryError"
    stack.result(*stack.send("sleeping.delay(0)"))
    wait_for(stack.nothing_waits)
    assert worker.process.poll() is None
