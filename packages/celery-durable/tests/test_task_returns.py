"""A message that comes again: for what counts as a death, and what as the same message."""

import json
import signal
import time
from collections import Counter
from typing import Any

import pytest
from celery.backends.redis import CHORD_CLAIM_EXTEND_LUA  # type: ignore[attr-defined]

from app.agents.worker import celery_app
from celery_durable import signing
from celery_durable.keys import DEAD_LETTERS
from celery_durable.options import Options
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.redelivery import MAX_REDELIVERIES, REDELIVERIES
from celery_durable.testing import wait_for
from celery_durable.worker.runtime import Runtime
from durable_console.known_scripts import known
from tests.support import Stack

pytestmark = pytest.mark.integration


def send_with_one_death_left(stack: Stack, call: str) -> str:
    """Send a task with which so many workers have died that one more makes it a dead letter."""
    (task_id,) = stack.send(call)
    broker = stack.redis.client(0)
    entry = json.loads(str(broker.lpop(DEFAULT_QUEUE)))
    entry["headers"]["redeliveries"] = MAX_REDELIVERIES
    broker.lpush(DEFAULT_QUEUE, json.dumps(entry))
    return task_id


def test_a_task_that_only_waits_dies_with_nobody(stack: Stack) -> None:
    name = send_with_one_death_left(stack, f"recorded.apply_async(('a', '{stack.ledger}', 0), countdown=25)")
    worker = stack.start_worker()
    for times in range(3):
        wait_for(lambda: worker.output().count(f"{name}] received") > times)  # noqa: B023 - called at once
        stack.redis.client(0).client_kill_filter(_type="normal", skipme=True)
    worker.stop(signal.SIGKILL)
    stack.start_worker()
    stack.result(name, "SUCCESS", "FAILURE")
    assert stack.events("end") == ["a"]
    wait_for(stack.nothing_waits)


def test_the_task_that_ran_is_what_killed_its_worker_and_not_the_one_behind_it(stack: Stack) -> None:
    culprit = send_with_one_death_left(stack, f"recorded.delay('culprit', '{stack.ledger}', 60)")
    behind = send_with_one_death_left(stack, f"recorded.delay('behind', '{stack.ledger}', 0)")
    options = "--pool=threads", "--concurrency=1", "--prefetch-multiplier=4"
    worker = stack.start_worker(*options)
    wait_for(lambda: stack.redis.client(0).smembers(f"unacked_idle:{hostname(stack)}:{DEFAULT_QUEUE}"))
    worker.stop(signal.SIGKILL)
    stack.start_worker(*options)
    assert "workers died" in stack.result(culprit, "FAILURE")["result"]["exc_message"][0]
    stack.result(behind)
    assert stack.events("start") == ["culprit", "behind"]
    assert stack.redis.client(0).llen(DEAD_LETTERS) == 1
    wait_for(stack.nothing_waits)


def hostname(stack: Stack) -> str:
    """Return the name of the stack's worker."""
    [lease] = stack.redis.client(0).zrange("unacked_leases", 0, -1)
    return str(lease).split(":")[1]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_rejects_its_message_once_runs_twice(stack: Stack, pool: str) -> None:
    stack.start_worker(f"--pool={pool}", "--prefetch-multiplier=4")
    ids = stack.send(f"*[rejecting_once.delay('{stack.ledger}') for _ in range(20)]")
    wait_for(lambda: len(stack.events("start")) >= 2 * len(ids))
    wait_for(stack.nothing_waits)
    assert Counter(stack.events("start")) == dict.fromkeys(ids, 2)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_id_that_is_sent_again_runs_again_but_a_message_that_comes_again_does_not(stack: Stack, pool: str) -> None:
    call = f"recorded.apply_async(('a', '{stack.ledger}', 0), task_id='nightly')"
    stack.send(call)
    broker = stack.redis.client(0)
    [entry] = broker.lrange(DEFAULT_QUEUE, 0, -1)
    worker = stack.start_worker(f"--pool={pool}")
    stack.result("nightly")
    wait_for(stack.nothing_waits)
    # Redis had not written that it was taken.
    broker.lpush(DEFAULT_QUEUE, entry)
    worker.wait_for_output("does not run again")
    wait_for(stack.nothing_waits)
    assert stack.events("end") == ["a"]
    stack.send(call)
    wait_for(lambda: stack.events("end") == ["a", "a"])
    wait_for(stack.nothing_waits)


