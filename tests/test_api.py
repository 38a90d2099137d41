"""The API next to a real Redis without workers: what it accepts, refuses, and says when Redis is gone."""

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.agents.broker import ACCEPTED
from app.agents.config import DEFAULT_QUEUE
from tests.support import REPOSITORY, Api, RedisServer, free_port

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
    return api.client.post("/tasks/enqueue", content=body, headers={**JSON, **headers})


def assert_refused(response: httpx.Response, status: int, words: str) -> None:
    """Check the common shape of an error and that it says what is wrong."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert words in detail
    assert "\n" not in detail


class TestEnqueue:
    """A task that is accepted is in the queue."""

    def test_accepted(self, lonely_api: Api, redis_server: RedisServer) -> None:
        response = lonely_api.client.post("/tasks/enqueue", json={"data": {"key": "value"}})
        assert response.status_code == 202
        answer = response.json()
        task_id = uuid.UUID(answer.pop("task_id"))
        assert task_id.version == 7
        assert answer == {"status": "pending", "message": "Task enqueued successfully"}
        [entry] = redis_server.client(0).lrange(DEFAULT_QUEUE, 0, -1)
        assert json.loads(entry)["headers"]["id"] == str(task_id)

    def test_same_message_as_celery_itself(self, lonely_api: Api, redis_server: RedisServer) -> None:
        data = {"text": "ü€😀", "n": [1, 2.5, None, True]}
        lonely_api.enqueue(data)
        script = (
            "from app.agents.tasks.example_task import example_agent_task as task\n"
            f"task.apply_async(('ours', {data!r}), task_id='ours', headers={{'request_id': 'ours'}})"
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
            async with httpx.AsyncClient(base_url=lonely_api.url, limits=httpx.Limits(max_connections=300)) as client:
                posts = (client.post("/tasks/enqueue", json={"data": {}}, timeout=20) for _ in range(300))
                return [response.status_code for response in await asyncio.gather(*posts)]

        assert asyncio.run(flood()) == [202] * 300
        assert redis_server.client(0).llen(DEFAULT_QUEUE) == 300

    def test_request_id_is_kept_when_sane(self, lonely_api: Api, redis_server: RedisServer) -> None:
        response = lonely_api.client.post("/tasks/enqueue", json={"data": {}}, headers={"X-Request-ID": "me.1-2_3"})
        assert response.headers["X-Request-ID"] == "me.1-2_3"
        [entry] = redis_server.client(0).lrange(DEFAULT_QUEUE, 0, -1)
        assert json.loads(entry)["headers"]["request_id"] == "me.1-2_3"

    @pytest.mark.parametrize("request_id", ["two words", "x" * 129, "new{}line"])
    def test_request_id_is_replaced_when_odd(self, lonely_api: Api, request_id: str) -> None:
        response = lonely_api.client.get("/health", headers={"X-Request-ID": request_id})
        assert response.headers["X-Request-ID"] not in ("", request_id)


class TestRefused:
    """A body that the queue cannot carry is refused with a sentence and leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def nothing_enqueued(self, redis_server: RedisServer) -> Iterator[None]:
        """No refused request may leave a task."""
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
        assert_refused(post(lonely_api, body), 422, words)

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_content_type(self, lonely_api: Api, content_type: str) -> None:
        assert_refused(post(lonely_api, b'{"data": {}}', **{"content-type": content_type}), 415, "application/json")

    def test_too_large_by_its_own_word(self, lonely_api: Api) -> None:
        assert_refused(post(lonely_api, b"x" * (256 * 1024 + 1)), 413, "larger than 262144 bytes")

    def test_too_large_in_chunks(self, lonely_api: Api) -> None:
        chunks = (b"x" * 64 * 1024 for _ in range(5))
        assert_refused(post(lonely_api, chunks), 413, "larger than 262144 bytes")


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
    """Whatever arrives is accepted or refused."""
    assert post(lonely_api, body).status_code in (202, 422)


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
        assert_refused(lonely_api.client.get(f"/tasks/status/{uuid7(age=3700)}"), 410, "results expire after 3600 s")

    @pytest.mark.parametrize("age", [0, 3500, -3700])
    def test_never_accepted(self, lonely_api: Api, age: float) -> None:
        assert_refused(lonely_api.client.get(f"/tasks/status/{uuid7(age)}"), 404, "never accepted here")

    @pytest.mark.parametrize(
        "task_id",
        ["abc", str(uuid.uuid4()), "0" * 36, f"{{{uuid7(0)}}}", "%00", "x" * 5000],
        ids=["word", "version-4", "zeros", "braces", "nul", "long"],
    )
    def test_malformed(self, lonely_api: Api, task_id: str) -> None:
        assert_refused(lonely_api.client.get(f"/tasks/status/{task_id}"), 422, "must be a UUID of version 7")

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

    def test_started_shows_nothing_of_the_host(self, lonely_api: Api, redis_server: RedisServer) -> None:
        task_id = uuid7(0)
        stored = {"status": "STARTED", "result": {"pid": 1, "hostname": "celery@host"}}
        redis_server.client(1).set(f"celery-task-meta-{task_id}", json.dumps(stored))
        status = lonely_api.status(task_id)
        assert (status["result"], status["error"], status["meta"]) == (None, None, None)

    def test_odd_numbers_in_a_result(self, lonely_api: Api, redis_server: RedisServer) -> None:
        task_id = uuid7(0)
        redis_server.client(1).set(f"celery-task-meta-{task_id}", '{"status": "SUCCESS", "result": [NaN, Infinity]}')
        assert lonely_api.status(task_id)["result"] == [None, None]


