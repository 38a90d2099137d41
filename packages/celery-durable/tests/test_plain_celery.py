"""What Celery's own commands and settings do with a queue is known to the ledger."""

import secrets
import subprocess
import sys

import pytest

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED, DEAD_LETTERS
from tests.support import Program, Stack, wait_until

pytestmark = pytest.mark.integration


def celery(stack: Stack, *arguments: str) -> Program:
    """Run a command of Celery's until it ends."""
    command = [sys.executable, "-m", "celery", "-A", "faulty_worker", *arguments]
    program = Program(command, stack.directory / "celery.log", stack.env, stderr=subprocess.STDOUT)
    program.process.wait(30)
    return program


def test_what_is_purged_is_on_its_way_no_more(stack: Stack) -> None:
    broker = stack.redis.client(0)
    stack.send("*[sleeping.delay(0) for _ in range(1200)]", "sleeping.apply_async((0,), task_id='same')")
    broker.lpush(DEFAULT_QUEUE, "no message")
    command = celery(stack, "purge", "--force")
    assert command.process.returncode == 0
    assert "1202 messages" in command.output()
    assert stack.nothing_waits()
    stack.send("*[sleeping.delay(0) for _ in range(10)]")
    stack.start_worker("--purge")
    wait_until(stack.nothing_waits)


def test_a_purge_without_the_right_to_it_fails(stack: Stack) -> None:
    stack.send("sleeping.delay(0)")
    rules: dict[str, list[str]] = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-lrem"]}
    broker = stack.redis.client(0)
    broker.acl_setuser("guest", enabled=True, passwords="+secret", **rules)  # type: ignore[arg-type]
    stack.env["CELERY_BROKER_URL"] = f"redis://guest:secret@127.0.0.1:{stack.redis.port}/0"
    command = celery(stack, "purge", "--force")
    assert command.process.returncode != 0
    assert f"The queue {DEFAULT_QUEUE} cannot be purged; 0 messages are deleted." in command.output()
    assert (broker.llen(DEFAULT_QUEUE), broker.hlen(ACCEPTED)) == (1, 1)


def test_tasks_of_the_first_protocol_are_signed_and_counted(stack: Stack) -> None:
    stack.env["TASK_SIGNING_KEY"] = secrets.token_hex(32)
    stack.send(f"[setattr(celery_app.conf, 'task_protocol', 1), recorded.delay('a', '{stack.ledger}', 0)][1]")
    broker = stack.redis.client(0)
    assert broker.hlen(ACCEPTED) == 1
    stack.start_worker()
    wait_until(stack.nothing_waits)
    assert stack.events("end") == ["a"]
    assert broker.llen(DEAD_LETTERS) == 0


def test_names_that_only_we_use_may_be_in_a_tasks_headers(stack: Stack) -> None:
    worker = stack.start_worker()
    headers = {"made": "yesterday", "redeliveries": "many", "signature": "mine"}
    stack.result(*stack.send(f"sleeping.apply_async((0,), headers={headers})"))
    stack.send("celery_app.send_task('unknown')")
    wait_until(lambda: "becomes a dead letter" in worker.output())
    wait_until(stack.nothing_waits)
    [letter] = [line["message"] for line in worker.log_lines() if "becomes a dead letter" in line["message"]]
    assert "knows no task named" in letter


def test_an_id_may_be_a_uuid(stack: Stack) -> None:
    """https://github.com/celery/celery/issues/6164: callers hand over what uuid.uuid4() returns."""
    stack.env["TASK_SIGNING_KEY"] = secrets.token_hex(32)
    made = "task_id=uuid.uuid4()"
    (waiting,) = stack.send(f"sleeping.apply_async((0,), {made}, countdown=5)")
    assert stack.redis.client(0).hget(ACCEPTED, waiting) == "1"
    stack.start_worker()
    ids = stack.send(
        f"sleeping.apply_async((0,), {made})",
        f"sleeping.apply_async((0,), {made}, link=sleeping.si(0).set({made}))",
        f"group(sleeping.si(0), sleeping.si(0).set({made})).apply_async({made}).results[1]",
        f"chord([sleeping.si(0).set({made})])(collect.s().set({made}))",
        f"[sleeping.apply_async((0,), {made}, countdown=9)][0]",
    )
    revoked = ids.pop()
    code = f"from faulty_worker import *; celery_app.control.revoke(uuid.UUID('{revoked}'), reply=True)"
    command = [sys.executable, "-c", code]
    assert Program(command, stack.directory / "revoke.log", stack.env).process.wait(20) == 0
    for task_id in ids:
        stack.result(task_id)
    stack.result(revoked, "REVOKED")
    wait_until(stack.nothing_waits)
    assert stack.redis.client(0).llen(DEAD_LETTERS) == 0


def test_a_consumer_that_is_no_worker_takes_nothing_that_it_could_lose(stack: Stack) -> None:
    stack.start_worker()
    waiting = f"recorded.apply_async(('a', '{stack.ledger}', 0), queue='other')"
    by_a_task = stack.send(waiting, "consuming.delay('other')")[1]
    failed = stack.result(by_a_task, "FAILURE")["result"]
    assert "Only a worker takes messages from 'other'" in failed["exc_message"][0]
    code = "from faulty_worker import *; consuming.run('other')"
    program = Program(
        [sys.executable, "-c", code], stack.directory / "consuming.log", stack.env, stderr=subprocess.STDOUT
    )
    assert program.process.wait(20) != 0
    assert "Only a worker takes messages from 'other'" in program.output()
    assert stack.redis.client(0).llen("other") == 1


def test_a_priority_is_answered_with_a_word(stack: Stack) -> None:
    code = "from faulty_worker import *; [sleeping.apply_async((0,), priority=9) for _ in 'ab']"
    program = Program([sys.executable, "-c", code], stack.directory / "urgent.log", stack.env, stderr=subprocess.STDOUT)
    assert program.process.wait(20) == 0
    assert program.output().count("priority= of faulty_worker.sleeping changes nothing") == 1
    assert stack.redis.client(0).llen(DEFAULT_QUEUE) == 2