def test_tasks_run_without_a_store_for_results(stack: Stack) -> None:
    stack.env["WITHOUT_RESULTS"] = "yes"
    stack.start_worker()
    stack.send(f"recorded.delay('a', '{stack.ledger}', 0)")
    wait_for(lambda: stack.events("end") == ["a"])
    wait_for(stack.nothing_waits)
    assert stack.redis.client(0).llen(DEAD_LETTERS) == 0


def test_a_task_with_a_base_class_of_its_own_is_as_safe_as_any(stack: Stack) -> None:
    worker = stack.start_worker()
    (died, *_) = stack.send(
        f"own_dying.delay('{stack.directory / 'repaired'}')",
        *[f"{task}.delay('{task}', '{stack.ledger}', 0)" for task in ("own", "requesting")],
    )
    worker.wait_for_output("OwnRequest knows")
    stack.result(died, "FAILURE")
    wait_for(stack.nothing_waits)
    assert "Its process died in each of" in stack.dead_letters("list")
    counted = stack.redis.client(0)
    wanted = {f"ended\x1f{task}\x1fsucceeded" for task in ("own", "requesting")}
    wait_for(lambda: wanted <= set(counted.hkeys("figures")))


@pytest.mark.parametrize("whom", ["process", "worker"])
def test_a_chord_hears_of_a_part_that_died_after_its_success(stack: Stack, whom: str) -> None:
    """It is not run again, so nobody else would tell the chord; its body would never run."""
    worker = stack.start_worker()
    (body,) = stack.send(f"chord([dying_part.s('{stack.ledger}', '{whom}'), sleeping.s(0)])(collect.s())")
    if whom == "worker":
        assert worker.process.wait(20) == -signal.SIGKILL
        stack.start_worker()
    assert stack.result(body)["result"] == ["part", "done"]
    wait_for(stack.nothing_waits)
    assert len(stack.events("start")) == 1


@pytest.mark.parametrize(("how", "state"), [("success", "SUCCESS"), ("failure", "FAILURE")])
def test_a_chord_ends_whose_last_part_died_with_the_claim_to_its_body(stack: Stack, how: str, state: str) -> None:
    stack.start_worker("--concurrency=1")
    stack.start_worker("--concurrency=1", name="second")
    (body,) = stack.send(f"chord([sleeping.s(0), dying_last_part.s({how!r}).set(countdown=1)])(collect.s())")
    stack.result(body, state)
    assert [worker.process.poll() for worker in stack.workers].count(-signal.SIGKILL) == 1
    wait_for(stack.nothing_waits)


def test_a_message_is_taken_as_fast_however_many_wait_for_their_time() -> None:
    """https://github.com/celery/celery/issues/3778: workers hold all tasks with an ETA."""
    worker = Runtime(celery_app, "test")
    worker.leases.lists[DEFAULT_QUEUE] = "unacked:test:celery"
    deliveries = worker.deliveries
    began = time.monotonic()
    tags = [deliveries.take(DEFAULT_QUEUE, b"%d" % number, "") for number in range(30_000)]
    assert None not in tags
    assert deliveries.take(DEFAULT_QUEUE, b"7", "") is None
    assert time.monotonic() - began < 10


def test_the_largest_message_may_come_back() -> None:
    """Too large for a worker, all but its beginning would be lost."""
    options = Options()
    limit = options.message_limit
    message: dict[str, Any] = {"headers": {}, "properties": {"delivery_info": {}}, "body": ""}
    message["body"] = "x" * (limit - signing.GROWTH - len(signing.new_entry(options, DEFAULT_QUEUE, message)))
    assert len(signing.new_entry(options, DEFAULT_QUEUE, message)) == limit - signing.GROWTH
    message["headers"] = {REDELIVERIES: MAX_REDELIVERIES}
    message["properties"] = {"delivery_info": {"redelivered": True}, "returns": 10**6}
    assert signing.rejection(options, DEFAULT_QUEUE, signing.changed(options, DEFAULT_QUEUE, message).encode()) is None
    message["body"] += "x"
    with pytest.raises(signing.MessageTooLargeError):
        signing.new_entry(options, DEFAULT_QUEUE, message)


