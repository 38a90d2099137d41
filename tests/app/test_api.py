"""The API next to a real Redis without workers: what it accepts, rejects, and says when Redis is gone."""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.agents.config import DEFAULT_QUEUE
from celery_durable.keys import ACCEPTED
from celery_durable.task_ids import new_task_id
from celery_durable.testing import RedisServer, free_port, wait_for
from celery_durable.web.rate_limit import MAX_CLIENTS, RateLimiter
from durable_console.web.body import READ_BUDGET
from tests.support import REPOSITORY, Api, Program

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def empty_redis(redis_server: RedisServer) -> None:
    """Leave nothing from the test before."""
    for database in (0, 1):
        redis_server.client(database).flushdb()


def uuid7(age: float) -> str:
    """Return a UUIDv7 made ``age`` seconds ago."""
    milliseconds = int((time.time() - age) * 1000)
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | 1))


def post(api: Api, body: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    """Enqueue raw bytes."""
    return api.post("/tasks/enqueue", content=body, headers={**JSON, **headers})


def assert_rejected(response: httpx.Response, status: int, words: str) -> None:
    """Check the common shape of an error and that it says what is wrong."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert words in detail
    assert "\n" not in detail


def assert_guarded(response: httpx.Response) -> None:
    """Check the headers that each answer has."""
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")
    assert "Server" not in headers


class Own(Protocol):
    """Starts an API with settings of its own."""

    def __call__(self, **variables: str) -> Api:
        """Start it; it stops with the test."""


@pytest.fixture
def own(redis_server: RedisServer, tmp_path: Path) -> Iterator[Own]:
    """Start APIs with other settings, next to the same Redis."""
    started: list[Api] = []

    def start(**variables: str) -> Api:
        api = Api(tmp_path / f"api{len(started)}.log", {**redis_server.environment(0, 1), **variables})
        started.append(api)
        return api

    yield start
    for api in started:
        api.stop()


class TestEnqueue:
    """A task that is accepted is in the queue."""

    def test_accepted(self, lonely_api: Api, redis_server: RedisServer) -> None:
        response = lonely_api.post("/tasks/enqueue", json={"data": {"key": "value"}})
        assert response.status_code == 202
        answer = response.json()
        task_id = uuid.UUID(answer.pop("task_id"))
        assert task_id.version == 7
        assert answer == {"status": "pending", "message": "Task enqueued successfully"}
        [entry] = redis_server.client(0).lrange(DEFAULT_QUEUE, 0, -1)
        assert json.loads(entry)["headers"]["id"] == str(task_id)

    def test_a_task_is_chosen_by_its_name_and_goes_where_its_route_says(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        name = "app.agents.tasks.agent_run.agent_run"
        env = {**redis_server.environment(0, 1), "TASK_ROUTES": json.dumps({name: "agents"})}
        several = {"task": "agent_run", "tasks": [{"data": {}}, {"data": {}}]}
        api = Api(tmp_path / "api.log", env)
        try:
            answers = [
                api.post("/tasks/enqueue", json={"task": "agent_run", "data": {}}),
                api.post("/tasks/enqueue/batch", json=several),
                api.post("/tasks/enqueue", json={"task": "example_agent_task", "data": {}}),
            ]
            assert [answer.status_code for answer in answers] == [202] * 3
            entries = {
                queue: [json.loads(entry)["headers"]["task"] for entry in redis_server.client(0).lrange(queue, 0, -1)]
                for queue in ("agents", DEFAULT_QUEUE)
            }
            assert entries == {
                "agents": [name] * 3,
                DEFAULT_QUEUE: ["app.agents.tasks.example_task.example_agent_task"],
            }
        finally:
            api.stop()
            redis_server.client(0).delete("agents")

    def test_an_idempotency_key_is_one_tasks(self, lonely_api: Api) -> None:
        bodies = [{"data": {}}, {"data": {}, "task": "agent_run"}, {"data": {}, "task": "example_agent_task"}]
        first, other, same = (
            lonely_api.post("/tasks/enqueue", json=body, headers={"Idempotency-Key": "of-two"}).json()["task_id"]
            for body in bodies
        )
        assert first == same != other

    def test_same_message_as_celery_itself(self, lonely_api: Api, redis_server: RedisServer) -> None:
        data = {"text": "ü€😀", "n": [1, 2.5, None, True]}
        lonely_api.enqueue(data)
        chosen = new_task_id()
        script = (
            "from app.agents.tasks.example_task import example_agent_task as task\n"
            f"task.apply_async(({chosen!r}, {data!r}), task_id={chosen!r}, headers={{'request_id': 'ours'}})"
        )
        env = redis_server.environment(0, 1)
        subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=env, check=True)
        theirs, ours = (json.loads(entry) for entry in redis_server.client(0).lrange(DEFAULT_QUEUE, 0, -1))
        for message in (ours, theirs):
            [task_id, *arguments], *rest = json.loads(base64.b64decode(message["body"]))
            headers, properties = message["headers"], message["properties"]
            assert task_id == headers["id"] == headers["root_id"] == properties["correlation_id"]
            message["body"] = [arguments, rest]
            for name in ("id", "root_id", "origin", "request_id"):
                assert headers.pop(name)
            headers["argsrepr"] = headers["argsrepr"].replace(task_id, "")
            for name in ("correlation_id", "delivery_tag"):
                assert properties.pop(name)
            properties.pop("reply_to")  # ours asks for no reply
        assert ours == theirs

    def test_many_at_once(self, lonely_api: Api, redis_server: RedisServer) -> None:
        async def flood() -> list[int]:
            async with httpx.AsyncClient(
                base_url=lonely_api.url, headers=lonely_api.headers, limits=httpx.Limits(max_connections=300)
            ) as client:
                posts = (client.post("/tasks/enqueue", json={"data": {}}, timeout=20) for _ in range(300))
                return [response.status_code for response in await asyncio.gather(*posts)]

        assert asyncio.run(flood()) == [202] * 300
        assert redis_server.client(0).llen(DEFAULT_QUEUE) == 300

    def test_request_id_is_kept_when_sane(self, lonely_api: Api, redis_server: RedisServer) -> None:
        response = lonely_api.post("/tasks/enqueue", json={"data": {}}, headers={"X-Request-ID": "me.1-2_3"})
        assert response.headers["X-Request-ID"] == "me.1-2_3"
        [entry] = redis_server.client(0).lrange(DEFAULT_QUEUE, 0, -1)
        assert json.loads(entry)["headers"]["request_id"] == "me.1-2_3"

    @pytest.mark.parametrize("request_id", ["two words", "x" * 129, "new{}line"])
    def test_request_id_is_replaced_when_odd(self, lonely_api: Api, request_id: str) -> None:
        response = lonely_api.get("/health", headers={"X-Request-ID": request_id})
        assert response.headers["X-Request-ID"] not in ("", request_id)


class TestRefused:
    """A body that the queue cannot carry is rejected with a sentence and leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def nothing_enqueued(self, redis_server: RedisServer) -> Iterator[None]:
        """No rejected request may leave a task."""
        yield
        assert redis_server.client(0).llen(DEFAULT_QUEUE) == 0

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "body: Invalid JSON"),
            (b"not json", "body: Invalid JSON"),
            (b'{"data": {}', "body: Invalid JSON"),
            (b"[]", "body: Input should be an object"),
            (b"null", "body: Input should be an object"),
            (b"{}", "body.data: Field required"),
            (b'{"data": []}', "body.data: Input should be an object"),
            (b'{"data": {}, "more": 1}', "body.more: Extra inputs are not permitted"),
            (b'{"data": {}, "task": "os.system"}', "body.task: Input should be 'example_agent_task' or 'agent_run'"),
            (b'{"data": {"a": NaN}}', "data.a: NaN and infinite numbers"),
            (b'{"data": {"a": [-Infinity]}}', "data.a.0: NaN and infinite numbers"),
            (b'{"data": {"a": 1e999}}', "data.a: NaN and infinite numbers"),
            (b'{"data": {"a": 9223372036854775808}}', "data.a: the integer does not fit"),
            (b'{"data": {"a": -9223372036854775809}}', "data.a: the integer does not fit"),
            (b'{"data": {"a": 1' + b"0" * 5000 + b"}}", ""),
            (b'{"data": {"a": "\\ud800"}}', "body: Invalid JSON"),
            (b'{"data": {"\\udfff": 1}}', "body: Invalid JSON"),
            (b'{"data": {"a": "\xff"}}', "body: Invalid JSON"),
            (b'{"data": {"a": ' + b"[" * 64 + b"]" * 64 + b"}}", "nested deeper than 64 levels"),
            (b'{"data": {"a": ' + b"[" * 100_000 + b"}", "body: Invalid JSON"),
            (b'{"data": {"a": {"__type__": "uuid", "__value__": "x"}}}', "data.a: an object with just the keys"),
        ],
    )
    def test_body(self, lonely_api: Api, body: bytes, words: str) -> None:
        assert_rejected(post(lonely_api, body), 422, words)

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_content_type(self, lonely_api: Api, content_type: str) -> None:
        assert_rejected(post(lonely_api, b'{"data": {}}', **{"content-type": content_type}), 415, "application/json")

    @pytest.mark.parametrize("encoding", ["gzip", "br", "x-anything", "gzip, identity"])
    def test_content_encoding(self, lonely_api: Api, encoding: str) -> None:
        response = post(lonely_api, b'{"data": {}}', **{"content-encoding": encoding})
        assert_rejected(response, 415, "without a Content-Encoding")
        assert response.headers["Accept-Encoding"] == "identity"

    def test_too_large_by_its_own_word(self, lonely_api: Api) -> None:
        assert_rejected(post(lonely_api, b"x" * (256 * 1024 + 1)), 413, "larger than 262144 bytes")

    def test_too_large_in_chunks(self, lonely_api: Api) -> None:
        chunks = (b"x" * 64 * 1024 for _ in range(5))
        assert_rejected(post(lonely_api, chunks), 413, "larger than 262144 bytes")


