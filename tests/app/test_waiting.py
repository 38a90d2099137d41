"""Clients that wait for the end of a task: one connection for all of them, and no question to Redis meanwhile."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.tasks import LONGEST_WAIT, WAITERS
from celery_durable.aio.lookup import Lookup
from celery_durable.testing import RedisServer, wait_for
from tests.app.test_api import assert_guarded, assert_rejected
from tests.app.test_batches import batch, restricted
from tests.app.test_enqueue_safety import running_api, running_redis, wake
from tests.support import Api, start_worker

pytestmark = pytest.mark.integration

__all__ = ["restricted"]

DONE = json.dumps({"status": "SUCCESS", "result": 7})


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis of this test alone."""
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def api(redis: RedisServer, tmp_path: Path) -> Iterator[Api]:
    """Start an API that uses it."""
    with running_api(redis, redis, tmp_path) as api:
        yield api


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    """Threads, one for each client that waits."""
    with ThreadPoolExecutor(WAITERS + 8) as threads:
        yield threads


def wait(api: Api, task_id: str, seconds: int = LONGEST_WAIT) -> httpx.Response:
    """Ask for a status, and wait; over a connection of its own, without httpx, of which 64 at once need seconds."""
    url = httpx.URL(api.url)
    connection = HTTPConnection(url.host, url.port, timeout=LONGEST_WAIT + 5)
    try:
        connection.request("GET", f"/tasks/status/{task_id}?wait={seconds}", headers={"X-API-Key": api.key})
        response = connection.getresponse()
        return httpx.Response(response.status, headers=response.getheaders(), content=response.read())
    finally:
        connection.close()


def heard(redis: RedisServer) -> int:
    """Return how many channels somebody listens to, beside the one that is always there."""
    return len(redis.client(1).pubsub_channels("celery-task-meta-?*"))


def store(redis: RedisServer, task_id: str, stored: str = DONE, publish: bool = True) -> None:
    """Do what Celery does with a state."""
    redis.client(1).set(f"celery-task-meta-{task_id}", stored)
    if publish:
        redis.client(1).publish(f"celery-task-meta-{task_id}", stored)


def begin(clients: ThreadPoolExecutor, redis: RedisServer, api: Api, *task_ids: str) -> list["Future[httpx.Response]"]:
    """Let clients wait, and return when they do."""
    before = heard(redis)
    waiting = [clients.submit(wait, api, task_id) for task_id in task_ids]
    wait_for(lambda: heard(redis) == before + len(set(task_ids)))
    time.sleep(0.1)  # the read after the subscription
    return waiting


