"""One bad entry, or a key of another type, blinds nobody: each reader, with everything that could lie there."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from celery_durable import entries, keys
from celery_durable.aio.clients import broker_client
from celery_durable.metrics import FAILURES, FIGURES, MINUTE, WORKERS
from celery_durable.options import Options, options_of
from celery_durable.queue_names import DEFAULT_QUEUE
from celery_durable.testing import RedisServer
from durable_console.admin import dead_letters, queues
from durable_console.admin.diagnosis import task_search
from durable_console.application import celery_app
from durable_console.web.alerts import Alert, Notification, _remember
from durable_console.web.prometheus import Prometheus
from durable_console.web.status.page import Observer

pytestmark = [pytest.mark.integration, pytest.mark.attack("each entry is parsed by itself, and shown escaped")]

HASHES = (WORKERS, FIGURES, keys.ALERTS, keys.ACCEPTED, "minute")
LISTS = (FAILURES, keys.DEAD_LETTERS, DEFAULT_QUEUE, keys.deferred_list(DEFAULT_QUEUE), "unacked:node@host:celery")
KEYS = (*HASHES, *LISTS, keys.LEASES)

now = int(time.time())
GOOD_WORKER = b'%d {"pool": "prefork", "size": 4, "busy": 1, "held": 0, "began": 1}' % now
GOOD_ALERT = {"name": "A", "host": "h", "severity": "critical", "summary": "s", "runbook": "r", "since": None}
GOOD_FAILURE = {"time": now, "task": "t", "id": "i", "outcome": "failed", "error": "e"}
GOOD_LETTER = {"id": "good", "task": "t", "queue": "celery", "reason": "r", "time": "now", "message": "e30="}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["\x1b[2J", "\u202e", "\ud800"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def neighbours(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return entries that are nearly good: a member is missing, or has any other value."""

    def change(name: str, value: Any, drop: bool) -> bytes:
        changed = {**good, name: value}
        if drop:
            del changed[name]
        return json.dumps(changed).encode()

    return st.builds(change, st.sampled_from(sorted(good)), values, st.booleans())


def reports(state: bytes) -> bytes:
    return b"%d " % now + state


raw = st.one_of(
    st.binary(max_size=40),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"nan", b"inf", b"1e400", b"-1", b"9" * 400, b"[" * 50_000, b"\x1b]0;title\x07", b"\xff\xfe", GOOD_WORKER]
    ),
    neighbours({"pool": "prefork", "size": 4, "busy": 1, "held": 0, "began": 1}).map(reports),
    neighbours({"told": now, "alerts": [GOOD_ALERT]}),
    neighbours(GOOD_ALERT).map(lambda alert: b'{"told": %d, "alerts": [%s]}' % (now, alert)),
    neighbours(GOOD_FAILURE),
    neighbours(GOOD_LETTER),
    neighbours({"headers": {"id": "x", "task": "t"}, "properties": {"delivery_info": {}}, "body": ""}),
    neighbours({"id": "x", "task": "t", "timelimit": [1, 2], "redeliveries": 1, "made": 1}).map(
        lambda headers: b'{"headers": %s, "properties": {"delivery_info": {}}, "body": ""}' % headers
    ),
)
fields = st.one_of(
    raw,
    st.sampled_from(
        [b"heard", b"started\x1ft", b"ended\x1ft\x1fbroken", b"wait\x1ft\x1f0.05", b"wait", b"run_sum\x1f"]
    ),
)


@pytest.fixture(scope="module")
def client(redis_server: RedisServer) -> Iterator[Redis]:
    """Everything of this process uses database 9."""
    url = redis_server.url(9)
    with pytest.MonkeyPatch.context() as patch:
        options = replace(options_of(celery_app), broker_url=url, result_url=url)
        patch.setattr(celery_app, "durable_options", options)
        for module in (dead_letters, queues):
            patch.setattr(module, "options", options)
        yield Redis.from_url(url)


def fill(client: Redis, key: str, what: list[tuple[bytes, bytes]]) -> None:
    """Put good entries everywhere, and bad ones into one key."""
    client.flushdb()
    minute = f"{MINUTE}{int(time.time()) // 60}"
    client.hset(WORKERS, "good@host", GOOD_WORKER)
    client.hset(FIGURES, "started\x1fgood.task", "7")
    client.hset(keys.ALERTS, mapping={"heard": now, "g": json.dumps({"told": now, "alerts": [GOOD_ALERT]})})
    client.lpush(FAILURES, json.dumps({**GOOD_FAILURE, "error": "a good failure"}))
    client.lpush(keys.DEAD_LETTERS, json.dumps(GOOD_LETTER))
    client.zadd(keys.LEASES, {"unacked:good@host:celery": now})
    key = minute if key == "minute" else key
    for field, value in what:
        if key in HASHES or key == minute:
            client.hset(key, field, value)
        elif key == keys.LEASES:
            client.zadd(key, {field: len(value)})
        else:
            client.lpush(key, value)


