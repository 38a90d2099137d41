"""Redis over TLS: every client verifies whom it talks to, and works as it does without."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme

from tests.support import ADMIN, Api, Program, TlsRedisServer, assert_flower_sees_all, start_worker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority that everybody trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of its certificate."""
    file = tmp_path_factory.mktemp("ca") / "ca.crt"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.fixture(scope="module")
def server(authority: trustme.CA, ca_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedisServer]:
    """A Redis that is what it says it is."""
    server = TlsRedisServer(tmp_path_factory.mktemp("tls") / "redis", authority, ca_file)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(server: TlsRedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API and a worker that talk to it."""
    logs = tmp_path_factory.mktemp("logs")
    environment = {**server.environment(0, 1), "REDIS_URL": server.url(2)}
    worker = start_worker(logs / "worker.log", environment)
    api = Api(logs / "api.log", environment)
    yield api
    api.stop()
    worker.stop()


def test_a_task_runs_to_its_end(api: Api) -> None:
    assert api.wait_for(api.enqueue({"key": "value"}), "SUCCESS")["result"]["status"] == "completed"
    assert api.client.get("/health/celery").json()["workers"] != []


def test_flower_sees_all(server: TlsRedisServer, api: Api, tmp_path: Path) -> None:
    api.wait_for(api.enqueue({}), "SUCCESS")
    assert_flower_sees_all(tmp_path, server.environment(0, 1), api.key)


def test_dead_letters_are_listed(server: TlsRedisServer) -> None:
    program = Program([*ADMIN, "dead-letters", "list"], server.directory / "log",
                      server.environment(0, 1), stderr=subprocess.STDOUT)  # fmt: skip
    assert program.process.wait(20) == 0, program.output()


def test_nobody_is_answered_without_encryption(server: TlsRedisServer) -> None:
    with pytest.raises(redis.ConnectionError):
        redis.Redis(port=server.port, password=server.password).ping()


@pytest.mark.parametrize("lie", ["another authority", "another name"])
def test_a_server_that_proves_nothing_gets_no_password(
    lie: str, authority: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    issuer = trustme.CA() if lie == "another authority" else authority
    name = "elsewhere.example" if lie == "another name" else "127.0.0.1"
    impostor = TlsRedisServer(tmp_path / "redis", issuer, ca_file, name)
    environment = impostor.environment(0, 1)
    api = Api(tmp_path / "api.log", environment)
    command = [sys.executable, "-m", "celery", "-A", "app.agents.worker", "worker", "-c", "1"]
    worker = Program(command, tmp_path / "worker.log", environment)
    answer = api.client.post("/tasks/enqueue", json={"data": {}})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    worker.wait_for_output("CERTIFICATE_VERIFY_FAILED")
    api.stop()
    worker.stop()
    statistics = redis.Redis.from_url(impostor.url(0).replace("?", "?ssl_cert_reqs=none&"))
    known = {client["user"] for client in statistics.client_list() if client["id"] != str(statistics.client_id())}
    impostor.stop()
    assert known == set()