class TestHealth:
    """With Redis, without workers."""

    def test_lives_and_is_ready(self, lonely_api: Api) -> None:
        assert lonely_api.client.get("/health").json() == {"status": "healthy"}
        assert lonely_api.client.get("/health/ready").json() == {"status": "ready"}

    def test_no_workers(self, lonely_api: Api) -> None:
        response = lonely_api.client.get("/health/celery")
        assert response.status_code == 503
        assert response.json() == {"status": "unhealthy", "workers": [], "active_tasks": 0}
        assert "Retry-After" in response.headers
        assert response.elapsed.total_seconds() < 0.5
        metrics = lonely_api.client.get("/metrics/celery")
        assert metrics.json() == {"workers": {"count": 0, "names": []}, "tasks": {"active": 0, "scheduled": 0}}


class TestSurface:
    """Shape of everything else."""

    def test_unknown_route_and_method(self, lonely_api: Api) -> None:
        assert_refused(lonely_api.client.get("/nothing"), 404, "Not Found")
        assert_refused(lonely_api.client.get("/tasks/enqueue"), 405, "Method Not Allowed")

    def test_documentation(self, lonely_api: Api) -> None:
        page = lonely_api.client.get("/docs")
        assert page.status_code == 200
        # The browser may reach this host alone.
        assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(assets) >= 3
        assert [lonely_api.client.get(asset).status_code for asset in assets] == [200] * len(assets)
        paths = lonely_api.client.get("/openapi.json").json()["paths"]
        enqueue = paths["/tasks/enqueue"]["post"]
        schema = enqueue["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["data"]["type"] == "object"
        assert "$ref" not in json.dumps(schema)  # it is not among the document's components
        assert set(enqueue["responses"]) == {"202", "413", "415", "422", "429", "503"}
        [key] = [parameter for parameter in enqueue["parameters"] if parameter["in"] == "header"]
        assert key["name"].lower() == "idempotency-key"
        assert not key["required"]
        assert "same task id" in key["description"]
        assert set(paths["/tasks/status/{task_id}"]["get"]["responses"]) == {"200", "404", "410", "422", "503"}

    def test_internal_error_shows_no_trace(self, lonely_api: Api, redis_server: RedisServer) -> None:
        task_id = uuid7(0)
        redis_server.client(1).set(f"celery-task-meta-{task_id}", "broken")
        response = lonely_api.client.get(f"/tasks/status/{task_id}", headers={"X-Request-ID": "find-me"})
        assert_refused(response, 500, "find-me")
        assert response.headers["X-Request-ID"] == "find-me"
        lonely_api.program.wait_for_output("exception")  # logged after the answer
        [line] = [line for line in lonely_api.program.log_lines() if "exception" in line]
        assert line["request_id"] == "find-me"


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
        answers = [api.client.post("/tasks/enqueue", json={"data": {}})]
        paths = (f"/tasks/status/{uuid7(0)}", "/health/ready", "/health/celery", "/metrics/celery")
        answers += [api.client.get(path) for path in paths]
        for response in answers:
            assert response.status_code == 503, response.url
            assert response.headers["Retry-After"]
            assert response.elapsed.total_seconds() < 1, response.url
        assert api.client.get("/health").status_code == 200

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
