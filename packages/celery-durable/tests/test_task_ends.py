"""However a task ends and whatever Redis answers then: it ends once, and its worker works on."""

import re
import time
from collections import Counter
from typing import Any

import pytest

from celery_durable.testing import wait_for
from celery_durable.worker.transport.consuming import RECLAIM_INTERVAL
from durable_console.known_scripts import known
from tests.support import Stack

pytestmark = pytest.mark.integration

# How a task ends -> options of its call.
ENDS: dict[str, dict[str, Any]] = {
    "success": {},
    "failure": {},
    "outage of its own": {},
    "retry": {},
    "ignore": {},
    "reject": {},
    "memory": {},
    "soft limit": {"soft_time_limit": 1, "time_limit": 20},
    "hard limit": {"soft_time_limit": 20, "time_limit": 1},
    "death": {},
}
# What would end a process.
EXITS = ("exit", "interrupt", "beyond", "generator exit")
# Threads know no limits, and a process that dies is the worker's own.
ENDS_IN_THREADS = [how for how in ENDS if how not in ("soft limit", "hard limit", "death")]
RUNS = {"retry": 2, "death": 2}


def send_all(stack: Stack, ways: list[str]) -> dict[str, tuple[str, str]]:
    """Send a task for each way, acknowledged late and early, and one more; return their ids with task and way."""
    cases = [(task, how) for task in ("ends", "ends_early") for how in ways]
    calls = [f"{task}.apply_async(({how!r}, '{stack.ledger}'), **{ENDS.get(how, {})})" for task, how in cases]
    last = f"recorded.apply_async(('last', '{stack.ledger}', 0), ignore_result=True)"
    return dict(zip(stack.send(*calls, last), cases, strict=False))


def wait_for_the_last(stack: Stack, cases: dict[str, tuple[str, str]]) -> None:
    """Wait until nothing is left, and check that all ran as often as they should."""
    wait_for(lambda: "last" in stack.events("end"), seconds=60)
    wait_for(stack.nothing_waits, seconds=60)
    assert stack.workers[0].process.poll() is None
    runs = Counter(stack.events("start"))
    # What was acknowledged early is not retried when its process dies.
    assert {case: runs[name] for name, case in cases.items()} == {
        case: 1 if case == ("ends_early", "death") else RUNS.get(case[1], 1) for case in cases.values()
    }


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_right_that_is_missing_when_a_task_ends_does_not_run_it_again(stack: Stack, pool: str) -> None:
    rules = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-setex", "-set"]}
    stack.redis.client(1).acl_setuser("reader", enabled=True, passwords="+secret", **rules)  # type: ignore[arg-type]
    stack.env["CELERY_RESULT_BACKEND"] = f"redis://reader:secret@127.0.0.1:{stack.redis.port}/1"
    stack.start_worker(f"--pool={pool}")
    cases = send_all(stack, [*ENDS] if pool == "prefork" else ENDS_IN_THREADS)
    wait_for_the_last(stack, cases)
    # A task that ignores itself stores nothing.
    left = {name for name, (task, how) in cases.items() if task == "ends" and how != "ignore"}
    for line in stack.dead_letters("list").splitlines()[:-1]:
        name, *_, reason = line.split("  ")
        left.remove(name)
        rejected = cases[name][1] == "reject"
        why = "The task rejected it: on purpose" if rejected else "Its end cannot be stored: NoPermissionError: "
        assert reason.startswith(why)
    assert not left


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_task_in_a_thread_that_raises_what_is_no_error_fails_and_frees_its_slot(stack: Stack, pool: str) -> None:
    stack.start_worker(f"--pool={pool}")
    cases = send_all(stack, [*ENDS_IN_THREADS, *EXITS])
    wait_for_the_last(stack, cases)
    for name, (_, how) in cases.items():
        if how in EXITS:
            assert stack.result(name, "FAILURE")["result"]["exc_type"] == "TaskExitedError"
        elif how in ("success", "retry"):
            assert stack.result(name)["result"] == "done"


@pytest.mark.parametrize("fault", ["wrong type", "no such database"])
def test_a_result_that_can_never_be_stored_ends_its_task_once(stack: Stack, fault: str) -> None:
    if fault == "wrong type":
        stack.redis.client(1).lpush("celery-task-meta-nightly", "x")
    else:
        stack.env["CELERY_RESULT_BACKEND"] = stack.redis.url(99)
    worker = stack.start_worker()
    stack.env["CELERY_RESULT_BACKEND"] = stack.redis.url(1)
    stack.send(f"ends.apply_async(('success', '{stack.ledger}'), task_id='nightly')")
    wait_for(stack.nothing_waits)
    assert "nightly" in stack.dead_letters("list")
    assert stack.events("start") in (["nightly"], [])
    assert worker.process.poll() is None


def test_an_acknowledgement_that_redis_rejects_holds_up_no_other_and_is_made_up_for(stack: Stack) -> None:
    admin = stack.redis.client(0)
    rules: dict[str, list[str]] = {"keys": ["*"], "channels": ["*"], "commands": ["+@all"]}
    admin.acl_setuser("worker", enabled=True, passwords="+secret", **rules)  # type: ignore[arg-type]
    for script in known().values():  # a client with a name loads none
        admin.script_load(script)
    stack.env["CELERY_BROKER_URL"] = f"redis://worker:secret@127.0.0.1:{stack.redis.port}/0"
    worker = stack.start_worker()
    stack.send("sleeping.delay(0)")
    wait_for(stack.nothing_waits)
    admin.execute_command("ACL", "SETUSER", "worker", "-lrem")  # type: ignore[no-untyped-call]
    stack.send(f"recorded.delay('a', '{stack.ledger}', 0)")
    worker.wait_for_output("Redis rejects an acknowledgement")
    stack.send(f"recorded.delay('b', '{stack.ledger}', 0)")
    wait_for(lambda: stack.events("end") == ["a", "b"])
    time.sleep(2 * RECLAIM_INTERVAL)  # nothing may happen
    assert worker.output().count("Redis rejects an acknowledgement") == 2  # once for each message
    admin.execute_command("ACL", "SETUSER", "worker", "+lrem")  # type: ignore[no-untyped-call]
    wait_for(stack.nothing_waits)
    assert re.search(r"rejected an acknowledgement [2-9] times and carries it out now", worker.output())
    assert stack.events("start") == ["a", "b"]


def test_an_error_that_cannot_be_restored_ends_its_task_and_not_the_worker(stack: Stack) -> None:
    """https://github.com/celery/celery/issues/6990 for what Celery does not look after: Ignore, Reject, handlers."""
    worker = stack.start_worker()
    ways = ("reject", "reject a function", "ignore", "ignore in a way of its own", "failure", "handler")
    rejected, other, *_, failed, handled = stack.send(*[f"unrestorable.delay({how!r})" for how in ways])
    stack.result(failed, "FAILURE")
    stack.result(handled, "FAILURE")
    wait_for(stack.nothing_waits)
    letters = stack.dead_letters("list")
    assert f"{rejected}" in letters
    assert f"{other}" in letters
    assert "The task rejected it: UnrestorableError: on purpose 1" in letters
    assert "Unrecoverable" not in worker.output()
    stack.result(*stack.send("sleeping.delay(0)"))
    assert worker.process.poll() is None


def test_a_retry_that_cannot_be_sent_ends_its_task(stack: Stack) -> None:
    stack.start_worker()
    (task,) = stack.send("growing.delay('x')")
    assert "MAX_MESSAGE_BYTES" in str(stack.result(task, "FAILURE")["result"])
    wait_for(stack.nothing_waits)
    assert task in stack.dead_letters("list")
