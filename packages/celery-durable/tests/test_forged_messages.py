"""What does not come from this installation, or is too large, never runs: it becomes a dead letter that says why."""

import base64
import json
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.agents.tasks.example_task import example_agent_task
from app.settings import Settings, get_settings
from celery_durable import signing
from celery_durable.dead_letter import KEPT_BYTES
from celery_durable.envelope import task_message
from celery_durable.keys import ACCEPTED, DEAD_LETTERS, queue_of, unacked_list
from celery_durable.options import Options
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.testing import wait_for
from test_task_safety import POISON, message
from tests.support import ADMIN, Api, Program, Stack, of_the_console

KEY, OLD_KEY, FOREIGN_KEY = (letter * 32 for letter in "kof")
FUZZED = 1000

pytestmark = pytest.mark.attack("signatures of messages")


def keyed(keys: str = "") -> Options:
    return Options.from_environment({"DURABLE_SIGNING_KEY": keys})


class TestSignature:
    """Signing and verifying alone."""

    def test_what_is_signed_is_ours_and_nothing_else(self) -> None:
        ours = keyed(KEY)
        entry = signing.sign(ours, "celery", '{"body": "x"}').encode()
        assert json.loads(entry)["body"] == "x"
        assert signing.is_ours(ours, "celery", entry)
        assert not signing.is_ours(ours, "other", entry)
        for position in range(len(entry)):
            tampered = entry[:position] + bytes([entry[position] ^ 1]) + entry[position + 1 :]
            assert not signing.is_ours(ours, "celery", tampered)
            assert not signing.is_ours(ours, "celery", entry[:position])
        assert not signing.is_ours(ours, "celery", entry + b" ")
        assert not signing.is_ours(ours, "celery", b'{"body": "x"}')

    def test_rotation(self) -> None:
        before, during, after = keyed(OLD_KEY), keyed(f"{KEY}, {OLD_KEY}"), keyed(KEY)
        old = signing.sign(before, "celery", "{}").encode()
        new = signing.sign(during, "celery", "{}").encode()
        assert signing.is_ours(during, "celery", old)
        assert signing.is_ours(after, "celery", new)
        assert not signing.is_ours(after, "celery", old)

    def test_without_a_key_nothing_is_signed_or_verified(self) -> None:
        assert signing.sign(keyed(), "celery", '{"body": ""}') == '{"body": ""}'
        assert signing.is_ours(keyed(), "celery", b"anything")

    @pytest.mark.parametrize("key", ["short", "x" * 31, f"{KEY} short", f"{KEY},{KEY},{KEY}", " , "])
    def test_a_bad_key_is_rejected(self, bare_environment: pytest.MonkeyPatch, key: str) -> None:
        bare_environment.setenv("TASK_SIGNING_KEY", key)
        with pytest.raises(ValueError, match="must be one key of at least 32 characters"):
            Settings()

    @pytest.mark.parametrize("filler", ["\x7f", "é", "\U0001f600", "\\u0001"])
    def test_the_largest_request_fits_into_a_message(self, filler: str) -> None:
        """Whatever its characters grow to: a body of DEL grows most."""
        limit = get_settings().max_body_bytes
        size = limit - len(b'{"data": {"": ""}}')
        data = json.loads('{"": "%s"}' % (filler * (size // len(filler.encode()))), strict=False)
        entry = task_message(example_agent_task, "0" * 36, ("0" * 36, data), "q" * 200, "r" * 128)
        assert limit < len(entry) <= get_settings().message_limit

    def test_a_limit_below_the_largest_request_is_rejected(self, bare_environment: pytest.MonkeyPatch) -> None:
        bare_environment.setenv("MAX_MESSAGE_BYTES", "1000000")
        with pytest.raises(ValueError, match="MAX_MESSAGE_BYTES=1000000 must be at least 2162688"):
            Settings()

    def test_a_message_that_no_worker_would_take_is_not_sent(self) -> None:
        with pytest.raises(signing.MessageTooLargeError):
            signing.new_entry(keyed(), "celery", {"body": "x" * Options().message_limit})


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis of this test alone; what runs against it signs."""
    stack = Stack(tmp_path)
    stack.env["TASK_SIGNING_KEY"] = KEY
    yield stack
    for worker in stack.workers:
        worker.stop(signal.SIGKILL)
    stack.redis.stop()


def letters(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(letter) for letter in stack.redis.client(0).lrange(DEAD_LETTERS, 0, -1)]


def sent(stack: Stack, call: str, key: str | None = KEY) -> str:
    """Return the entry that a call makes, and take it out of the queue."""
    env, stack.env = stack.env, {**stack.env, "TASK_SIGNING_KEY": key or ""}
    stack.send(call)
    stack.env = env
    broker = stack.redis.client(0)
    broker.delete(ACCEPTED)
    return str(broker.rpop(DEFAULT_QUEUE))


def pickled(trace: Path) -> str:
    """Return the body of a message that creates a file when it is unpickled."""

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    return base64.b64encode(pickle.dumps(Attack())).decode()


@pytest.mark.integration
def test_nothing_forged_runs(stack: Stack) -> None:
    def call(name: str) -> str:
        return f"recorded.delay('{name}', '{stack.ledger}', 0)"

    def edit(change: Callable[[dict[str, Any]], object], name: str) -> str:
        entry = json.loads(sent(stack, call(name)))
        change(entry)
        return json.dumps(entry)

    victim = sent(stack, call("victim"))
    signature, other = victim[: victim.index('"body"')], sent(stack, call("other"), None)
    unpickled = stack.directory / "unpickled"
    pickle_headers = {"task": "faulty_worker.sleeping", "id": "p"}
    forged = [
        sent(stack, call("unsigned"), None),
        sent(stack, call("foreign"), FOREIGN_KEY),
        edit(lambda entry: entry.update(body=json.loads(other)["body"]), "body"),
        edit(lambda entry: entry["headers"].update(task="faulty_worker.fatal"), "task"),
        edit(lambda entry: entry["headers"].update(timelimit=[9999, 9999]), "limit"),
        edit(lambda entry: entry["headers"].update(id="another"), "id"),
        edit(lambda entry: entry["headers"].update(redeliveries=-99), "redeliveries"),
        edit(lambda entry: entry["properties"].update(reply_to="another"), "property"),
        signature + other.removeprefix("{"),
        victim[:-1] + ', "body": "W1tdLCB7fSwge31d"}',  # the last of two members counts
        message(pickle_headers, pickled(unpickled), content_type="application/x-python-serialize"),
        *POISON.values(),
    ]
    worker = stack.start_worker()
    broker = stack.redis.client(0)
    (honest,) = stack.send(call("honest"))
    stack.result(honest)
    victim_id = json.loads(victim)["headers"]["id"]
    broker.hset(ACCEPTED, victim_id, 1)
    broker.lpush("celery", *forged)
    wait_for(lambda: len(letters(stack)) == len(forged))
    assert {letter["reason"] for letter in letters(stack)} == {signing.FORGED}
    assert sorted(base64.b64decode(letter["message"]).decode() for letter in letters(stack)) == sorted(forged)
    assert broker.hgetall(ACCEPTED) == {victim_id: "1"}, "a forged message changes what is known of a task"
    broker.delete(ACCEPTED)
    wait_for(stack.nothing_waits)
    assert stack.events("start") == ["honest"]
    assert not unpickled.exists()
    assert worker.process.poll() is None

    assert signing.FORGED in stack.dead_letters("list")
    rejected = Program(
        [*ADMIN, "dead-letters", "requeue", "--all"], stack.directory / "requeue.log", of_the_console(stack.env)
    )
    assert rejected.process.wait(20) == 1
    assert rejected.output().count("stays a dead letter") == len(forged)
    assert len(letters(stack)) == len(forged)
    # What was made for one queue is not taken from another, and what is whole still runs.
    stack.start_worker("--queues=celery,second", name="second")
    broker.lpush("second", victim)
    wait_for(lambda: len(letters(stack)) == len(forged) + 1)
    broker.lpush("celery", victim)
    wait_for(lambda: stack.events("end") == ["honest", "victim"])


@pytest.mark.integration
def test_a_pickle_is_not_unpickled_without_a_key_either(stack: Stack) -> None:
    stack.env["TASK_SIGNING_KEY"] = ""
    worker = stack.start_worker()
    unpickled = stack.directory / "unpickled"
    for content_type in ("application/x-python-serialize", "pickle"):
        headers = {"task": "faulty_worker.sleeping", "id": content_type}
        entry = message(headers, pickled(unpickled), content_type=content_type)
        stack.redis.client(0).lpush("celery", entry)
    wait_for(lambda: len(letters(stack)) == 2)
    stack.result(*stack.send("sleeping.delay(0)"))
    assert not unpickled.exists()
    assert worker.process.poll() is None


@pytest.mark.integration
@pytest.mark.parametrize("key", [KEY, ""], ids=["signed", "without a key"])
def test_an_oversized_message_is_cut_and_stays_a_dead_letter(stack: Stack, key: str) -> None:
    stack.env |= {"TASK_SIGNING_KEY": key, "MAX_BODY_BYTES": "1000", "MAX_MESSAGE_BYTES": "100000"}
    stack.start_worker()
    broker = stack.redis.client(0)
    large = message({"task": "faulty_worker.sleeping", "id": "large"}, "x" * 30_000_000)
    broker.lpush("celery", large)
    (letter,) = wait_for(lambda: letters(stack))
    assert letter["reason"].startswith(f"It is {len(large)} bytes large, more than the 100000 bytes of MAX_MESSAGE")
    assert letter["reason"].endswith("Only its first 4096 bytes are kept.")
    assert letter["size"] == len(large)
    assert base64.b64decode(letter["message"]).decode() == large[:KEPT_BYTES]
    wait_for(stack.nothing_waits)
    rejected = Program(
        [*ADMIN, "dead-letters", "requeue", "--all"], stack.directory / "requeue.log", of_the_console(stack.env)
    )
    assert rejected.process.wait(20) == 1
    assert "stays a dead letter: It was too large to be kept." in rejected.output()
    stack.dead_letters("drop", letter["id"])
    assert letters(stack) == []
    stack.result(*stack.send("sleeping.delay(0)"))


@pytest.mark.integration
def test_what_is_ours_runs_on_every_way(stack: Stack) -> None:
    """API, Celery's own calls, retries, chords, a worker that was killed, a dead letter, and a key that is replaced."""
    worker = stack.start_worker()
    api = Api(stack.directory / "api.log", stack.env)
    try:
        ids = [api.enqueue({"key": "value"}), api.enqueue({"simulate_failure": True})]
        for task_id in ids:
            api.wait(task_id)
        size = get_settings().max_body_bytes - len(b'{"data":{"":""}}')
        body = b'{"data":{"":"%s"}}' % (b"\x7f" * size)
        response = api.post("/tasks/enqueue", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 202, response.text
        api.wait(response.json()["task_id"])
    finally:
        api.stop()
    chord = "__import__('celery').chord([sleeping.s(0), sleeping.s(0)], sleeping.si(0))()"
    for task_id in stack.send("dying.delay(1)", "sleeping.apply_async((0,), countdown=1)", chord):
        stack.result(task_id)

    stack.send(f"recorded.delay('redelivered', '{stack.ledger}', 2)")
    wait_for(lambda: stack.events("start") == ["redelivered"])
    worker.stop(signal.SIGKILL)
    stack.send(f"recorded.delay('old key', '{stack.ledger}', 0)")
    stack.env["TASK_SIGNING_KEY"] = f"{FOREIGN_KEY}\n{KEY}"
    stack.start_worker()
    wait_for(lambda: sorted(stack.events("end")) == ["old key", "redelivered"])
    stack.env["TASK_SIGNING_KEY"] = FOREIGN_KEY
    stack.result(*stack.send("sleeping.delay(0)"))

    (task_id,) = stack.send(f"dying_until.delay('{stack.directory / 'repaired'}')")
    stack.result(task_id, "FAILURE")
    wait_for(lambda: len(letters(stack)) == 1)
    (stack.directory / "repaired").touch()
    stack.dead_letters("requeue", task_id)
    stack.result(task_id)
    wait_for(stack.nothing_waits)
    assert letters(stack) == []


@pytest.mark.integration
def test_forged_messages_in_a_workers_own_list_do_not_run(stack: Stack) -> None:
    """Whoever can write to Redis can also put them where deliveries lie."""
    forged = sent(stack, "fatal.delay()", None)
    unacked = unacked_list("test@" + __import__("socket").gethostname(), DEFAULT_QUEUE)
    assert queue_of(unacked) == DEFAULT_QUEUE
    stack.redis.client(0).lpush(unacked, forged, "[" * 100_000)
    worker = stack.start_worker()
    wait_for(lambda: [letter["reason"] for letter in letters(stack)] == [signing.FORGED] * 2)
    stack.result(*stack.send("sleeping.delay(0)"))
    assert worker.process.poll() is None


NASTY: list[Any] = [
    None, True, 0, -1, 5e-324, float("nan"), float("inf"), 10**400, 2**64, "", "\ud800", "\x00", "\u202e" * 50,
    "x" * 100_000, "2026-13-45T99:99:99", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00", "../../etc/passwd",
    [], [[]], [None, None], {}, {"__type__": "decimal", "__value__": "x"}, {"__type__": "uuid", "__value__": {}},
    {"__type__": [], "__value__": 1}, {"a": {"b": {"c": []}}}, ["x"] * 1000, "gzip", "utf-16", "zlib", "base64",
    "application/x-python-serialize", "application/x-yaml", "application/data", "faulty_worker.sleeping",
]  # fmt: skip
HEADERS = [
    "id",
    "task",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "meth",
    "shadow",
    "eta",
    "expires",
    "retries",
    "timelimit",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "lang",
    "compression",
    "redeliveries",
    "utc",
    "redelivered",
    "request_id",
]
PROPERTIES = [
    "correlation_id",
    "reply_to",
    "delivery_mode",
    "delivery_info",
    "priority",
    "body_encoding",
    "delivery_tag",
]
ENTRIES = [
    "",
    "{",
    "null",
    "1" * 5000,
    "[" * 100_000,
    '{"headers":' * 50_000,
    '{"a": 1, "a": 2}',
    "\ud800",
    "\x00" * 99,
]


def mutants(entry: str, count: int) -> Iterator[bytes]:
    """Return ``count`` variants of an entry, the same in each run."""
    dice = random.Random(4)  # noqa: S311 - not for secrets
    for number in range(count):
        mutant: dict[str, Any] = json.loads(entry)
        mutant.pop(signing.MEMBER, None)
        for _ in range(dice.randint(1, 3)):
            where = dice.choice(["headers", "properties", "delivery_info", "member", "body", "delete"])
            value = dice.choice(NASTY)
            headers, properties = mutant.get("headers"), mutant.get("properties")
            if where == "headers" and isinstance(headers, dict):
                headers[dice.choice(HEADERS)] = value
            elif where == "properties" and isinstance(properties, dict):
                properties[dice.choice(PROPERTIES)] = value
            elif where == "delivery_info" and isinstance(properties, dict):
                properties["delivery_info"] = {"exchange": value, "routing_key": value, "redelivered": value}
            elif where == "member":
                mutant[dice.choice(list(mutant) or ["headers"])] = value
            elif where == "body":
                body = json.dumps(dice.choice([[[], {}, value], [value, {}, {}], [[], value, {}], value]))
                mutant["body"] = base64.b64encode(body.encode()).decode()
            elif isinstance(headers, dict) and headers:
                del headers[dice.choice(list(headers))]
        raw = bytearray(json.dumps(mutant).encode())
        if number % 4 == 0:
            for _ in range(dice.randint(1, 8)):
                raw[dice.randrange(len(raw))] = dice.randrange(256)
        elif number % 16 == 1:
            raw = bytearray(dice.choice(ENTRIES).encode(errors="surrogatepass"))
        elif number % 16 == 2:
            del raw[dice.randrange(len(raw)) :]
        yield bytes(raw)


@pytest.mark.integration
@pytest.mark.parametrize("key", [KEY, ""], ids=["signed", "without a key"])
def test_no_message_ends_a_worker(stack: Stack, key: str) -> None:
    """With a key none of them runs; without one, what is still a task may."""
    stack.env["TASK_SIGNING_KEY"] = key
    entry = sent(stack, "sleeping.delay(0)", key)
    worker = stack.start_worker()
    broker = stack.redis.client(0)
    fuzzed = list(mutants(entry, FUZZED))
    for mutant in fuzzed:
        broker.lpush(DEFAULT_QUEUE, mutant)
    for task_id in stack.send(*["sleeping.delay(0)"] * 10):
        stack.result(task_id, timeout=90)
    if key:
        wait_for(lambda: broker.llen(DEAD_LETTERS) == FUZZED)
        assert {letter["reason"] for letter in letters(stack)} == {signing.FORGED}
        wait_for(stack.nothing_waits)
    assert worker.process.poll() is None
    assert len([line for line in worker.log_lines() if line["message"].endswith("ready.")]) == 1, (
        "it lost its connection"
    )
    stack.dead_letters("list")
    stack.dead_letters("drop", "--all")
    assert letters(stack) == []