@pytest.mark.parametrize("outage", ["full", "gone"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_what_tasks_send_and_what_follows_them_is_sent_when_redis_is_back(stack: Stack, pool: str, outage: str) -> None:
    """Celery tries for less than a second, calls a task that has succeeded a failure, and drops its chain or chord."""
    if pool == "asyncio":
        stack.env["CELERY_CUSTOM_WORKER_POOL"] = "celery_durable.worker.asyncio_pool:TaskPool"
    stack.start_worker(f"--pool={'custom' if pool == 'asyncio' else pool}", "-c", "6")
    part = f"recorded.si('part', '{stack.ledger}', 2)"
    last = f"recorded.si('last', '{stack.ledger}', 0)"
    sending = [f"sending.delay('{how}', '{stack.ledger}', 2)" for how in ("retry", "delay")]
    ends = stack.send(f"({part} | {last}).delay()", f"chord([{part}, {part}])({last})", *sending)
    wait_for(lambda: len(stack.events("start")) == 5)
    broker = stack.redis.client(0)
    if outage == "full":
        broker.config_set("maxmemory", "1mb")
    else:
        stack.redis.stop()
    wait_for(lambda: len(stack.events("end")) == 5)
    time.sleep(4)
    if outage == "full":
        broker.config_set("maxmemory", "0")
    else:
        stack.redis.start()
    for task_id in ends:
        stack.result(task_id)
    wait_for(stack.nothing_waits)
    assert Counter(stack.events("start")) == {"part": 3, "last": 2, "retry": 2, "delay": 1, "other": 1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_a_chord_survives_a_restart_of_redis(stack: Stack, pool: str) -> None:
    """After its start Redis has no scripts for a while, and a service may load none."""
    if pool == "asyncio":
        stack.env["CELERY_CUSTOM_WORKER_POOL"] = "celery_durable.worker.asyncio_pool:TaskPool"
    stack.redis.stop()
    stack.redis.settings["user"] = "worker on >secret ~* &* +@all -script|load"
    stack.redis.start()
    for script in known().values():
        stack.redis.client(0).script_load(script)
    of_worker = {"CELERY_BROKER_URL": 0, "CELERY_RESULT_BACKEND": 1}
    stack.env |= {
        name: stack.redis.url(db).replace(f"//:{stack.redis.password}", "//worker:secret")
        for name, db in of_worker.items()
    }
    stack.start_worker(f"--pool={'custom' if pool == 'asyncio' else pool}", "-c", "4")
    part, last = (f"recorded.si('{name}', '{stack.ledger}', {seconds})" for name, seconds in (("part", 2), ("last", 0)))
    (end,) = stack.send(f"chord([{part}, {part}])({last})")
    wait_for(lambda: len(stack.events("start")) == 2)
    stack.redis.stop()
    stack.redis.start()
    wait_for(lambda: len(stack.events("end")) == 2)
    # They come one after the other.
    for script in sorted(known().values(), key=CHORD_CLAIM_EXTEND_LUA.__eq__):
        if script == CHORD_CLAIM_EXTEND_LUA:
            time.sleep(2)
        stack.redis.client(0).script_load(script)
    stack.result(end)
    assert Counter(stack.events("start")) == {"part": 2, "last": 1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_what_is_sent_while_redis_hangs_is_sent_once(stack: Stack, pool: str) -> None:
    """What it did not answer in time it executes when it goes on, beside what was sent once more."""
    if pool == "asyncio":
        stack.env["CELERY_CUSTOM_WORKER_POOL"] = "celery_durable.worker.asyncio_pool:TaskPool"
    stack.start_worker(f"--pool={'custom' if pool == 'asyncio' else pool}", "-c", "4")
    part, last = (f"recorded.si('{name}', '{stack.ledger}', 1)" for name in ("part", "last"))
    sending = f"sending.delay('delay', '{stack.ledger}', 1)"
    calls = [f"({part} | {last}).delay()"] * 2 + [sending] * 2
    # Each process has sent something before: it hangs in that, and not when it connects.
    for times in (1, 2):
        ends = stack.send(*calls)
        wait_for(lambda: len(stack.events("start")) >= (4 if times == 1 else 12))  # noqa: B023 - called at once
        if times == 2:
            stack.redis.hang()
            time.sleep(12)
            stack.redis.program.process.send_signal(signal.SIGCONT)
        for task_id in ends:
            stack.result(task_id)
        wait_for(stack.nothing_waits)
    assert Counter(stack.events("start")) == {"part": 4, "last": 4, "delay": 4, "other": 4}


def test_what_redis_rejects_for_good_is_not_sent_again_and_again(stack: Stack) -> None:
    stack.start_worker("-c", "2")
    stack.redis.client(0).set("other", "no list")
    first = f"recorded.si('first', '{stack.ledger}', 0)"
    (last,) = stack.send(f"({first} | recorded.si('last', '{stack.ledger}', 0).set(queue='other')).delay().parent")
    assert "Redis rejects what the task sends" in str(stack.result(last, "FAILURE"))
    assert stack.events("start") == ["first"]
