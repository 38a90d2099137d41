"""One worker has a node name, whatever clocks say; what was revoked stays so."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from celery_durable.keys import LEASES, OWNER
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.revocations import KEY
from celery_durable.testing import wait_for
from celery_durable.worker import node_owner
from celery_durable.worker.node_owner import described, lives, token
from tests.support import Program, Stack

pytestmark = pytest.mark.integration


def start_second(stack: Stack) -> Program:
    """Start another worker of the same name; do not wait for it."""
    command = [sys.executable, "-m", "celery", "-A", "faulty_worker", "worker", "-c", "1", "-n", "test@%h"]
    worker = Program(command, stack.directory / f"worker-{len(stack.workers)}.log", stack.env)
    stack.workers.append(worker)
    return worker


def owner_key(stack: Stack) -> str:
    """Return the key of the only name that is taken."""
    [key] = stack.redis.client(0).scan_iter(f"{OWNER}*")
    return str(key)


def test_a_second_worker_of_a_name_is_rejected_and_the_first_works_on(stack: Stack) -> None:
    first = stack.start_worker()
    stack.send(f"recorded.delay('a', '{stack.ledger}', 8)")
    wait_for(lambda: stack.events("start") == ["a"])
    second = start_second(stack)
    assert second.process.wait(20) == 1
    assert f"process {first.process.pid} on host" in second.output()
    assert "Give each worker a name of its own" in second.output()
    wait_for(lambda: stack.events("end") == ["a"])
    wait_for(stack.nothing_waits)
    assert stack.events("start") == ["a"]
    assert first.stop() == 0
    assert not list(stack.redis.client(0).scan_iter(f"{OWNER}*"))


def test_a_name_of_another_machine_is_taken_over_when_its_worker_gives_no_sign_of_life(stack: Stack) -> None:
    stack.start_worker().stop(signal.SIGKILL)
    broker, key = stack.redis.client(0), owner_key(stack)
    elsewhere = "elsewhere|boot|namespace|1|1|token"

    def set_owner() -> None:
        pipeline = broker.pipeline()
        pipeline.delete(key)
        pipeline.zadd(key, {elsewhere: time.time()})
        pipeline.execute()

    set_owner()
    rejected = start_second(stack)

    def is_rejected() -> bool:
        set_owner()
        return rejected.process.poll() is not None

    wait_for(is_rejected, seconds=20)
    assert "process 1 on host elsewhere" in rejected.output()
    stack.start_worker()
    assert elsewhere not in broker.zrange(key, 0, -1)


def test_a_worker_whose_name_was_taken_over_ends_at_once(stack: Stack) -> None:
    worker = stack.start_worker()
    broker, key = stack.redis.client(0), owner_key(stack)
    pipeline = broker.pipeline()
    pipeline.delete(key)
    pipeline.zadd(key, {"elsewhere|boot|namespace|1|1|token": time.time()})
    pipeline.execute()
    assert worker.process.wait(10) == -signal.SIGKILL
    assert "has been taken over" in worker.output()


def test_a_machine_is_known_by_the_first_file_that_says_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "id").write_text("one\n")
    monkeypatch.setattr(node_owner, "MACHINE_FILES", (str(tmp_path / "hidden"), str(tmp_path / "empty")))
    assert lives(token()) is None
    monkeypatch.setattr(node_owner, "MACHINE_FILES", (str(tmp_path / "hidden"), str(tmp_path / "id")))
    assert "|one|" in token()
    assert lives(token()) is False


def test_a_token_tells_whether_its_process_lives() -> None:
    code = "from celery_durable.worker.node_owner import token; print(token(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        owner = process.stdout.readline().strip()
        assert lives(owner) is True
        assert f"process {process.pid} on" in described(owner)
        process.kill()
        process.wait()
    assert lives(owner) is False
    assert lives(token()) is False  # a process that has executed itself anew
    assert lives("elsewhere|boot|namespace|1|1|token") is None


def test_neither_step_of_redis_clock_gives_away_what_runs_nor_keeps_what_is_dead(stack: Stack) -> None:
    stack.env |= {"TASK_SOFT_TIME_LIMIT": "1", "TASK_TIME_LIMIT": "2"}
    stack.send(*[f"recorded.delay('{name}', '{stack.ledger}', 0)" for name in ("alive", "dead")])
    broker, alive, dead = stack.redis.client(0), f"unacked:alive@h:{DEFAULT_QUEUE}", f"unacked:dead@h:{DEFAULT_QUEUE}"
    for unacked in (alive, dead):
        broker.lmove(DEFAULT_QUEUE, unacked, "RIGHT", "LEFT")
    # The clock was set forward by an hour after the first one's heartbeat, and back by an hour after the other's.
    broker.zadd(LEASES, {dead: time.time() + 3600})

    def dead_runs() -> bool:
        broker.zadd(LEASES, {alive: time.time() - 3600})
        return bool(stack.events("end"))

    dead_runs()
    stack.start_worker()
    wait_for(dead_runs, seconds=50)
    assert stack.events("end") == ["dead"]
    # Now it sends no heartbeat any more.
    wait_for(lambda: stack.events("end") == ["dead", "alive"], seconds=30)
    wait_for(stack.nothing_waits)


def test_what_was_revoked_stays_so_when_workers_are_killed(stack: Stack) -> None:
    worker = stack.start_worker()
    by_id, by_stamp, other = stack.send(
        f"recorded.apply_async(('id', '{stack.ledger}', 0), countdown=15)",
        f"recorded.apply_async(('stamp', '{stack.ledger}', 0), countdown=15, stamped_headers=['owner'], owner='bob')",
        f"recorded.apply_async(('other', '{stack.ledger}', 0), countdown=15)",
    )
    wait_for(lambda: all(f"{name}] received" in worker.output() for name in (by_id, by_stamp, other)))
    code = (
        f"from faulty_worker import celery_app as app; app.control.revoke({by_id!r});"
        "app.control.revoke_by_stamped_headers({'owner': ['bob']})"
    )
    assert Program([sys.executable, "-c", code], stack.directory / "revoke.log", stack.env).process.wait(20) == 0
    broker = stack.redis.client(0)
    kept = {f"id:{by_id}", f"stamp:{json.dumps(['owner', 'bob'])}"}
    wait_for(lambda: kept == set(broker.zrange(KEY, 0, -1)))
    worker.stop(signal.SIGKILL)
    stack.start_worker(name="another").wait_for_output("ready")
    stack.start_worker()
    stack.result(other)
    wait_for(stack.nothing_waits)
    assert stack.events("end") == ["other"]
    assert {stack.result(name, "REVOKED")["status"] for name in (by_id, by_stamp)} == {"REVOKED"}
    # What was heeded is forgotten: the id may be sent again.
    wait_for(lambda: f"id:{by_id}" not in broker.zrange(KEY, 0, -1))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_revocation_that_is_confirmed_outlives_a_worker_that_is_killed_at_once(stack: Stack, pool: str) -> None:
    worker = stack.start_worker(f"--pool={pool}")
    revoked, other = stack.send(
        f"recorded.apply_async(('revoked', '{stack.ledger}', 0), countdown=15)",
        f"recorded.apply_async(('other', '{stack.ledger}', 0), countdown=15)",
    )
    wait_for(lambda: all(f"{name}] received" in worker.output() for name in (revoked, other)))
    code = (
        "import os; from faulty_worker import celery_app as app;"
        f"print(app.control.revoke({revoked!r}, reply=True, limit=1, timeout=10)); os.kill({worker.process.pid}, 9)"
    )
    sender = Program([sys.executable, "-c", code], stack.directory / "revoke.log", stack.env)
    assert sender.process.wait(20) == 0
    assert "flagged as revoked" in sender.output()
    stack.start_worker(f"--pool={pool}")
    stack.result(other)
    wait_for(stack.nothing_waits)
    assert stack.events("end") == ["other"]
    assert stack.result(revoked, "REVOKED")["status"] == "REVOKED"


def test_a_revocation_that_redis_does_not_take_is_not_confirmed(stack: Stack) -> None:
    stack.start_worker()
    broker = stack.redis.client(0)
    broker.set(KEY, "of a wrong type")
    revoke = "print(app.control.revoke('some-id', reply=True, limit=1, timeout=10))"
    command = [sys.executable, "-c", f"from faulty_worker import celery_app as app; {revoke}"]
    sender = Program(command, stack.directory / "revoke.log", stack.env)
    assert sender.process.wait(20) == 0
    assert "Redis does not know it yet" in sender.output()
    # It is kept for when Redis takes it.
    broker.delete(KEY)
    wait_for(lambda: broker.zrange(KEY, 0, -1) == ["id:some-id"])


def test_a_process_that_is_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ProtectProc=invisible the processes of other users are not in /proc."""
    sleeper = subprocess.Popen(["sleep", "60"])
    owner = token().split("|")
    owner[3:5] = [str(sleeper.pid), "1"]
    monkeypatch.setattr(node_owner, "_started", lambda _: None)
    assert lives("|".join(owner)) is None
    sleeper.kill()
    sleeper.wait()
    assert lives("|".join(owner)) is False
