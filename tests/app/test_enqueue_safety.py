"""What is accepted stays, what cannot be kept is refused: repeated requests, full queues, a Redis that forgets."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import redis

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED, DEAD_LETTERS, IDEMPOTENCY, LEASES, unacked_list
from celery_durable.testing import RedisServer, wait_for
from tests.support import Api, Program, start_worker

pytestmark = pytest.mark.integration

MEGABYTE = 1024 * 1024
LARGEST_BODY = {"data": {"a": "x" * (256 * 1024 - 19)}}


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis for the queue, of this test alone."""
    with running_redis(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis for results, of this test alone."""
    with running_redis(tmp_path_factory.mktemp("results")) as server:
        yield server


@pytest.fixture
def api(broker: RedisServer, results: RedisServer, tmp_path: Path) -> Iterator[Api]:
    """An API that uses both."""
    with running_api(broker, results, tmp_path) as api:
        yield api


@contextmanager
def running_redis(directory: Path) -> Iterator[RedisServer]:
    """Run a durable Redis."""
    server = RedisServer(directory, durable=True)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_api(broker: RedisServer, results: RedisServer, directory: Path, **settings: str) -> Iterator[Api]:
    """Run an API; results go to a database of their own where both are one Redis."""
    env = {"CELERY_BROKER_URL": broker.url(0), "CELERY_RESULT_BACKEND": results.url(1), **settings}
    api = Api(directory / "api.log", env)
    try:
        yield api
    finally:
        api.stop()


def enqueue(api: Api, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    """Try to enqueue a task."""
    return api.post("/tasks/enqueue", json=body or {"data": {}}, headers=headers)


def with_key(api: Api, key: str, data: dict[str, Any] | None = None) -> httpx.Response:
    """Try to enqueue a task under an idempotency key."""
    return enqueue(api, {"data": data or {}}, **{"Idempotency-Key": key})


def queued(broker: RedisServer) -> list[str]:
    """Return the ids of the tasks in the queue, the first to be taken first."""
    return [json.loads(entry)["headers"]["id"] for entry in reversed(broker.client(0).lrange(DEFAULT_QUEUE, 0, -1))]


def assert_come_back_later(response: httpx.Response, status: int, words: str) -> None:
    """Check an error that ends by itself."""
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]
    assert int(response.headers["Retry-After"]) >= 1


class SharedServers:
    """One API and its Redis servers for a class, since an API takes longer to start than such a test to run.

    They are well and empty before each test; the API itself remembers idempotency keys of the last seconds.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        with running_redis(tmp_path_factory.mktemp("broker")) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        with running_redis(tmp_path_factory.mktemp("results")) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def api(cls, broker: RedisServer, results: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
        with running_api(broker, results, tmp_path_factory.mktemp("api")) as api:
            yield api

    @pytest.fixture(autouse=True)
    def well_and_empty(self, broker: RedisServer, results: RedisServer, api: Api) -> None:
        for server in (broker, results):
            if server.program.process.poll() is None:
                wake(server)
            else:
                server.start()
        wait_for(lambda: enqueue(api).status_code == 202, seconds=10)
        for server in (broker, results):
            server.client(0).flushall()


class TestIdempotencyKey(SharedServers):
    """A request that is repeated makes one task."""

    def test_repeated(self, api: Api, broker: RedisServer) -> None:
        first = with_key(api, "order-1", {"a": 1, "b": [2]})
        assert first.status_code == 202
        again = with_key(api, "order-1", {"b": [2], "a": 1})
        assert (again.status_code, again.json()) == (202, first.json())
        assert with_key(api, "order-2").json() != first.json()
        assert len(queued(broker)) == 2
        assert broker.client(0).hvals(ACCEPTED) == ["1", "1"]

    def test_kept_as_long_as_results(self, api: Api, broker: RedisServer) -> None:
        with_key(api, "order-3")
        [key] = broker.client(0).keys(f"{IDEMPOTENCY}*")
        assert "order-3" not in key
        assert 3590 <= int(broker.client(0).ttl(key)) <= 3600

    def test_other_data(self, api: Api, broker: RedisServer) -> None:
        with_key(api, "order-4", {"a": 1})
        rejected = with_key(api, "order-4", {"a": 2})
        assert rejected.status_code == 422
        assert "with other data" in rejected.json()["detail"]
        assert len(queued(broker)) == 1

    @pytest.mark.parametrize("key", ["", "x" * 256, "two words", "new\tline", "\xfc"])
    def test_malformed(self, api: Api, broker: RedisServer, key: str) -> None:
        headers = [(b"Idempotency-Key", key.encode("latin-1"))]
        rejected = api.post("/tasks/enqueue", json={"data": {}}, headers=headers)
        assert rejected.status_code == 422
        assert "visible ASCII" in rejected.json()["detail"]
        assert queued(broker) == []

    def test_more_than_one(self, api: Api, broker: RedisServer) -> None:
        """Nobody knows which of them the client will repeat."""
        headers = [(b"Idempotency-Key", b"one"), (b"Idempotency-Key", b"two")]
        rejected = api.post("/tasks/enqueue", json={"data": {}}, headers=headers)
        assert (rejected.status_code, rejected.json()["detail"]) == (422, "Idempotency-Key: must be sent once.")
        assert queued(broker) == []

    def test_at_the_same_time_through_two_servers(
        self, api: Api, broker: RedisServer, results: RedisServer, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        with (
            running_api(broker, results, tmp_path_factory.mktemp("other")) as other,
            ThreadPoolExecutor(20) as clients,
        ):
            answers = list(clients.map(lambda server: with_key(server, "x" * 255), [api, other] * 20))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["task_id"] for answer in answers}) == 1
        assert len(queued(broker)) == 1

    def test_after_an_answer_that_came_too_late(self, api: Api, broker: RedisServer) -> None:
        broker.hang()
        assert with_key(api, "order-5").status_code == 503
        wake(broker)
        wait_for(lambda: queued(broker))
        assert [with_key(api, "order-5").json()["task_id"]] == queued(broker)


class TestFullQueue:
    """A queue has a longest length."""

    def test_rejects_and_recovers(self, broker: RedisServer, results: RedisServer, tmp_path: Path) -> None:
        with running_api(broker, results, tmp_path, QUEUE_MAX_LENGTH="5") as api:
            assert [enqueue(api).status_code for _ in range(5)] == [202] * 5
            assert_come_back_later(enqueue(api), 429, "The queue is full, 5 tasks wait")
            assert len(queued(broker)) == 5
            broker.client(0).ltrim(DEFAULT_QUEUE, 0, 3)
            wait_for(lambda: enqueue(api).status_code == 202, seconds=2)

    def test_a_flood_does_not_get_beyond(self, broker: RedisServer, results: RedisServer, tmp_path: Path) -> None:
        with running_api(broker, results, tmp_path, QUEUE_MAX_LENGTH="100") as api:
            # All at once they would wait longer than the API waits for Redis, on a busy machine.
            answers = [answer for _ in range(10) for answer in asyncio.run(parallel(api, 30))]
        assert Counter(status for status, _ in answers) == {202: 100, 429: 200}
        assert len(queued(broker)) == 100


class TestFullMemory:
    """Redis never gets so full that it rejects, or evicts, what was accepted."""

    @staticmethod
    def _flood(api: Api) -> int:
        """Enqueue large tasks in parallel, more than can be accepted; return how many were."""
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda _: enqueue(api, LARGEST_BODY), range(200)))
        accepted = [answer for answer in answers if answer.status_code == 202]
        rejected = [answer for answer in answers if answer not in accepted]
        assert len(rejected) > 100
        for answer in rejected:
            assert_come_back_later(answer, 503, "no memory left")
        return len(accepted)

    def test_broker_of_its_own(self, api: Api, broker: RedisServer) -> None:
        client = broker.client(0)
        client.config_set("maxmemory", 20 * MEGABYTE)
        client.config_resetstat()
        wait_for(lambda: client.info("commandstats").get("cmdstat_zrange", {}).get("calls", 0) >= 2)  # the API knows
        client.config_resetstat()
        accepted = self._flood(api)
        # Where nothing is evicted the sizes of single keys, which take time to measure, say nothing.
        asked = client.info("commandstats")
        assert "cmdstat_zrange" in asked
        assert "cmdstat_memory|usage" not in asked
        assert len(queued(broker)) == accepted > 20
        assert client.info("stats")["evicted_keys"] == 0
        assert client.info("memory")["used_memory"] < 0.9 * 20 * MEGABYTE
        client.lmove(DEFAULT_QUEUE, unacked_list("one", DEFAULT_QUEUE))  # a worker goes on
        client.delete(DEFAULT_QUEUE, unacked_list("one", DEFAULT_QUEUE))
        wait_for(lambda: enqueue(api).status_code == 202, seconds=2)

    def test_shared_with_results(self, broker: RedisServer, tmp_path: Path) -> None:
        client = broker.client(0)
        client.config_set("maxmemory", 20 * MEGABYTE)
        client.config_set("maxmemory-policy", "allkeys-lru")
        held = unacked_list("one", "slow")
        stored, done = broker.client(1), Event()

        def store_results(numbers: Iterable[int], pause: float) -> None:
            for number in numbers:
                if done.wait(pause):
                    return
                stored.set(f"celery-task-meta-{number}", "x" * 20_000, ex=3600)

        def evicted() -> int:
            return int(client.info("stats")["evicted_keys"])

        with running_api(broker, broker, tmp_path) as api, ThreadPoolExecutor(1) as worker:
            store_results(range(1000), pause=0)
            assert evicted() > 0
            # As in earnest, where memory holds the results of minutes; what is new is not taken then.
            wait_for(lambda: stored.object("idletime", "celery-task-meta-999") >= 3)
            # Nobody uses these while the test runs; they look idle.
            client.lpush(held, "x")
            client.zadd(LEASES, {held: time.time()})
            client.lpush(DEAD_LETTERS, "x")
            # About two megabytes a second, while two to five seconds of results fit in.
            storing = worker.submit(store_results, count(1000), pause=0.01)
            try:
                before = evicted()
                wait_for(lambda: evicted() > before + 50)
                accepted = self._flood(api)
                wait_for(lambda: evicted() > before + 1000)
            finally:
                done.set()
            storing.result()
            assert len(queued(broker)) == client.hlen(ACCEPTED) == accepted > 10
            assert client.exists(held, LEASES, DEAD_LETTERS) == 3
            client.delete(DEFAULT_QUEUE)
            wait_for(lambda: enqueue(api).status_code == 202, seconds=2)


