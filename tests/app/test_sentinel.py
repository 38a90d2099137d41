"""Redis with replicas and sentinels: every client finds the primary, and a failover loses nothing that was accepted."""

import asyncio
import contextlib
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.agents.config import durable_options
from app.settings import Settings
from celery_durable import connection
from celery_durable.aio import clients
from celery_durable.options import Options
from celery_durable.testing import RedisServer, free_port, wait_for
from tests.support import ADMIN, REPOSITORY, Api, Program, assert_flower_sees_all, of_the_console, start_worker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PRIMARY = "queue"
# Seconds; a failover of the platform may take 15.
DOWN_AFTER, BACK_WITHIN = 1, 15


class Cluster:
    """A primary, two replicas, and three sentinels that watch them."""

    def __init__(self, directory: Path) -> None:
        """Start it and wait until all know each other."""
        password = secrets.token_hex(16)
        settings = {"masterauth": password, "min_replicas_to_write": "0", "repl_diskless_sync_delay": "0"}
        first = RedisServer(directory / "first", durable=True, password=password, **settings)
        settings["replicaof"] = f"127.0.0.1 {first.port}"
        names = "second", "third"
        replicas = [RedisServer(directory / name, durable=True, password=password, **settings) for name in names]
        self.servers = [first, *replicas]
        self.password, self.own_password = password, secrets.token_hex(16)
        self.ports = [free_port() for _ in range(3)]
        self.sentinels = [self._sentinel(directory / f"sentinel-{port}", port) for port in self.ports]
        wait_for(lambda: all(self._knows_all(port) for port in self.ports), seconds=30)

    def _sentinel(self, directory: Path, port: int) -> Program:
        directory.mkdir()
        (directory / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"requirepass {self.own_password}\nsentinel sentinel-pass {self.own_password}\n"
            f"sentinel monitor {PRIMARY} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel auth-pass {PRIMARY} {self.password}\n"
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER * 1000}\n"
            f"sentinel failover-timeout {PRIMARY} 5000\n"
        )
        command = ["redis-server", str(directory / "sentinel.conf"), "--sentinel"]
        return Program(command, directory / "sentinel.log")

    def ask(self, port: int) -> redis.Redis:
        """Return a client of a sentinel."""
        return redis.Redis(port=port, password=self.own_password, decode_responses=True)

    def _state(self, port: int) -> dict[str, Any]:
        state: dict[str, Any] = self.ask(port).sentinel_master(PRIMARY)  # type: ignore[assignment]
        return state

    def _knows_all(self, port: int) -> bool:
        try:
            state = self._state(port)
        except redis.ConnectionError:
            return False
        return bool(state["num-slaves"] == 2 and state["num-other-sentinels"] == 2)

    def sees_replicas(self) -> bool:
        """Tell whether each sentinel has asked the others since they became replicas.

        One that did not since a former primary came back, and asks while that is promoted, makes it a replica again.
        """
        known = [replica for port in self.ports for replica in self.ask(port).sentinel_slaves(PRIMARY)]
        return len(known) == 6 and all(replica["role-reported"] == "slave" for replica in known)

    def primary(self) -> RedisServer:
        """Return the server that the first sentinel calls the primary."""
        port = self._state(self.ports[0])["port"]
        return next(server for server in self.servers if server.port == port)

    def switch_over(self) -> None:
        """Make another server the primary; again when the sentinel gave up, as after a pause of 2 s (tilt)."""
        wait_for(self.sees_replicas, seconds=30)
        former = self.primary()
        for _ in range(3):
            with contextlib.suppress(redis.ResponseError):  # It is still at it.
                self.ask(self.ports[0]).sentinel_failover(PRIMARY)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: self.primary() is not former, seconds=15)
                return
        raise AssertionError("\n".join(sentinel.output() for sentinel in self.sentinels))

    def replicas(self) -> list[RedisServer]:
        """Return the others."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def environment(self) -> dict[str, str]:
        """Return the variables that make our programs use it."""
        urls = [f";sentinel://:{self.password}@127.0.0.1:{port}" for port in self.ports]
        return {
            "CELERY_BROKER_URL": "".join(f"{url}/0" for url in urls)[1:],
            "CELERY_RESULT_BACKEND": "".join(f"{url}/1" for url in urls)[1:],
            "BROKER_PRIMARY": PRIMARY,
            "RESULTS_PRIMARY": PRIMARY,
            "SENTINEL_PASSWORD": self.own_password,
            "BROKER_REPLICAS_WANTED": "1",
        }

    def stop(self) -> None:
        """Stop everything."""
        for program in [*self.sentinels, *(server.program for server in self.servers)]:
            program.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests; each leaves it whole."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def api(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API and a worker that find their Redis through the sentinels."""
    logs = tmp_path_factory.mktemp("logs")
    worker = start_worker(logs / "worker.log", cluster.environment(), "--pool=threads", "--concurrency=16")
    api = Api(logs / "api.log", cluster.environment())
    yield api
    api.stop()
    worker.stop()