def test_the_end_is_answered_at_once(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    task_id, other = api.enqueue({}), api.enqueue({})
    ours, theirs, later = begin(clients, redis, api, task_id, task_id, other)
    store(redis, task_id, '{"status": "PROGRESS", "result": {"current": 1}}')
    time.sleep(0.3)
    assert not ours.done()
    stored_at = time.monotonic()
    store(redis, task_id)
    assert [one.result().json()["result"] for one in (ours, theirs)] == [7, 7]
    assert time.monotonic() - stored_at < 1
    assert_guarded(ours.result())
    assert not later.done()
    wait_for(lambda: heard(redis) == 1)
    store(redis, other, "no JSON")
    assert later.result().json()["status"] == "UNKNOWN"
    wait_for(lambda: heard(redis) == 0)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_what_has_ended_is_not_waited_for(api: Api, redis: RedisServer, state: str) -> None:
    store(redis, "x", json.dumps({"status": state, "result": None}))
    began = time.monotonic()
    assert wait(api, "x").json()["status"] == state
    assert wait(api, "nothing").status_code == 404
    assert time.monotonic() - began < 1


def test_the_present_state_at_the_time_limit(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    task_id = api.enqueue({})
    began = time.monotonic()
    waiting = clients.submit(wait, api, task_id, 1)
    wait_for(lambda: heard(redis) == 1)
    store(redis, task_id, '{"status": "PROGRESS", "result": {"current": 1}}')
    response = waiting.result()
    assert (response.status_code, response.json()["status"]) == (200, "PROGRESS")
    assert 1 <= time.monotonic() - began < 1.7


def test_a_real_worker(api: Api, redis: RedisServer, clients: ThreadPoolExecutor, tmp_path: Path) -> None:
    env = {"CELERY_BROKER_URL": redis.url(0), "CELERY_RESULT_BACKEND": redis.url(1)}
    worker = start_worker(tmp_path / "worker.log", env)
    try:
        ids = [api.enqueue({}) for _ in range(2)]
        answers = list(clients.map(lambda task_id: wait(api, task_id).json(), ids))
        assert [answer["status"] for answer in answers] == ["SUCCESS"] * 2
    finally:
        worker.stop()


def test_one_connection_and_no_polling(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    ids = batch(api, *({} for _ in range(WAITERS))).json()["task_ids"]
    begin(clients, redis, api, *ids)
    listening = [one for one in redis.client(1).client_list() if int(one["sub"])]
    assert len(listening) == 1

    def reads() -> int:
        stats: Any = redis.client(1).info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "mget", "hmget", "hexists"))

    before = reads()
    time.sleep(1)
    assert reads() == before
    for task_id in ids:
        store(redis, task_id)


def test_whoever_is_one_too_many_is_answered_at_once(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    ids = batch(api, *({} for _ in range(WAITERS + 1))).json()["task_ids"]
    waiting = begin(clients, redis, api, *ids[:-1])
    began = time.monotonic()
    response = wait(api, ids[-1])
    assert (response.status_code, response.json()["status"], response.headers["Retry-After"]) == (200, "PENDING", "2")
    # Others are served as ever.
    assert api.get("/health").status_code == 200
    assert batch(api, {}).status_code == 202
    assert time.monotonic() - began < 1
    for task_id in ids:
        store(redis, task_id)
    assert {one.result().json()["status"] for one in waiting} == {"SUCCESS"}
    waiting = begin(clients, redis, api, api.enqueue({}))
    assert not waiting[0].done()
    store(redis, waiting_id(redis))


def waiting_id(redis: RedisServer) -> str:
    """Return the one task that is waited for."""
    [channel] = redis.client(1).pubsub_channels("celery-task-meta-?*")
    return str(channel).removeprefix("celery-task-meta-")


def test_a_client_that_goes_away_makes_room(api: Api, redis: RedisServer) -> None:
    url = httpx.URL(api.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        task_id = api.enqueue({})
        head = f"GET /tasks/status/{task_id}?wait=10 HTTP/1.1\r\nHost: {url.host}\r\nX-API-Key: {api.key}\r\n\r\n"
        connection.sendall(head.encode())
        wait_for(lambda: heard(redis) == 1)
    wait_for(lambda: heard(redis) == 0, seconds=2)
    assert [line for line in api.program.log_lines() if line["level"] == "ERROR"] == []


def test_redis_is_restarted_meanwhile(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    unheard, later = api.enqueue({}), api.enqueue({})
    first, second = begin(clients, redis, api, unheard, later)
    redis.stop()
    redis.start()
    store(redis, unheard, publish=False)
    assert first.result().json()["status"] == "SUCCESS"
    assert not second.done()
    wait_for(lambda: heard(redis) == 1)
    began = time.monotonic()
    store(redis, later)
    assert second.result().json()["status"] == "SUCCESS"
    assert time.monotonic() - began < 1


def test_redis_hangs_meanwhile(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    """The connection lives, and brings nothing: it is given up, and the next one brings the rest."""
    task_id = api.enqueue({})
    [waiting] = begin(clients, redis, api, task_id)
    redis.hang()
    api.program.wait_for_output("Results are not heard of at the moment")
    wake(redis)
    wait_for(lambda: heard(redis) == 1)
    began = time.monotonic()
    store(redis, task_id)
    assert waiting.result().json()["status"] == "SUCCESS"
    assert time.monotonic() - began < 1


def test_redis_is_gone_at_the_time_limit(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    waiting = clients.submit(wait, api, api.enqueue({}), 2)
    wait_for(lambda: heard(redis) == 1)
    redis.stop()
    assert waiting.result().status_code == 503


def test_a_stop_answers_all(api: Api, redis: RedisServer, clients: ThreadPoolExecutor) -> None:
    ids = [api.enqueue({}) for _ in range(3)]
    waiting = begin(clients, redis, api, *ids)
    began = time.monotonic()
    api.program.process.send_signal(signal.SIGTERM)
    assert [(one.result().status_code, one.result().json()["status"]) for one in waiting] == [(200, "PENDING")] * 3
    assert api.program.process.wait(5) is not None
    assert time.monotonic() - began < 3
    assert [line for line in api.program.log_lines() if line["level"] == "ERROR"] == []


@pytest.mark.parametrize("seconds", ["-1", str(LONGEST_WAIT + 1), "x", "", "nan", "1e9"])
def test_rejected(lonely_api: Api, seconds: str) -> None:
    assert_rejected(lonely_api.get("/tasks/status/x", params={"wait": seconds}), 422, "wait: ")


def test_the_rights_of_the_api_are_enough(restricted: Api) -> None:
    task_id = restricted.enqueue({})
    assert wait(restricted, task_id, 1).json()["status"] == "PENDING"
    assert "Results are not heard of" not in restricted.program.output()


def test_nobody_is_forgotten_among_many() -> None:
    """Requests come whenever one of those that read has just ended."""

    class Empty:
        async def mget(self, keys: list[str]) -> list[None]:
            await asyncio.sleep(0)
            return [None] * len(keys)

        async def hmget(self, _: str, fields: list[str]) -> list[bytes]:
            await asyncio.sleep(0)
            return [b"1"] * len(fields)

    async def ask() -> None:
        redis: Any = Empty()
        lookup = Lookup(redis, redis, lambda _: False)

        async def client(number: int) -> None:
            for turn in range(100):
                for _ in range((number * 7 + turn) % 5):
                    await asyncio.sleep(0)
                assert await lookup.one(str(number)) is not None

        await asyncio.gather(*map(client, range(9)))

    asyncio.run(ask())
