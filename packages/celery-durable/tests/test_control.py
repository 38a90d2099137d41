"""Who may tell a worker what to do, and that nothing which arrives on any of its channels ends it."""

import base64
import json
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery.worker.control as commands
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_durable import control
from celery_durable.control import FORGED, FRESH, HIDDEN, QUESTIONS
from celery_durable.envelope import envelope
from celery_durable.options import Options
from celery_durable.testing import RedisServer, wait_for
from tests.support import Program, start_worker

KEY, FOREIGN_KEY = "k" * 32, "f" * 32
NODE = "test@" + subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
PIDBOX = "/0.celery.pidbox"
MEGABYTE = 1024 * 1024
CHANGES = sorted(commands.Panel.data.keys() - QUESTIONS)

pytestmark = pytest.mark.attack("signed commands; questions that change nothing; a loop that no message ends")


class Worker:
    """A worker with a control key, and what anybody who reaches Redis can send to it."""

    def __init__(self, directory: Path) -> None:
        """Start Redis and a worker with one child."""
        self.redis = RedisServer(directory / "redis")
        self.env = {
            **self.redis.environment(0, 1),
            "CONTROL_SIGNING_KEY": KEY,
            "TASK_ROUTES": json.dumps({"faulty_worker.recorded": "slow"}),
        }
        arguments = ("-c", "1", "--queues=celery")
        self.program = start_worker(directory / "worker.log", self.env, *arguments, app="faulty_worker")
        self.broker = self.redis.client(0)
        time.sleep(1)  # commands from before its start are refused

    def stop(self) -> None:
        """End both."""
        self.program.stop(signal.SIGKILL)
        self.redis.stop()

    def tell(self, body: Any, channel: str = PIDBOX) -> None:
        """Publish a body as kombu does."""
        headers = {"clock": 0, "expires": 0}
        self.broker.publish(channel, envelope(body, "celery.pidbox", "", headers, {"delivery_mode": 1}))

    def ask(self, command: dict[str, Any], seconds: float = 5) -> Any:
        """Send a command and return the worker's answer; None if there is none."""
        self.tell(command)
        reply: Any = self.broker.brpop([f"{command['reply_to']['routing_key']}"], timeout=seconds)
        return json.loads(base64.b64decode(json.loads(reply[1])["body"]))[NODE] if reply else None

    def pools(self) -> dict[str, Any]:
        """Return what a command could have changed: queues, limits, processes."""
        questions = ("active_queues", "registered", "stats", "revoked")
        queues, tasks, stats, revoked = (self.ask(command(question)) for question in questions)
        return {
            "queues": [queue["name"] for queue in queues],
            "tasks": tasks,
            "processes": stats["pool"]["processes"],
            "prefetch": stats["prefetch_count"],
            "revoked": revoked,
        }


def command(method: str, **arguments: Any) -> dict[str, Any]:
    """Return a command as Celery's clients make it, without a signature."""
    mailbox = f"{uuid.uuid4()}.reply.celery.pidbox"
    return {
        "method": method,
        "arguments": arguments,
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": "t",
        "reply_to": {"exchange": "", "routing_key": mailbox},
    }


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("control"))
    yield worker
    worker.stop()


def signed(command: dict[str, Any], key: str = KEY) -> dict[str, Any]:
    return control.signed(Options(control_keys=(key.encode(),)), command)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "add_consumer": {"queue": "slow"},
    "cancel_consumer": {"queue": "celery"},
    "election": {"id": "1", "topic": "task", "action": {"task": "faulty_worker.sleeping"}},
    "rate_limit": {"task_name": "faulty_worker.sleeping", "rate_limit": "1/h"},
    "time_limit": {"task_name": "faulty_worker.sleeping", "soft": 1, "hard": 1},
    "revoke": {"task_id": "x", "terminate": True},
    "terminate": {"task_id": "x", "signal": "KILL"},
    "revoke_by_stamped_headers": {"headers": {"x": "y"}, "terminate": True},
    "hello": {"from_node": "x@y", "revoked": ["x"]},
}


class TestChanges:
    """Who has not the operator's key changes nothing."""

    @pytest.mark.parametrize("method", [*CHANGES, "no_such_command"])
    def test_no_signature(self, worker: Worker, method: str) -> None:
        before = worker.pools()
        assert worker.ask(command(method, **ARGUMENTS.get(method, {}))) == {"error": FORGED}
        assert worker.pools() == before
        assert worker.program.process.poll() is None

    def test_another_key(self, worker: Worker) -> None:
        assert worker.ask(signed(command("cancel_consumer", queue="celery"), FOREIGN_KEY)) == {"error": FORGED}

    @pytest.mark.parametrize("name", ["signed", "signature"])
    @pytest.mark.parametrize("value", [None, 1, "", "é", [], {"a": 1}])
    def test_a_broken_signature(self, worker: Worker, name: str, value: Any) -> None:
        broken = {**signed(command("cancel_consumer", queue="celery")), name: value}
        assert worker.ask(broken) == {"error": FORGED}

    def test_the_signed_text_alone_counts(self, worker: Worker) -> None:
        question = command("ping")
        assert worker.ask({**signed(question), "method": "shutdown", "arguments": {"queue": "celery"}}) == {
            "ok": "pong"
        }
        assert worker.program.process.poll() is None

    def test_a_command_is_followed_once(self, worker: Worker) -> None:
        message = signed(command("revoke", task_id="some-id"))
        assert worker.ask(message) == {"ok": "tasks {'some-id'} flagged as revoked"}
        assert worker.ask(message) == {"error": "It came before."}

    @pytest.mark.parametrize("late", [FRESH + 2, -FRESH - 5])
    def test_a_stale_command(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, late: float) -> None:
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr("celery_durable.control.time.time", lambda: now - late)
            stale = signed(command("cancel_consumer", queue="celery"))
        assert "compare the hosts' clocks" in worker.ask(stale)["error"]

    def test_a_queue_that_no_setting_names(self, worker: Worker) -> None:
        for queue in ("reports", "deferred:celery", "unacked:x:celery", "dead_letters", "_kombu.binding.celery"):
            worker.ask(signed(command("add_consumer", queue=queue)))
        assert worker.pools()["queues"] == ["celery"]

    def test_the_operator(self, worker: Worker) -> None:
        def control(*words: str) -> tuple[int, str]:
            celery = [sys.executable, "-m", "celery", "-A", "faulty_worker", "control", *words]
            log = worker.redis.directory / "control.log"
            program = Program(celery, log, worker.env)
            return program.process.wait(20), program.output()

        assert control("add_consumer", "slow")[0] == 0
        wait_for(lambda: worker.pools()["queues"] == ["celery", "slow"])
        code, _ = control("cancel_consumer", "slow")
        assert code == 0
        wait_for(lambda: worker.pools()["queues"] == ["celery"])
        unsigned = {**worker.env, "CONTROL_SIGNING_KEY": ""}
        worker.env, own = unsigned, worker.env
        try:
            code, said = control("cancel_consumer", "celery")
        finally:
            worker.env = own
        assert FORGED.partition(":")[0] in said
        assert worker.pools()["queues"] == ["celery"]


