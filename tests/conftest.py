"""Real servers for the tests of the app.

The guide wants Redis and a worker to run before the integration tests. Here the tests start their own, on free ports
with a random password, so that they need no preparation and touch nothing else. Nothing starts until a test asks.
"""

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_durable.testing import RedisServer, redis_server
from tests.support import Api, Program, Stack, start_worker

__all__ = ["redis_server"]

os.environ["ANSIBLE_FORCE_COLOR"] = "0"  # tests read what it prints, also where CI asks for colours


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take longest: one that begins last runs alone. Leave out what is long."""
    if "SHORT_RUN" in os.environ:
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    limits: dict[Path, float] = defaultdict(float)
    for item in items:
        for mark in item.iter_markers("timeout"):
            limits[item.path] = max(limits[item.path], *mark.args)
    numbers = Counter(item.path for item in items)
    items.sort(key=lambda item: (-limits[item.path], -numbers[item.path]))


@pytest.fixture(scope="session")
def lonely_api(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API without workers: what it enqueues stays in database 0, results are read from database 1."""
    api = Api(tmp_path_factory.mktemp("api") / "api.log", redis_server.environment(0, 1))
    yield api
    api.stop()


@pytest.fixture(scope="session")
def stack_env(redis_server: RedisServer) -> dict[str, str]:
    """Environment of the stack: broker in database 2, results in database 3."""
    return redis_server.environment(2, 3)


@pytest.fixture(scope="session")
def worker(stack_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A worker of the stack, with two children."""
    program = start_worker(tmp_path_factory.mktemp("worker") / "worker.log", stack_env)
    yield program
    program.stop()


@pytest.fixture(scope="session")
def api(stack_env: dict[str, str], worker: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The stack's API; its worker is ready."""
    assert worker.process.poll() is None
    server = Api(tmp_path_factory.mktemp("api") / "api.log", stack_env)
    yield server
    server.stop()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis of this test alone."""
    stack = Stack(tmp_path)
    yield stack
    for worker in stack.workers:
        worker.stop(signal.SIGKILL)
    stack.redis.stop()


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable of ours set, no ``.env`` file, no secrets directory."""
    from app.settings import Settings  # noqa: PLC0415 - other test folders run without the app's packages

    for name in (*Settings.model_fields, "secrets_directory", "credentials_directory"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch
