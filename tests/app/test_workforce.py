"""Without any worker the API says so, and does not accept tasks for ever."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_durable.aio import workforce
from celery_durable.metrics import WORKERS
from tests.support import Api, RedisServer, wait_until

pytestmark = pytest.mark.integration
REPORT = json.dumps({"pool": "prefork", "size": 4, "busy": 0, "held": 0, "began": 1})
LIMIT = 7


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis in which no worker has ever reported."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


def start(tmp_path: Path, redis: RedisServer, **env: str) -> Api:
    return Api(tmp_path / "api.log", {**redis.environment(0, 1), "REJECT_WITHOUT_WORKERS_SECONDS": str(LIMIT), **env})


def ready(api: Api) -> dict[str, Any]:
    """It stays ready, whatever workers do: whoever has its results must be able to ask."""
    response = api.client.get("/health/ready")
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def accepts(api: Api) -> bool:
    response = api.client.post("/tasks/enqueue", json={"data": {}})
    assert response.status_code in (202, 503), response.text
    if response.status_code == 503:
        assert response.json()["detail"].startswith("No worker has reported for ")
        assert "Retry-After" in response.headers
    return response.status_code == 202


def report(redis: RedisServer, age: float = 0) -> None:
    redis.client(0).hset(WORKERS, "default@host", f"{int(time.time() - age)} {REPORT}")


def test_workers_that_never_came_and_come_back(tmp_path: Path, redis: RedisServer) -> None:
    """A failed start; what lies there of workers that were, or of somebody else, is no worker."""
    report(redis, age=3600)
    redis.client(0).hset(WORKERS, "garbage", "garbage")
    api = start(tmp_path, redis, WORKERS_EXPECTED="2")
    try:
        began = time.monotonic()
        assert accepts(api)
        wait_until(lambda: "tasks wait" in ready(api).get("detail", ""), LIMIT + 5)
        wait_until(lambda: not accepts(api), LIMIT + 2 * workforce.LOOK_INTERVAL)
        assert time.monotonic() - began > LIMIT - 3
        assert "2 are expected; tasks are rejected" in ready(api)["detail"]
        report(redis)
        wait_until(lambda: accepts(api), 2 * workforce.LOOK_INTERVAL)
        assert ready(api) == {"status": "ready"}
    finally:
        api.stop()


@pytest.mark.parametrize(
    "env", [{"WORKERS_EXPECTED": "0"}, {"WORKERS_EXPECTED": "1", "REJECT_WITHOUT_WORKERS_SECONDS": "0"}]
)
def test_workers_that_are_away_on_purpose(tmp_path: Path, redis: RedisServer, env: dict[str, str]) -> None:
    api = start(tmp_path, redis, **env)
    try:
        ends = time.monotonic() + LIMIT + workforce.LOOK_INTERVAL
        while time.monotonic() < ends:
            assert accepts(api)
            time.sleep(0.5)
        assert ("detail" in ready(api)) == (env["WORKERS_EXPECTED"] == "1")
    finally:
        api.stop()