def other_type(client: Redis, key: str) -> None:
    """Give a key the type that nobody expects."""
    fill(client, key, [])
    key = f"{MINUTE}{int(time.time()) // 60}" if key == "minute" else key
    client.delete(key)
    client.set(key, "not what you think")


async def pages(redis_url: str) -> tuple[str, str]:
    """Return /metrics and the status page, and take a notification of Alertmanager."""
    chosen = Options(broker_url=redis_url, result_url=redis_url)
    async with broker_client(chosen) as asynchronous:
        prometheus = Prometheus(chosen, asynchronous)
        metrics = (await prometheus.page()).decode()
        page = await Observer(prometheus, asynchronous, asynchronous).page()
        if await asynchronous.type(keys.ALERTS) in (b"hash", b"none"):
            alert = Alert(status="firing", labels={"alertname": "B"})
            await _remember(asynchronous, Notification(groupKey="g", alerts=[alert]))
    return metrics, page


def read_everything(client: Redis, redis_server: RedisServer) -> tuple[str, str, str]:
    """Let every reader look; none may fail, nor write what a terminal obeys."""
    metrics, page = asyncio.run(pages(redis_server.url(9)))
    assert "celery_broker_up 1.0" in metrics
    runner = CliRunner()
    listed = runner.invoke(dead_letters.group, ["list"], catch_exceptions=False)
    told = [runner.invoke(queues.group, ["list"], catch_exceptions=False).output]
    told.append(runner.invoke(queues.group, ["examine", "--seconds", "0.001"], catch_exceptions=False).output)
    told.append(runner.invoke(queues.group, ["gone"], catch_exceptions=False).output)
    told.append(str(task_search.find(client, client, celery_app, "no-such-task")))
    for text in (listed.output, *told):
        assert all(line.isprintable() for line in text.split("\n")), text
    return metrics, page, listed.output


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(KEYS), st.lists(st.tuples(fields, raw), max_size=4))
def test_bad_entries(client: Redis, redis_server: RedisServer, key: str, what: list[tuple[bytes, bytes]]) -> None:
    fill(client, key, what)
    metrics, page, letters = read_everything(client, redis_server)
    # The good ones are there all the same.
    assert "celery_workers_alive" in metrics
    assert 'celery_tasks_started_total{task="good.task"} 7.0' in metrics
    assert 'worker="good@host"' in metrics
    assert "a good failure" in page
    assert "good  now  celery  t  r" in letters


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_type(client: Redis, redis_server: RedisServer, key: str) -> None:
    other_type(client, key)
    metrics, page, _ = read_everything(client, redis_server)
    if key == "minute":
        assert "Entries" in page
    elif not key.startswith(keys.UNACKED):
        assert f'celery_bad_entries{{key="{key}"}} 1.0' in metrics


def test_bad_entries_are_counted_and_shown(client: Redis, redis_server: RedisServer) -> None:
    fill(client, WORKERS, [(b"x", b"garbage"), (b"y", b"1 2")])
    client.lpush(keys.DEAD_LETTERS, "\x1b[2Jbad")
    metrics, page, letters = read_everything(client, redis_server)
    assert f'celery_bad_entries{{key="{WORKERS}"}} 2.0' in metrics
    assert "unreadable" in page
    assert "\\x1b[2Jbad" in letters
    assert "2 dead letters." in letters


def test_the_dead_letter_verbs_go_around_a_bad_one(client: Redis, redis_server: RedisServer) -> None:
    del redis_server
    fill(client, keys.DEAD_LETTERS, [(b"", b"bad"), (b"", json.dumps({**GOOD_LETTER, "message": "!"}).encode())])
    wrong_queue = {**GOOD_LETTER, "queue": keys.ACCEPTED, "message": base64.b64encode(b"x").decode(), "id": "\x1b"}
    client.lpush(keys.DEAD_LETTERS, json.dumps(wrong_queue))
    client.hset(keys.ACCEPTED, "a", 1)
    runner = CliRunner()
    requeued = runner.invoke(dead_letters.group, ["requeue", "--all"], catch_exceptions=False)
    assert requeued.exit_code == 1
    assert requeued.output.count("stays a dead letter") == 3
    assert "good is in the queue celery again." in requeued.output
    assert all(line.isprintable() for line in requeued.output.split("\n"))
    bad = next(line.split()[0] for line in requeued.output.splitlines() if "no dead letter of ours." in line)
    assert "is deleted" in runner.invoke(dead_letters.group, ["drop", bad], catch_exceptions=False).output
    assert runner.invoke(dead_letters.group, ["drop", "--all"], catch_exceptions=False).exit_code == 0
    assert client.llen(keys.DEAD_LETTERS) == 0


@given(st.text(st.characters(blacklist_categories=())))
def test_what_is_shown_is_printable(text: str) -> None:
    assert entries.printable(text).isprintable()
    assert entries.printable(entries.printable(text)) == entries.printable(text)
