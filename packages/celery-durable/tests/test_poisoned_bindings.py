"""Kombu's bindings in Redis: whoever may ask workers questions can keep none from its tasks with them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from tests.support import REPOSITORY, Program, Stack

RULES = REPOSITORY / "deploy/kubernetes/secret-files/typesafe-secrets-redis-broker/redis.conf"
ASKS = ("flower", "api", "operator")
EXCHANGES = ("celery", "celery.pidbox", "reply.celery.pidbox", "celeryev", "orders")
TABLES = [f"_kombu.binding{kind}.{exchange}" for kind in ("", "_permanent") for exchange in EXCHANGES]
BINDINGS = [*TABLES, "_kombu.binding_deadlines"]
# What replaces a key by one of another type, and entries that kombu cannot read.
POISON = (
    ("DEL",),
    ("SREM", "x"),
    ("ZREM", "x"),
    ("SET", "x"),
    ("ZADD", "1", "x"),
    ("SADD", "x"),
    ("SADD", "x\x06\x16["),
)
SHOP = """
from celery import Celery
from kombu import Exchange, Queue
import celery_durable

app = Celery("shop")
app.conf.task_queues = [Queue("emails", Exchange("orders", type="topic"), routing_key="order.#")]
app.conf.task_routes = {"shop.order": {"queue": "emails", "routing_key": "order.new"}}

@app.task(name="shop.order")
def order(): pass

celery_durable.install(app)
"""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.attack("rules of Redis; no binding but those of tasks' queues is written or read"),
]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis with the users that the roles render."""
    stack = Stack(tmp_path)
    for line in RULES.read_text().splitlines():
        if line.startswith(tuple(f"user {user} " for user in (*ASKS, "worker"))):
            _, user, rules = line.split(" ", 2)
            words = [word for word in re.findall(r"\([^)]*\)|\S+", rules) if word != "+client|setinfo"]
            stack.redis.client(0).execute_command("ACL", "SETUSER", user, *words, ">pw")  # type: ignore[no-untyped-call]
    yield stack
    for worker in stack.workers:
        worker.stop(signal.SIGKILL)
    stack.redis.stop()


def poison(stack: Stack, user: str) -> list[tuple[str, str]]:
    """Do to each binding all that a user may; return what he might."""
    client = Redis(port=stack.redis.port, username=user, password="pw")  # noqa: S106 - of this test
    done = []
    for key in BINDINGS:
        for command, *arguments in POISON:
            with contextlib.suppress(NoPermissionError, ResponseError):
                client.execute_command(command, key, *arguments)  # type: ignore[no-untyped-call]
                done.append((command, key))
    return done


@pytest.mark.parametrize("user", ASKS)
def test_workers_start_whatever_who_asks_has_written(stack: Stack, user: str) -> None:
    stack.start_worker("--concurrency=1").stop()
    assert poison(stack, user)
    worker = stack.start_worker("--concurrency=1")
    stack.result(*stack.send("sleeping.delay(0)"))
    worker.stop()
    assert [line for line in worker.log_lines() if line["level"] in ("ERROR", "CRITICAL")] == []


def test_flower_misleads_no_task(stack: Stack) -> None:
    """An application whose queue has an exchange of its own: each sender reads its bindings."""
    (stack.directory / "shop.py").write_text(SHOP)
    env = {**stack.env, "PYTHONPATH": str(stack.directory)}

    def send() -> None:
        sender = Program([sys.executable, "-c", "import shop; shop.order.delay()"], stack.directory / "send.log", env)
        assert sender.process.wait(20) == 0

    send()
    broker = stack.redis.client(0)
    bindings = broker.smembers("_kombu.binding.orders")
    assert not {key for _, key in poison(stack, "flower")} & {*map("_kombu.binding.{}".format, ("celery", "orders"))}
    assert broker.smembers("_kombu.binding.orders") == bindings
    send()
    assert broker.llen("emails") == 2


def test_who_asks_gets_answers_under_these_rules(stack: Stack) -> None:
    """Nothing that questions need is denied; the log of denials stays empty."""
    stack.start_worker("--concurrency=1")
    for user in ASKS:
        url = stack.redis.url(0).replace(f":{stack.redis.password}", f"{user}:pw")
        asked = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "faulty_worker", "inspect", "ping"],
            env={**os.environ, **stack.env, "CELERY_BROKER_URL": url},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert "pong" in asked.stdout, asked.stderr
    assert stack.redis.client(0).acl_log() == []