class TestAccepted:
    """The borders, from inside."""

    @pytest.mark.parametrize(
        "body",
        [
            b'{"data": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}",
            b'{"data": {"a": [9223372036854775807, -9223372036854775808, 1e308, "\\u0000", "\\ud83d\\ude00"]}}',
            b'{"data": {"__type__": 1}}',
            b'{"data": {"a": "' + b"x" * (256 * 1024 - 19) + b'"}}',
        ],
    )
    def test_body(self, lonely_api: Api, body: bytes) -> None:
        assert post(lonely_api, body, **{"content-type": "application/json; charset=utf-8"}).status_code == 202


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary() | json_values.map(lambda value: json.dumps({"data": value}).encode()))
def test_no_body_makes_the_server_fail(lonely_api: Api, body: bytes) -> None:
    """Whatever arrives is accepted or rejected."""
    assert post(lonely_api, body).status_code in (202, 422)


class TestSlowClients:
    """A client that does not finish its request keeps nothing busy."""

    @staticmethod
    def _begin(api: Api) -> socket.socket:
        """Send a request without the end of its body."""
        url = httpx.URL(api.url)
        connection = socket.create_connection((url.host, url.port or 80))
        head = f"POST /tasks/enqueue HTTP/1.1\r\nHost: {url.host}\r\nX-API-Key: {api.key}\r\n"
        connection.sendall(f'{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"data'.encode())
        return connection

    def test_a_body_that_does_not_end(self, lonely_api: Api) -> None:
        began = time.monotonic()
        with self._begin(lonely_api) as connection, connection.makefile("rb") as answer:
            everything = answer.read()  # until the server closes
        assert everything.startswith(b"HTTP/1.1 408 ")
        assert everything.endswith(b'{"detail":"The body did not arrive within 10 s."}')
        assert READ_BUDGET <= time.monotonic() - began < READ_BUDGET + 2

    def test_a_client_that_goes_away(self, own: Own) -> None:
        api = own()
        self._begin(api).close()
        api.enqueue({})
        time.sleep(0.2)
        assert [line for line in api.program.log_lines() if line["level"] == "ERROR"] == []