class TestQuestions:
    """They stay open, but do not tell what tasks were given."""

    def test_arguments(self, worker: Worker) -> None:
        call = "from faulty_worker import *; print(sleeping.apply_async(['a secret'], countdown=600).id)"
        sender = Program([sys.executable, "-c", call], worker.redis.directory / "send.log", worker.env)
        assert sender.process.wait(20) == 0
        found = wait_for(lambda: worker.ask(command("scheduled")), seconds=10)
        assert found[0]["request"]["args"] == HIDDEN
        assert "a secret" not in json.dumps([found, worker.ask(command("query_task", ids=[sender.output().strip()]))])
        assert worker.ask(signed(command("scheduled")))[0]["request"]["args"] == ["a secret"]

    def test_an_answer_goes_to_no_other_list(self, worker: Worker) -> None:
        for routing_key in ("celery", "accepted", "a b", "x" * 1000, "deferred:celery", "\n"):
            for exchange in ("", "reply.celery.pidbox", "celery", "celeryev"):
                worker.tell({**command("ping"), "reply_to": {"exchange": exchange, "routing_key": routing_key}})
        assert worker.ask(command("ping")) == {"ok": "pong"}
        assert worker.broker.llen("celery") == 0
        assert worker.broker.exists("a b", "x" * 1000, "deferred:celery", "\n") == 0


def test_workers_ask_one_another_nothing(worker: Worker) -> None:
    """Celery's mingle comes back through the steps that require it."""
    assert "ready." in worker.program.output()
    assert "mingle" not in worker.program.output()


def test_what_is_compressed_stays_so(worker: Worker) -> None:
    def peak() -> int:
        status = Path(f"/proc/{worker.program.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])  # KiB

    message = json.loads(envelope(command("ping"), "celery.pidbox", "", {"compression": "application/x-gzip"}, {}))
    message["body"] = base64.b64encode(zlib.compress(b" " * 300 * MEGABYTE)).decode()
    before = peak()
    for place in (PIDBOX, "/0.celeryev/worker.heartbeat"):
        worker.broker.publish(place, json.dumps(message))
    assert worker.ask(command("ping")) == {"ok": "pong"}
    assert peak() - before < 100 * 1024


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
WORDS = (
    "method",
    "arguments",
    "destination",
    "pattern",
    "matcher",
    "ticket",
    "reply_to",
    "signed",
    "signature",
    "self",
)
ENVELOPE = ("body", "content-type", "content-encoding", "headers", "properties", "compression")
PROPERTIES = ("delivery_tag", "body_encoding", "delivery_info", "delivery_mode", "priority", "reply_to", "expiration")
TYPES = ("application/x-python-serialize", "application/json", "application/data", "text/plain", "application/x-yaml")


@st.composite
def changed_messages(draw: st.DrawFn) -> str:
    """A command with some of its parts replaced, at each of its levels."""
    body: Any = command(draw(st.sampled_from([*CHANGES, *sorted(QUESTIONS)])))
    body |= draw(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=3))
    body = draw(st.just(body) | JSON)
    message = json.loads(envelope(body, "celery.pidbox", "", {"clock": 0}, {"delivery_mode": 1}))
    message["properties"] |= draw(st.dictionaries(st.sampled_from(PROPERTIES), JSON, max_size=2))
    message |= draw(st.dictionaries(st.sampled_from(ENVELOPE), JSON | st.sampled_from(TYPES), max_size=2))
    return json.dumps(message)


@given(
    payload=st.binary(max_size=40) | JSON.map(json.dumps) | changed_messages(),
    place=st.sampled_from(
        [PIDBOX, "/0.celeryev/worker.heartbeat", "/0.celeryev/worker.elect", f"{NODE}.celery.pidbox"]
    ),
)
@example(payload=b"1", place=PIDBOX)
@example(payload=b"[" * 100_000, place=PIDBOX)
@example(payload=b'{"__type__": "datetime", "__value__": {}}', place=PIDBOX)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_ends_the_worker(worker: Worker, payload: str | bytes, place: str) -> None:
    if place.startswith("/"):
        worker.broker.publish(place, payload)
    else:
        worker.broker.lpush(place, payload)
    answer = worker.ask(command("ping"))
    assert answer == {"ok": "pong"}, worker.program.output()[-3000:]
    assert worker.program.process.poll() is None