class TestForgetfulRedis:
    """Redis is killed, and the end of its append-only file is missing afterwards."""

    @staticmethod
    def _size(broker: RedisServer) -> int:
        """Return the size of the append-only file when it holds everything; Redis lags behind a slow disk."""
        wait_for(lambda: broker.client(0).info("persistence")["aof_buffer_length"] == 0)
        return _append_only_file(broker).stat().st_size

    @staticmethod
    def _is_queued(broker: RedisServer, task_id: str) -> bool:
        return task_id in queued(broker)

    def test_lost_tasks_are_back_once(self, api: Api, broker: RedisServer, results: RedisServer) -> None:
        kept = api.enqueue({"kept": True})
        size = self._size(broker)
        done, lost = api.enqueue({"done": True}), api.enqueue({"lost": True})
        keyed = with_key(api, "order-1").json()["task_id"]
        results.client(1).set(f"celery-task-meta-{done}", '{"status": "SUCCESS", "result": null}')
        results.client(1).set(f"celery-task-meta-{lost}", '{"status": "STARTED", "result": null}')
        lose_tail(broker, size)
        assert api.status(kept)["status"] == "PENDING"
        assert api.status(keyed)["status"] == "PENDING"
        assert with_key(api, "order-1").json()["task_id"] == keyed
        wait_for(lambda: {lost, keyed} <= set(queued(broker)))
        new = api.enqueue({"new": True})
        assert sorted(queued(broker)) == sorted([kept, lost, keyed, new])
        assert broker.client(0).hgetall(ACCEPTED) == dict.fromkeys([kept, lost, keyed, new], "1")
        assert with_key(api, "order-1").json()["task_id"] == keyed

    def test_twice(self, api: Api, broker: RedisServer) -> None:
        api.enqueue({})
        for _ in range(2):
            size = self._size(broker)
            lost = api.enqueue({})
            lose_tail(broker, size)
            wait_for(partial(self._is_queued, broker, lost))
        assert len(queued(broker)) == 3

    def test_running_task_is_not_run_twice(
        self, api: Api, broker: RedisServer, results: RedisServer, tmp_path: Path
    ) -> None:
        env = {"CELERY_BROKER_URL": broker.url(0), "CELERY_RESULT_BACKEND": results.url(1)}
        worker = start_worker(tmp_path / "worker.log", env)
        try:
            size = self._size(broker)
            running = api.enqueue({})
            api.wait(running, "PROGRESS")
            lose_tail(broker, size)
            api.wait(running)
            after = api.enqueue({})
            api.wait(after)
            wait_for(lambda: broker.client(0).hlen(ACCEPTED) == 0)
            assert queued(broker) == []
            assert worker.output().count("Task started") == 2
        finally:
            worker.stop()

    def test_done_task_is_not_run_again(
        self, api: Api, broker: RedisServer, results: RedisServer, tmp_path: Path
    ) -> None:
        done = api.enqueue({})
        size = self._size(broker)
        env = {"CELERY_BROKER_URL": broker.url(0), "CELERY_RESULT_BACKEND": results.url(1)}
        worker = start_worker(tmp_path / "worker.log", env)
        try:
            wait_for(lambda: broker.client(0).hlen(ACCEPTED) == 0)
            lose_tail(broker, size)
            wait_for(lambda: worker.output().count(f"[{done}] received") == 2)
            wait_for(lambda: broker.client(0).hlen(ACCEPTED) == 0)
            assert worker.output().count("Task started") == 1
        finally:
            worker.stop()

    def test_long_outage_while_results_are_away_longer(
        self, api: Api, broker: RedisServer, results: RedisServer
    ) -> None:
        api.enqueue({})
        size = self._size(broker)
        lost = api.enqueue({})
        results.stop()
        lose_tail(broker, size)
        api.program.wait_for_output("Lost tasks are not restored yet")
        new = api.enqueue({})
        assert lost not in queued(broker)
        results.start()
        wait_for(lambda: lost in queued(broker))
        assert queued(broker)[1:] == [new, lost]

    def test_loading(self, api: Api, broker: RedisServer) -> None:
        with broker.client(2).pipeline(transaction=False) as pipeline:
            for number in range(40_000):
                pipeline.set("number", number)
            pipeline.execute()
        size = self._size(broker)
        lost = api.enqueue({})
        kill_and_cut(broker, size)
        # Microseconds for each command in the file: some seconds of loading. Redis answers after each 1,024 of them.
        command = ["redis-server", str(broker.directory / "redis.conf"), "--key-load-delay", "50"]
        broker.program = Program(command, broker.directory / "redis.log")
        broker.program.wait_for_output("Server initialized")
        with pytest.raises(redis.BusyLoadingError):
            broker.client(0).llen(DEFAULT_QUEUE)
        for response in (enqueue(api), api.get(f"/tasks/status/{lost}")):
            assert_come_back_later(response, 503, "")
            assert response.elapsed.total_seconds() < 1
        broker.program.wait_for_output("Ready to accept connections")
        wait_for(lambda: lost in queued(broker))