class TestKey:
    """Nobody gets in without a key."""

    @pytest.mark.parametrize("request_line", ["POST /tasks/enqueue", "GET /tasks/status/no-id", "GET /metrics/celery"])
    @pytest.mark.parametrize(
        ("header", "value", "words"),
        [
            ("X-Other", "", "An API key is needed"),
            ("X-API-Key", "", "An API key is needed"),
            ("X-API-Key", "{key}0", "not valid"),
            ("X-API-Key", "{half}", "not valid"),
            ("X-API-Key", "Bearer {key}", "not valid"),
            ("X-API-Key", "schlüssel€", "not valid"),
            # h11 reads headers of up to 16 KiB however they arrive; of longer ones it depends on the packets.
            ("X-API-Key", "x" * 15_000, "not valid"),
            ("Authorization", "{key}", "An API key is needed"),
            ("Authorization", "Bearer", "An API key is needed"),
            ("Authorization", "Bearer \x80\xff", "not valid"),
            ("Authorization", "Bearer {key} {key}", "not valid"),
            ("Authorization", "Basic {key}", "An API key is needed"),
        ],
    )
    def test_rejected(self, rejecting: Api, request_line: str, header: str, value: str, words: str) -> None:
        method, path = request_line.split()
        sent = value.format(key=rejecting.key, half=rejecting.key[:16]).encode()
        # Neither body nor parameters are looked at.
        response = httpx.request(method, rejecting.url + path, headers={header.encode(): sent}, content=b"anything")
        assert_rejected(response, 401, words)
        assert response.headers["WWW-Authenticate"] == "Bearer"

    @pytest.fixture(scope="class")
    @staticmethod
    def rejecting(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
        """Start an API that does not tire of saying no."""
        env = {**redis_server.environment(0, 1), "FAILED_LOGIN_LIMIT": "unlimited", "ENVIRONMENT": "production"}
        api = Api(tmp_path_factory.mktemp("rejecting") / "api.log", env)
        yield api
        api.stop()

    def test_before_the_body_is_read(self, rejecting: Api) -> None:
        url = httpx.URL(rejecting.url)
        with socket.create_connection((url.host, url.port or 80), timeout=2) as connection:
            connection.sendall(b"POST /tasks/enqueue HTTP/1.1\r\nHost: host\r\nContent-Length: 100\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")

    @pytest.mark.parametrize(
        "header", ["X-API-Key: {key}", "Authorization: Bearer {key}", "authorization: bearer {key}"]
    )
    def test_accepted(self, rejecting: Api, header: str) -> None:
        name, _, value = header.format(key=rejecting.key).partition(": ")
        response = httpx.post(f"{rejecting.url}/tasks/enqueue", headers={name: value}, json={"data": {}})
        assert response.status_code == 202

    def test_health_is_open(self, rejecting: Api) -> None:
        answers = [httpx.get(f"{rejecting.url}/health{path}").status_code for path in ("", "/ready", "/celery")]
        assert answers == [200, 200, 503]

    def test_several_keys(self, own: Own) -> None:
        keys = ("first-0123456789", "second-0123456789", "third-0123456789")
        api = own(BACKEND_API_KEY=f"{keys[0]}, {keys[1]}\n{keys[2]}\n", ENVIRONMENT="production")
        for key in keys:
            assert httpx.get(f"{api.url}/metrics/celery", headers={"X-API-Key": key}).status_code == 200
        both = f"{keys[0]}, {keys[1]}"
        assert httpx.get(f"{api.url}/metrics/celery", headers={"X-API-Key": both}).status_code == 401

    def test_a_key_for_monitoring_opens_nothing_else(self, own: Own) -> None:
        key = "for-monitoring-0123456789"
        api = own(BACKEND_API_KEY="for-clients-0123456789", METRICS_API_KEY=key, ENVIRONMENT="production")
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{api.url}/metrics", headers=headers).status_code == 200
        group = {"groupKey": "g", "alerts": []}
        assert httpx.post(f"{api.url}/status/alerts", headers=headers, json=group).status_code == 204
        schema = httpx.get(f"{api.url}/openapi.json").json()["paths"]
        others = [
            (method, path)
            for path, methods in schema.items()
            for method in methods
            if "security" in methods[method] and path not in ("/metrics", "/status/alerts")
        ]
        assert ("post", "/tasks/enqueue") in others
        for method, path in others:
            url = f"{api.url}{path.replace('{task_id}', 'x')}"
            assert httpx.request(method, url, headers=headers).status_code == 401, path
        assert httpx.get(f"{api.url}/status", auth=("x", key)).status_code == 401
        client = {"X-API-Key": "for-clients-0123456789"}
        assert httpx.get(f"{api.url}/metrics", headers=client).status_code == 200

    def test_a_laptop_needs_none(self, own: Own) -> None:
        api = own(BACKEND_API_KEY="")
        assert httpx.get(f"{api.url}/metrics/celery").status_code == 200

    def test_it_is_in_no_log(self, rejecting: Api) -> None:
        assert rejecting.get(f"/tasks/{rejecting.key}?key={rejecting.key}").status_code == 404
        rejecting.program.wait_for_output("/tasks/**?key=**")
        assert rejecting.key not in rejecting.program.output()


class TestStart:
    """An API that everybody could use, or whose key can be guessed, does not start."""

    @staticmethod
    def _start(tmp_path: Path, **variables: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(free_port())]
        log = ["--log-config", str(REPOSITORY / "app/log_config.json")]
        program = Program([*command, *log], tmp_path / "log", variables, stderr=subprocess.STDOUT)
        return program.process.wait(20), program.output()

    def test_without_key(self, tmp_path: Path) -> None:
        code, output = self._start(tmp_path, ENVIRONMENT="staging", BACKEND_API_KEY="")
        assert code == 3
        assert "BACKEND_API_KEY is not set: " in output
        assert "Traceback" not in output

    def test_a_release_can_be_tried_without_key(self) -> None:
        env = {**os.environ, "ENVIRONMENT": "production", "BACKEND_API_KEY": ""}
        subprocess.run([sys.executable, "-c", "import app.main"], cwd=REPOSITORY, env=env, check=True)

    @pytest.mark.parametrize(
        "value", ["hidden", "hidden" * 5, "hidden-9012345678,hidden", "hidden-ünïcödé-0123456789", ","]
    )
    def test_with_a_weak_key(self, tmp_path: Path, value: str) -> None:
        code, output = self._start(tmp_path, BACKEND_API_KEY=value)
        assert code == 1
        assert output.startswith("BACKEND_API_KEY is refused: ")
        assert output.count("\n") == 1
        assert "hidden" not in output


class TestLimits:
    """How often a client may come."""

    @staticmethod
    def _ask(api: Api, key: str) -> httpx.Response:
        return httpx.get(f"{api.url}/metrics/celery", headers={"X-API-Key": key})

    def test_requests_of_one_key(self, own: Own) -> None:
        one, other = "first-0123456789", "second-0123456789"
        api = own(BACKEND_API_KEY=f"{one},{other}", RATE_LIMIT="3/hour")
        assert [self._ask(api, one).status_code for _ in range(3)] == [200] * 3
        rejected = self._ask(api, one)
        assert_rejected(rejected, 429, "There were more requests than 3/hour; try again in ")
        assert 3590 < int(rejected.headers["Retry-After"]) <= 3600
        assert self._ask(api, other).status_code == 200
        assert httpx.get(f"{api.url}/health").status_code == 200

    def test_requests_without_a_valid_key(self, own: Own) -> None:
        api = own(FAILED_LOGIN_LIMIT="2/minute")
        assert [self._ask(api, "guess").status_code for _ in range(2)] == [401] * 2
        rejected = self._ask(api, "another guess")
        assert_rejected(rejected, 429, "too many requests without a valid API key; try again in ")
        assert 50 < int(rejected.headers["Retry-After"]) <= 60
        # Behind a balancer all clients have its address.
        assert self._ask(api, api.key).status_code == 200

    def test_no_limit(self, own: Own) -> None:
        api = own(RATE_LIMIT="unlimited", FAILED_LOGIN_LIMIT="unlimited")
        assert [self._ask(api, "guess").status_code for _ in range(40)] == [401] * 40

    def test_a_window_ends(self) -> None:
        limiter = RateLimiter("1/second")
        assert [limiter.hit("client"), limiter.hit("client"), limiter.hit("other")] == [0, 1, 0]
        assert wait_for(lambda: limiter.hit("client") == 0, seconds=1.2)

    def test_its_memory_is_bounded(self) -> None:
        limiter = RateLimiter("1/hour")
        for number in range(2 * MAX_CLIENTS + 10):
            limiter.hit(str(number))
        assert len(limiter._hits) <= MAX_CLIENTS


class TestHeaders:
    """What each answer tells a browser."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            *[
                ("GET", path)
                for path in ("/health", "/health/ready", "/health/celery", "/metrics/celery", "/openapi.json")
            ],
            *[("GET", "/docs"), ("GET", "/nothing"), ("GET", "/tasks/enqueue"), ("GET", "/tasks/status/x")],
            *[("POST", "/tasks/enqueue"), ("OPTIONS", "/tasks/enqueue"), ("HEAD", "/health")],
        ],
    )
    def test_they_are_everywhere(self, lonely_api: Api, method: str, path: str) -> None:
        assert_guarded(lonely_api.request(method, path))
        assert_guarded(httpx.request(method, lonely_api.url + path))

    def test_the_documentation_runs_its_own_scripts_alone(self, lonely_api: Api) -> None:
        page = lonely_api.get("/docs")
        policy = page.headers["Content-Security-Policy"]
        [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'self' 'sha256-{digest}'; style-src 'self';" in policy
        assert "style=" not in page.text
        assert "unsafe" not in policy


class TestStatus:
    """What the API says about ids."""

    def test_pending(self, lonely_api: Api) -> None:
        task_id = lonely_api.enqueue({})
        expected = {"task_id": task_id, "status": "PENDING", "result": None, "error": None, "meta": None}
        assert lonely_api.status(task_id) == expected
        assert lonely_api.status(task_id.upper()) == expected

    @pytest.mark.parametrize("age", [0, 3700, -3700])
    def test_pending_whatever_its_age(self, lonely_api: Api, redis_server: RedisServer, age: float) -> None:
        task_id = uuid7(age)
        redis_server.client(0).hset(ACCEPTED, task_id, "1")
        assert lonely_api.status(task_id)["status"] == "PENDING"

    def test_expired(self, lonely_api: Api) -> None:
        assert_rejected(lonely_api.get(f"/tasks/status/{uuid7(age=3700)}"), 410, "results expire after 3600 s")

    @pytest.mark.parametrize("age", [0, 3500, -3700])
    def test_never_accepted(self, lonely_api: Api, age: float) -> None:
        assert_rejected(lonely_api.get(f"/tasks/status/{uuid7(age)}"), 404, "never accepted here")

    @pytest.mark.parametrize(
        "task_id",
        ["abc", str(uuid.uuid4()), "0" * 36, f"{{{uuid7(0)}}}", "%00", "nightly/2026-11-29", "%E2%82%AC", "%FF"],
        ids=["word", "version-4", "zeros", "braces", "nul", "slash", "euro", "no-utf-8"],
    )
    def test_any_text_can_be_an_id(self, lonely_api: Api, task_id: str) -> None:
        assert_rejected(lonely_api.get(f"/tasks/status/{task_id}"), 404, "never accepted here, or its result")

    def test_too_long(self, lonely_api: Api) -> None:
        assert_rejected(lonely_api.get(f"/tasks/status/{'x' * 256}"), 422, "1 to 255 characters")

    @pytest.mark.parametrize(
        ("state", "error", "line"),
        [
            ("FAILURE", {"exc_type": "ValueError", "exc_message": ["no\nmore"]}, "ValueError: no"),
            (
                "RETRY",
                {"exc_type": "SimulatedFailureError", "exc_message": ["Simulated"]},
                "SimulatedFailureError: Sim",
            ),
            ("FAILURE", {"exc_type": "TimeLimitExceeded", "exc_message": [60]}, "TimeLimitExceeded: 60"),
            ("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": []}, "TaskRevokedError"),
        ],
    )
    def test_error(
        self, lonely_api: Api, redis_server: RedisServer, state: str, error: dict[str, Any], line: str
    ) -> None:
        task_id = uuid7(0)
        stored = {"status": state, "result": error, "traceback": "Traceback (most recent call last)"}
        redis_server.client(1).set(f"celery-task-meta-{task_id}", json.dumps(stored))
        status = lonely_api.status(task_id)
        assert status["status"] == state
        assert status["error"].startswith(line)
        assert "\n" not in status["error"]
        assert "Traceback" not in status["error"]
        assert (status["result"], status["meta"]) == (None, None)

    def test_error_shows_no_secret(self, own: Own, redis_server: RedisServer) -> None:
        api = own(GROQ_API_KEY="groq-key", SUPABASE_KEY="admin:of-supabase one:and/another")
        told = [redis_server.url(0), redis_server.password, api.key, "groq-key", "of-supabase", "and/another"]
        told += ["amqp://user:of-another-service@host/x"]
        task_id = uuid7(0)
        stored = {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": [f"No: {' '.join(told)}"]}}
        redis_server.client(1).set(f"celery-task-meta-{task_id}", json.dumps(stored))
        url = f"redis://:**@127.0.0.1:{redis_server.port}/0"
        assert api.status(task_id)["error"] == f"ValueError: No: {url} ** ** ** ** ** amqp://user:**@host/x"

    def test_started_shows_nothing_of_the_host(self, lonely_api: Api, redis_server: RedisServer) -> None:
        task_id = uuid7(0)
        stored = {"status": "STARTED", "result": {"pid": 1, "hostname": "celery@host"}}
        redis_server.client(1).set(f"celery-task-meta-{task_id}", json.dumps(stored))
        status = lonely_api.status(task_id)
        assert (status["result"], status["error"], status["meta"]) == (None, None, None)

    def test_odd_numbers_in_a_result(self, lonely_api: Api, redis_server: RedisServer) -> None:
        task_id = uuid7(0)
        redis_server.client(1).set(
            f"celery-task-meta-{task_id}", '{"status": "SUCCESS", "result": [NaN, Infinity, -1e999, 1.5]}'
        )
        assert lonely_api.status(task_id)["result"] == [None, None, None, 1.5]


class TestHealth:
    """With Redis, without workers."""

    def test_lives_and_is_ready(self, lonely_api: Api) -> None:
        assert lonely_api.get("/health").json() == {"status": "healthy"}
        assert lonely_api.get("/health/ready").json() == {"status": "ready"}

    @pytest.mark.parametrize("path", ["/health", "/health/ready"])
    def test_it_can_be_asked_for_the_head_alone(self, lonely_api: Api, path: str) -> None:
        response = lonely_api.head(path)
        assert (response.status_code, response.content) == (200, b"")

    def test_drained_it_is_not_ready_and_goes_on_serving(self, own: Own, tmp_path: Path) -> None:
        flag = tmp_path / "drained"
        api = own(DRAIN_FILE=str(flag))
        assert api.get("/health/ready").status_code == 200
        flag.touch()
        response = api.get("/health/ready")
        assert_rejected(response, 503, "taken out of the balancer")
        assert api.head("/health/ready").status_code == 503
        assert api.get("/health").status_code == 200
        assert api.post("/tasks/enqueue", json={"data": {}}).status_code == 202
        flag.unlink()
        assert api.get("/health/ready").status_code == 200

    def test_no_workers(self, lonely_api: Api) -> None:
        response = lonely_api.get("/health/celery")
        assert response.status_code == 503
        assert response.json() == {"status": "unhealthy", "workers": [], "active_tasks": 0}
        assert "Retry-After" in response.headers
        assert response.elapsed.total_seconds() < 0.5
        metrics = lonely_api.get("/metrics/celery")
        assert metrics.json() == {"workers": {"count": 0, "names": []}, "tasks": {"active": 0, "scheduled": 0}}


class TestSurface:
    """Shape of everything else."""

    def test_unknown_route_and_method(self, lonely_api: Api) -> None:
        assert_rejected(lonely_api.get("/nothing"), 404, "Not Found")
        assert_rejected(lonely_api.get("/tasks/enqueue"), 405, "Method Not Allowed")

    def test_documentation(self, lonely_api: Api) -> None:
        page = lonely_api.get("/docs")
        assert page.status_code == 200
        # The browser may reach this host alone.
        assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(assets) >= 3
        assert [lonely_api.get(asset).status_code for asset in assets] == [200] * len(assets)
        paths = lonely_api.get("/openapi.json").json()["paths"]
        enqueue = paths["/tasks/enqueue"]["post"]
        schema = enqueue["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["data"]["type"] == "object"
        assert "$ref" not in json.dumps(schema)  # it is not among the document's components
        assert set(enqueue["responses"]) == {"202", "401", "408", "413", "415", "422", "429", "503"}
        assert enqueue["security"] == [{"X-API-Key": []}, {"Bearer": []}]
        assert "security" not in paths["/health"]["get"]
        [key] = [parameter for parameter in enqueue["parameters"] if parameter["in"] == "header"]
        assert key["name"].lower() == "idempotency-key"
        assert not key["required"]
        assert "same task id" in key["description"]
        assert set(paths["/tasks/status/{task_id}"]["get"]["responses"]) == {
            *("200", "401", "404", "410", "422", "429", "503")
        }

    def test_documentation_can_be_switched_off(self, own: Own) -> None:
        api = own(API_DOCS="false")
        for path in ("/docs", "/openapi.json", "/redoc", "/static-offline-docs/swagger-ui-bundle.js"):
            assert_rejected(api.get(path), 404, "Not Found")
        api.enqueue({})

    def test_internal_error_shows_no_trace(self, redis_server: RedisServer, tmp_path: Path) -> None:
        api = Api(tmp_path / "api.log", redis_server.environment(0, 1), app="tests.app.broken_api:app")
        try:
            response = api.get("/broken", headers={"X-Request-ID": "find-me"})
            assert_rejected(response, 500, "find-me")
            assert response.headers["X-Request-ID"] == "find-me"
            assert_guarded(response)
            api.program.wait_for_output("exception")  # logged after the answer
            [line] = [line for line in api.program.log_lines() if "exception" in line]
            assert line["request_id"] == "find-me"
        finally:
            api.stop()


class TestRedisGone:
    """Every answer comes within a second, is honest, and the service comes back with Redis."""

    @pytest.fixture(scope="class")
    @staticmethod
    def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        """Start a Redis to be mistreated."""
        server = RedisServer(tmp_path_factory.mktemp("own-redis"))
        yield server
        server.stop()

    @pytest.fixture(scope="class")
    @staticmethod
    def own_api(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
        """Start an API that uses it."""
        api = Api(tmp_path_factory.mktemp("own-api") / "api.log", own_redis.environment(0, 1))
        yield api
        api.stop()

    @staticmethod
    def _assert_unavailable(api: Api) -> None:
        answers = [api.post("/tasks/enqueue", json={"data": {}})]
        paths = (f"/tasks/status/{uuid7(0)}", "/health/ready", "/health/celery", "/metrics/celery")
        answers += [api.get(path) for path in paths]
        for response in answers:
            assert response.status_code == 503, response.url
            assert response.headers["Retry-After"]
            assert response.elapsed.total_seconds() < 1, response.url
        assert api.get("/health").status_code == 200

    def test_down_and_back(self, own_api: Api, own_redis: RedisServer) -> None:
        own_api.enqueue({})
        own_redis.stop()
        self._assert_unavailable(own_api)
        own_redis.start()
        own_api.enqueue({})
        assert own_redis.client(0).llen(DEFAULT_QUEUE) == 1

    def test_restart_that_nobody_noticed(self, own_api: Api, own_redis: RedisServer) -> None:
        own_api.enqueue({})
        own_redis.stop()
        own_redis.start()
        own_api.enqueue({})

    def test_hanging(self, own_api: Api, own_redis: RedisServer) -> None:
        own_api.enqueue({})
        own_redis.hang()
        self._assert_unavailable(own_api)

    def test_password_is_not_logged(self, own_api: Api, own_redis: RedisServer) -> None:
        assert "Redis is not available" in own_api.program.output()
        assert own_redis.password not in own_api.program.output()

    def test_nothing_listens(self, tmp_path: Path) -> None:
        nowhere = f"redis://127.0.0.1:{free_port()}"
        api = Api(tmp_path / "api.log", {"CELERY_BROKER_URL": nowhere, "CELERY_RESULT_BACKEND": nowhere})
        try:
            self._assert_unavailable(api)
        finally:
            api.stop()
