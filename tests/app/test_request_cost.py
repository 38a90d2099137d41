"""What a request may cost, counted without a clock: round trips to Redis, and calls of functions."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Connection

from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app
from celery_durable.aio.clients import broker_client, results_client
from celery_durable.aio.lookup import SHARED, Lookup
from celery_durable.aio.publisher import NewTask, Publisher
from celery_durable.aio.writer import LARGEST_TRIP
from celery_durable.options import Options
from celery_durable.task_ids import new_task_id
from celery_durable.testing import RedisServer
from tests.support import REPOSITORY

pytestmark = pytest.mark.integration

assert celery_app

CLIENTS = 64
# Calls of functions for GET /health of a module's application; without a module, of one that has this route alone.
COUNT_CALLS = """
import asyncio, importlib, json, sys
from fastapi import FastAPI

if sys.argv[1:]:
    app = importlib.import_module(sys.argv[1]).app
else:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

calls = 0

def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(message):
    pass

async def get():
    headers = [(b"host", b"127.0.0.1"), (b"x-api-key", b"0123456789abcdef")]
    scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b"",
             "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
             "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "state": {}}
    await app(scope, receive, send)

async def main():
    for _ in range(3):
        await get()
    sys.setprofile(count)
    await get()
    sys.setprofile(None)
    print(json.dumps(calls))

asyncio.run(main())
"""


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """Return the shared Redis, with nothing from the test before."""
    redis_server.client(0).flushall()
    return redis_server


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what asyncio connections send to Redis from now on, an entry for each round trip."""
    entries: list[Any] = []
    send = Connection.send_packed_command

    async def noted(self: Connection, command: Any, *arguments: Any, **options: Any) -> None:
        entries.append(command)
        await send(self, command, *arguments, **options)

    monkeypatch.setattr(Connection, "send_packed_command", noted)
    return entries


@asynccontextmanager
async def connected(redis: RedisServer) -> AsyncIterator[tuple[Publisher, Lookup]]:
    """Yield what an API enqueues and looks up with; its connections are there, and Redis has the scripts."""
    options = Options(broker_url=redis.url(0), result_url=redis.url(1), queue_max_length=100_000)
    async with broker_client(options) as broker, results_client(options) as results:
        publisher = Publisher(options, broker, results)
        lookup = Lookup(broker, results, publisher.remembers)
        await publisher.publish(example_agent_task, {}, None)
        await asyncio.gather(*[lookup.one(new_task_id()) for _ in range(CLIENTS)])
        yield publisher, lookup


def round_trips(
    redis: RedisServer, sent: list[Any], requests: Callable[[Publisher, Lookup], list[Awaitable[Any]]]
) -> int:
    """Return how many round trips requests cost that come at once."""

    async def count() -> int:
        async with connected(redis) as (publisher, lookup):
            sent.clear()
            await asyncio.gather(*requests(publisher, lookup))
            return len(sent)

    return asyncio.run(count())


@pytest.mark.parametrize("clients", [1, CLIENTS])
def test_enqueue(redis: RedisServer, sent: list[Any], clients: int) -> None:
    """All of them share one, with keys and without."""

    def requests(publisher: Publisher, _: Lookup) -> list[Awaitable[Any]]:
        keys = [None if number % 2 else f"key-{number}" for number in range(clients)]
        return [publisher.publish(example_agent_task, {"a": 1}, None, key) for key in keys]

    assert round_trips(redis, sent, requests) == 1


def test_requests_without_keys_are_one_call(redis: RedisServer, sent: list[Any]) -> None:
    def requests(publisher: Publisher, _: Lookup) -> list[Awaitable[Any]]:
        return [publisher.publish(example_agent_task, {"a": 1}, None) for _ in range(CLIENTS)]

    before = redis.client(0).info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert round_trips(redis, sent, requests) == 1
    # One for the first task of ``connected``, whose script may be missing.
    assert redis.client(0).info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 3
    assert redis.client(0).llen("celery") == CLIENTS + 1


@pytest.mark.parametrize("tasks", [100, 1000])
def test_batch(redis: RedisServer, sent: list[Any], tasks: int) -> None:
    def requests(publisher: Publisher, _: Lookup) -> list[Awaitable[Any]]:
        return [publisher.publish_batch(example_agent_task, [NewTask({})] * tasks, None)]

    assert round_trips(redis, sent, requests) == 1


def test_batches_at_once(redis: RedisServer, sent: list[Any]) -> None:
    """They share round trips that stay short."""

    def requests(publisher: Publisher, _: Lookup) -> list[Awaitable[Any]]:
        return [publisher.publish_batch(example_agent_task, [NewTask({})] * 100, None) for _ in range(CLIENTS)]

    assert round_trips(redis, sent, requests) <= CLIENTS * 100 / LARGEST_TRIP + 2


@pytest.mark.parametrize("clients", [1, CLIENTS])
def test_status_of_a_finished_task(redis: RedisServer, sent: list[Any], clients: int) -> None:
    ids = [new_task_id() for _ in range(clients)]
    for task_id in ids:
        redis.client(1).set(f"celery-task-meta-{task_id}", json.dumps({"status": "SUCCESS", "result": 1}))

    def requests(_: Publisher, lookup: Lookup) -> list[Awaitable[Any]]:
        return [lookup.one(task_id) for task_id in ids]

    assert round_trips(redis, sent, requests) == -(-clients // SHARED)


def _calls(tmp_path: Path, *module: str) -> int:
    env = {**os.environ, "ENVIRONMENT": "development", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COUNT_CALLS, *module]
    output = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True).stdout
    return int(json.loads(output.splitlines()[-1]))


def test_what_each_request_gets_is_no_more_than_a_bare_route(tmp_path: Path) -> None:
    """Id, security headers and metrics take fewer calls than FastAPI's own way to a function, which is left out."""
    assert _calls(tmp_path, "app.main") <= _calls(tmp_path)