class TestStatus(SharedServers):
    """Silence of Redis is never taken for PENDING."""

    @pytest.mark.parametrize("way", ["stop", "hang"])
    @pytest.mark.parametrize("gone", ["broker", "results"])
    def test_unavailable(self, api: Api, broker: RedisServer, results: RedisServer, gone: str, way: str) -> None:
        task_id = api.enqueue({})
        getattr({"broker": broker, "results": results}[gone], way)()
        response = api.get(f"/tasks/status/{task_id}")
        assert_come_back_later(response, 503, "")
        assert response.elapsed.total_seconds() < 1

    def test_done_between_the_questions(self, api: Api, broker: RedisServer, results: RedisServer) -> None:
        """A worker stores the result and acknowledges while a client asks; nobody sees the task vanish."""
        tasks = [api.enqueue({}) for _ in range(300)]
        accepted, stored = broker.client(0), results.client(1)

        def work() -> None:
            for task_id in tasks:
                stored.set(f"celery-task-meta-{task_id}", '{"status": "SUCCESS", "result": null}')
                accepted.hdel(ACCEPTED, task_id)

        with ThreadPoolExecutor(1) as worker:
            working = worker.submit(work)
            for task_id in tasks:
                api.wait(task_id)  # fails on any answer but 200
            working.result()