def whole(cluster: Cluster) -> bool:
    """Tell whether the primary has its replicas."""
    try:
        return bool(cluster.primary().client(0).info("replication")["connected_slaves"] == 2)
    except redis.RedisError:
        return False


def load(api: Api, seconds: float, until_back: bool = False) -> tuple[list[str], float]:
    """Enqueue without pause; return the accepted tasks and the longest time without any."""
    accepted, longest, last = [], 0.0, time.monotonic()
    deadline = last + seconds
    while time.monotonic() < deadline:
        try:
            response = api.post("/tasks/enqueue", json={"data": {}})
        except httpx.TransportError:
            continue
        assert response.status_code in {202, 503}, response.text
        if response.status_code == 202:
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            accepted.append(response.json()["task_id"])
            if until_back and longest > DOWN_AFTER:
                break
        time.sleep(0.05)
    return accepted, longest


def test_a_task_runs_to_its_end(api: Api) -> None:
    assert api.wait(api.enqueue({"key": "value"}))["result"]["status"] == "completed"
    assert api.get("/health/celery").json()["workers"] != []


def test_a_worker_tells_of_itself_without_the_sentinels_password(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    api.wait(api.enqueue({}))
    command = [*ADMIN, "inspect", "stats", "--json", "--timeout=5"]
    program = Program(command, tmp_path / "log", of_the_console(cluster.environment()), stderr=subprocess.STDOUT)
    assert program.process.wait(30) == 0, program.output()
    assert "max-concurrency" in program.output()
    assert cluster.own_password not in program.output()


def test_flower_sees_all(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    api.wait(api.enqueue({}))
    assert_flower_sees_all(tmp_path, cluster.environment(), api.key)


def test_dead_letters_are_listed(cluster: Cluster, tmp_path: Path) -> None:
    command = [*ADMIN, "dead-letters", "list"]
    program = Program(command, tmp_path / "log", of_the_console(cluster.environment()), stderr=subprocess.STDOUT)
    assert program.process.wait(20) == 0, program.output()


def test_nothing_accepted_is_lost_when_the_primary_dies(cluster: Cluster, api: Api) -> None:
    accepted, _ = load(api, 2)
    former = cluster.primary()
    former.stop()
    after, stalled = load(api, 30, until_back=True)
    assert after, "no task was accepted within 30 s"
    assert stalled < BACK_WITHIN
    wait_for(lambda: cluster.primary() is not former)
    for task_id in accepted + after:
        api.wait(task_id, seconds=60, through_outages=True)
    former.start()
    wait_for(lambda: whole(cluster), seconds=30)
    assert former.client(0).info("replication")["role"] == "slave"


def test_a_switchover_is_followed(cluster: Cluster, api: Api) -> None:
    cluster.switch_over()
    # The former primary does not know it yet; who asks the sentinels again finds the new one.
    wait_for(lambda: api.post("/tasks/enqueue", json={"data": {}}).status_code == 202, seconds=5)
    accepted, _ = load(api, 3)
    assert accepted
    for task_id in accepted:
        api.wait(task_id, seconds=60, through_outages=True)
    wait_for(lambda: whole(cluster), seconds=30)


def test_what_no_replica_has_is_rejected_or_marked(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    marking = Api(tmp_path / "api.log", {**cluster.environment(), "BROKER_UNREPLICATED": "mark"})
    replicas = cluster.replicas()
    wait_for(lambda: marking.post("/tasks/enqueue", json={"data": {}}).status_code == 202)
    for replica in replicas:
        replica.hang()
    try:
        rejected = api.post("/tasks/enqueue", json={"data": {}})
        marked = marking.post("/tasks/enqueue", json={"data": {}})
    finally:
        for replica in replicas:
            replica.program.process.send_signal(signal.SIGCONT)
        marking.stop()
    assert (rejected.status_code, rejected.elapsed.total_seconds() < 1) == (503, True)
    assert "Retry-After" in rejected.headers
    assert (marked.status_code, marked.json()["replicated"]) == (202, False)
    wait_for(lambda: whole(cluster), seconds=30)
    assert "replicated" not in api.post("/tasks/enqueue", json={"data": {}}).json()


@pytest.fixture
def silent_sentinel(cluster: Cluster) -> Iterator[None]:
    """The sentinel that everybody asks first does not answer, like one whose host has lost its power."""
    process = cluster.sentinels[0].process
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


async def ping(settings: Options) -> None:
    """Reach the broker as the API does."""
    assert await clients.broker_client(settings).ping()


@pytest.mark.usefixtures("silent_sentinel")
def test_a_sentinel_that_is_silent_costs_a_moment(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    settings = durable_options(Settings(_env_file=None))
    began = time.monotonic()
    assert connection.broker_client(settings).ping()
    assert time.monotonic() - began < 1
    began = time.monotonic()
    asyncio.run(ping(settings))
    assert time.monotonic() - began < 1
    began = time.monotonic()
    worker = start_worker(tmp_path / "worker.log", cluster.environment(), "--pool=solo", name="second")
    assert time.monotonic() - began < 20
    worker.stop()


def role(cluster: Cluster, own: str, output: Path, ports: list[int]) -> Program:
    """Ask with which role a server starts."""
    password = output.with_suffix(".password")
    password.write_text(cluster.own_password + "\n")
    command = [str(REPOSITORY / "roles/redis/files/redis-role"), f"--name={PRIMARY}", f"--own={own}"]
    command += [f"--sentinel=127.0.0.1:{port}" for port in ports]
    command += [f"--password-file={password}", f"--output={output}"]
    return Program(command, output.with_suffix(".log"), stderr=subprocess.STDOUT)


def test_a_server_starts_as_what_the_sentinels_say(cluster: Cluster, tmp_path: Path) -> None:
    for server in cluster.servers:
        output = tmp_path / str(server.port)
        assert role(cluster, f"127.0.0.1:{server.port}", output, cluster.ports).process.wait(10) == 0
        primary = cluster.primary()
        wanted = "" if server is primary else f"--replicaof 127.0.0.1 {primary.port}"
        assert output.read_text() == f"ROLE={wanted}\n"


def test_a_server_waits_for_a_majority(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "role"
    absent = free_port()
    program = role(cluster, "127.0.0.1:1", output, [cluster.ports[0], absent, absent])
    wait_for(lambda: "No majority" in program.output())
    assert f"127.0.0.1:{cluster.ports[0]}: 127.0.0.1:{cluster.primary().port}" in program.output()
    assert f"127.0.0.1:{absent}: [Errno 111] Connection refused" in program.output()
    time.sleep(2)
    assert program.process.poll() is None
    assert not output.exists()
    program.stop()