class TestOutage:
    """Hundreds of clients at once get an honest answer in time."""

    @pytest.mark.parametrize("way", ["stop", "hang"])
    def test_all_are_told_in_time(self, api: Api, broker: RedisServer, way: str) -> None:
        healthy = asyncio.run(parallel(api, 300))
        assert {status for status, _ in healthy} == {202}
        getattr(broker, way)()
        answers = asyncio.run(parallel(api, 300))
        assert {status for status, _ in answers} == {503}
        # Beyond what as many answers take on this machine.
        usual = sorted(seconds for _, seconds in healthy)[296]
        assert sorted(seconds for _, seconds in answers)[296] < 1 + usual
        before = time.monotonic()
        broker.start() if way == "stop" else wake(broker)
        wait_for(lambda: enqueue(api).status_code == 202, seconds=2)
        assert time.monotonic() - before < 2


async def parallel(api: Api, requests: int) -> list[tuple[int, float]]:
    """Enqueue tasks over as many connections; return each status and the seconds until it was there.

    By hand: 300 requests of a real client take longer to write than the server takes to answer.
    """
    host, port = api.base_url.host, api.base_url.port
    content = b'{"data": {}}'
    head = f"POST /tasks/enqueue HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {api.key}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    connections = [await asyncio.open_connection(host, port) for _ in range(requests)]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float]:
        started = time.monotonic()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return int(answer.split()[1]), time.monotonic() - started

    return await asyncio.gather(*(one(*connection) for connection in connections))


def wake(server: RedisServer) -> None:
    """Let a hanging Redis go on."""
    server.program.process.send_signal(signal.SIGCONT)


def _append_only_file(server: RedisServer) -> Path:
    [path] = (server.directory / "appendonlydir").glob("*.incr.aof")
    return path


def kill_and_cut(server: RedisServer, size: int) -> None:
    """Kill Redis and leave the first ``size`` bytes of its file and a torn command."""
    torn = size + 10
    wait_for(lambda: _append_only_file(server).stat().st_size > torn)
    server.stop()
    with _append_only_file(server).open("r+b") as file:
        file.truncate(torn)


def lose_tail(server: RedisServer, size: int) -> None:
    """Kill Redis and start it without the end of its file."""
    kill_and_cut(server, size)
    server.start()
