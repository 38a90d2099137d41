"""Many tasks in one request: enqueued all or none, and looked up together."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.agents.config import DEFAULT_QUEUE
from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app
from celery_durable import scripts
from celery_durable.aio.clients import broker_client, results_client
from celery_durable.aio.publisher import NewTask, Published, Publisher
from celery_durable.keys import ACCEPTED, IDEMPOTENCY
from celery_durable.options import Options
from celery_durable.task_ids import new_task_id
from celery_durable.testing import RedisServer, wait_for
from tests.app.test_api import assert_guarded, assert_rejected, uuid7
from tests.app.test_enqueue_safety import (
    _append_only_file,
    assert_come_back_later,
    lose_tail,
    queued,
    running_api,
    running_redis,
)
from tests.support import REPOSITORY, Api, start_worker

pytestmark = pytest.mark.integration

assert celery_app


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """Return the shared Redis, with nothing from the test before."""
    redis_server.client(0).flushall()
    return redis_server


@pytest.fixture
def api(redis: RedisServer, lonely_api: Api) -> Api:
    """Return an API without workers."""
    assert redis
    return lonely_api


def batch(api: Api, *tasks: Any, **headers: str) -> httpx.Response:
    """Enqueue tasks, each its data, or a whole entry."""
    entries = [task if isinstance(task, dict) and "data" in task else {"data": task} for task in tasks]
    return api.post("/tasks/enqueue/batch", json={"tasks": entries}, headers=headers)


def keyed(key: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a task with an idempotency key."""
    return {"data": data, "idempotency_key": key}


def calls(redis: RedisServer) -> dict[str, int]:
    """Return how often each command has run."""
    stats: dict[str, Any] = redis.client(0).info("commandstats")
    return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


def nothing_is_there(redis: RedisServer) -> bool:
    """Tell whether a rejected batch has left nothing."""
    return redis.client(0).keys() == []


class TestEnqueue:
    """What 202 means."""

    def test_all_are_in_the_queue_in_order(self, api: Api, redis: RedisServer) -> None:
        response = batch(api, *({"number": number} for number in range(1000)), **{"X-Request-ID": "mine"})
        assert response.status_code == 202, response.text
        answer = response.json()
        ids = answer.pop("task_ids")
        assert answer == {"status": "pending", "message": "Tasks enqueued successfully"}
        assert_guarded(response)
        assert queued(redis) == ids
        assert len(set(ids)) == 1000
        assert redis.client(0).hgetall(ACCEPTED) == dict.fromkeys(ids, "1")
        entries = [json.loads(entry) for entry in redis.client(0).lrange(DEFAULT_QUEUE, 0, -1)]
        assert {entry["headers"]["request_id"] for entry in entries} == {"mine"}
        assert "'number': 999" in entries[0]["headers"]["argsrepr"]

    def test_each_is_logged_by_its_id(self, api: Api) -> None:
        ids = batch(api, *[{}] * 14, **{"X-Request-ID": "logged"}).json()["task_ids"]
        lines = [line for line in api.program.log_lines() if set(line.get("task_ids", "").split()) & {*ids}]
        assert [line["message"] for line in lines] == ["6 tasks accepted", "6 tasks accepted", "2 tasks accepted"]
        assert [task_id for line in lines for task_id in line["task_ids"].split()] == ids
        assert {line["request_id"] for line in lines} == {"logged"}

    def test_one_round_trip(self, api: Api, redis: RedisServer) -> None:
        before = calls(redis)
        assert batch(api, *(keyed(str(number), {}) for number in range(100))).status_code == 202
        assert calls(redis)["evalsha"] - before.get("evalsha", 0) == 1

    def test_signed_and_run(self, redis: RedisServer, tmp_path: Path) -> None:
        env = {**redis.environment(0, 1), "TASK_SIGNING_KEY": "k" * 32}
        api, worker = Api(tmp_path / "api.log", env), start_worker(tmp_path / "worker.log", env)
        try:
            ids = batch(api, {"a": 1}, keyed("sar-b", {"b": 2})).json()["task_ids"]
            assert [api.wait(task_id)["result"]["data"] for task_id in ids] == [{"a": 1}, {"b": 2}]
            wait_for(lambda: redis.client(0).hlen(ACCEPTED) == 0)
        finally:
            api.stop()
            worker.stop()

    def test_counted(self, api: Api) -> None:
        def enqueued() -> float:
            page = api.get("/metrics").text
            return sum(float(line.split()[1]) for line in page.splitlines() if "celery_tasks_enqueued_total{" in line)

        before = enqueued()
        batch(api, keyed("c-a", {}), {})
        batch(api, keyed("c-a", {}), {}, {})
        assert enqueued() - before == 4

    def test_a_script_that_redis_lacks_is_loaded(self, api: Api, redis: RedisServer) -> None:
        redis.client(0).script_flush()
        assert batch(api, {}, {}).status_code == 202
        assert len(queued(redis)) == 2


class TestIdempotencyKeys:
    """Each task has its own."""

    def test_a_repeated_batch_enqueues_what_is_new(self, api: Api, redis: RedisServer) -> None:
        first = batch(api, keyed("arbewin-a", {"n": 1}), {"n": 2}, keyed("arbewin-c", {"n": 3})).json()["task_ids"]
        again = batch(api, keyed("arbewin-c", {"n": 3}), keyed("arbewin-new", {}), keyed("arbewin-a", {"n": 1})).json()[
            "task_ids"
        ]
        assert [again[0], again[2]] == [first[2], first[0]]
        assert queued(redis) == [*first, again[1]]
        assert set(redis.client(0).hvals(ACCEPTED)) == {"1"}

    def test_the_same_as_of_a_single_call(self, api: Api, redis: RedisServer) -> None:
        one = api.enqueue({"n": 1}, **{"Idempotency-Key": "tsaoasc-a"})
        first, second = batch(api, keyed("tsaoasc-a", {"n": 1}), keyed("tsaoasc-b", {"n": 2})).json()["task_ids"]
        assert first == one
        assert api.enqueue({"n": 2}, **{"Idempotency-Key": "tsaoasc-b"}) == second
        assert queued(redis) == [one, second]
        assert all(3590 <= int(redis.client(0).ttl(key)) <= 3600 for key in redis.client(0).keys(f"{IDEMPOTENCY}*"))

    @pytest.mark.parametrize("size", [1, 3])
    def test_other_data(self, api: Api, redis: RedisServer, size: int) -> None:
        kept = api.enqueue({"n": 1}, **{"Idempotency-Key": "od-a"})
        keys = redis.client(0).keys()
        tasks = [keyed("od-b", {}), {}, keyed("od-a", {"n": 2})][-size:]
        response = batch(api, *tasks)
        assert_rejected(
            response, 422, f"tasks.{size - 1}.idempotency_key: The Idempotency-Key was used with other data"
        )
        assert queued(redis) == [kept]
        assert sorted(redis.client(0).keys()) == sorted(keys)
        assert batch(api, *tasks[:-1], {}).status_code == 202

    def test_of_another_process(self, api: Api, redis: RedisServer, tmp_path: Path) -> None:
        """Redis alone knows of the conflict."""
        with running_api(redis, redis, tmp_path) as other:
            batch(other, keyed("oap-a", {"n": 1}), {})
        rejected = batch(api, {}, keyed("oap-b", {}), keyed("oap-a", {"n": 2}))
        assert_rejected(rejected, 422, "tasks.2.idempotency_key: The Idempotency-Key was used with other data")
        assert len(queued(redis)) == 2
        assert len(redis.client(0).keys(f"{IDEMPOTENCY}*")) == 1

    def test_twice_in_a_batch(self, api: Api, redis: RedisServer) -> None:
        rejected = batch(api, keyed("tiab-a", {}), {}, keyed("tiab-a", {}))
        assert_rejected(rejected, 422, "tasks.2.idempotency_key: tasks.0 has the same.")
        assert nothing_is_there(redis)

    def test_of_the_whole_request(self, api: Api, redis: RedisServer) -> None:
        assert_rejected(
            batch(api, {}, **{"Idempotency-Key": "a"}), 422, "Idempotency-Key: each task of a batch has its own"
        )
        assert nothing_is_there(redis)


class TestNothing:
    """What is rejected leaves nothing."""

    @pytest.mark.parametrize(
        ("tasks", "words"),
        [
            ([], "body.tasks: "),
            ([{}] * 1001, "body.tasks: "),
            ([{"data": {}}, {}], "body.tasks.1.data: Field required."),
            ([{"data": {}}, {"data": []}], "body.tasks.1.data: "),
            ([{"data": {}}, 7], "body.tasks.1: "),
            ([{"data": {}}, {"data": {"a": 2**63}}], "tasks.1.data.a: the integer does not fit"),
            ([{"data": {}, "more": 1}], "body.tasks.0.more: Extra inputs"),
            ([{"data": {}}, {"data": {}, "idempotency_key": ""}], "body.tasks.1.idempotency_key: must be 1 to 255 vis"),
            ([{"data": {}, "idempotency_key": "two words"}], "body.tasks.0.idempotency_key: must be 1 to 255 visible"),
            ([{"data": {}, "idempotency_key": 7}], "body.tasks.0.idempotency_key: "),
        ],
    )
    def test_a_wrong_entry(self, api: Api, redis: RedisServer, tasks: list[Any], words: str) -> None:
        assert_rejected(api.post("/tasks/enqueue/batch", json={"tasks": tasks}), 422, words)
        assert nothing_is_there(redis)

    def test_a_large_body(self, api: Api, redis: RedisServer) -> None:
        assert_rejected(batch(api, {"a": "x" * 200_000}, {"a": "x" * 70_000}), 413, "larger than 262144 bytes")
        assert nothing_is_there(redis)

    def test_a_full_queue(self, redis: RedisServer, tmp_path: Path) -> None:
        with running_api(redis, redis, tmp_path, QUEUE_MAX_LENGTH="5") as api:
            assert batch(api, {}, {}, {}).status_code == 202
            assert_come_back_later(batch(api, {}, {}, {}), 429, "The queue is too full for 3 more, 3 tasks wait")
            assert len(queued(redis)) == 3
            assert batch(api, {}, {}).status_code == 202
            assert_come_back_later(batch(api, {}), 429, "The queue is full, 5 tasks wait")

    @pytest.mark.parametrize(("name", "words"), [("refuse", ""), ("mark", "replicated")])
    def test_replicas_that_lack_it(self, redis: RedisServer, tmp_path: Path, name: str, words: str) -> None:
        settings = {"BROKER_REPLICAS_WANTED": "1", "BROKER_UNREPLICATED": name}
        with running_api(redis, redis, tmp_path, **settings) as api:
            response = batch(api, {}, {})
        assert response.status_code == (202 if words else 503)
        assert response.json().get("replicated") is (False if words else None)

    @pytest.mark.parametrize("name", [DEFAULT_QUEUE, ACCEPTED, IDEMPOTENCY])
    def test_a_key_of_another_type(self, api: Api, redis: RedisServer, name: str) -> None:
        tasks = [{}, keyed("akoat-odd", {}), keyed("akoat-b", {})]
        if name == IDEMPOTENCY:
            name += hashlib.sha256(tasks[1]["idempotency_key"].encode()).hexdigest()
        redis.client(0).sadd(name, "x")
        assert_come_back_later(batch(api, *tasks), 503, "")
        assert redis.client(0).keys() == [name]

    def test_a_broker_that_is_gone(self, redis: RedisServer, tmp_path: Path) -> None:
        with running_redis(tmp_path / "own") as broker, running_api(broker, redis, tmp_path) as api:
            broker.hang()
            response = batch(api, {}, {})
            assert_come_back_later(response, 503, "")
            assert response.elapsed.total_seconds() < 1


def test_a_batch_that_redis_forgets_is_back_once(redis: RedisServer, tmp_path: Path) -> None:
    with running_redis(tmp_path / "own") as broker, running_api(broker, redis, tmp_path) as api:
        kept = batch(api, {}, {}).json()["task_ids"]
        size = _append_only_file(broker).stat().st_size
        lost = batch(api, {}, keyed("abtrfibo-a", {})).json()["task_ids"]
        lose_tail(broker, size)
        wait_for(lambda: set(lost) <= set(queued(broker)))
        assert sorted(queued(broker)) == sorted(kept + lost)
        assert batch(api, keyed("abtrfibo-a", {})).json()["task_ids"] == lost[1:]


def test_other_apis_get_the_rules_too(redis: RedisServer) -> None:
    async def publish() -> list[str]:
        options = Options(broker_url=redis.url(0), result_url=redis.url(1))
        async with broker_client(options) as broker, results_client(options) as results:
            publisher = Publisher(options, broker, results)
            assert await publisher.publish_batch(example_agent_task, [], None) == []
            with pytest.raises(ValueError, match="the same idempotency key"):
                await publisher.publish_batch(example_agent_task, [NewTask({}, "a"), NewTask({}, "a")], None)
            published = await publisher.publish_batch(example_agent_task, [NewTask({}, "a"), NewTask({})], None)
            return [one.task_id for one in published]

    ids = asyncio.run(publish())
    assert queued(redis) == ids


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis whose length no API has looked at."""
    with running_redis(tmp_path / "redis") as server:
        yield server


def test_many_large_batches_at_once_are_no_outage(own_redis: RedisServer) -> None:
    """40,000 tasks take this process and Redis seconds, which once counted as silence of Redis."""

    async def publish() -> list[list[Published]]:
        options = Options(broker_url=own_redis.url(0), result_url=own_redis.url(1), queue_max_length=100_000)
        async with broker_client(options) as broker, results_client(options) as results:
            publisher, tasks = (
                Publisher(options, broker, results),
                [NewTask({"number": number}) for number in range(1000)],
            )
            batches = [publisher.publish_batch(example_agent_task, tasks, None) for _ in range(40)]
            return await asyncio.gather(*batches)

    published = asyncio.run(publish())
    assert set(queued(own_redis)) == {one.task_id for each in published for one in each}
    assert own_redis.client(0).llen(DEFAULT_QUEUE) == 40_000


@pytest.fixture
def restricted(tmp_path: Path) -> Iterator[Api]:
    """Start an API whose users have the rights that the roles give to them."""
    secret = "Test-only-" + "pass-0123456789"
    env, servers = {}, []
    for variable, name in (
        ("CELERY_BROKER_URL", "typesafe-secrets-redis-broker"),
        ("CELERY_RESULT_BACKEND", "typesafe-secrets-redis"),
    ):
        server = RedisServer(tmp_path / name)
        servers.append(server)
        admin: Any = server.client(0)
        config = (REPOSITORY / "deploy/kubernetes/secret-files" / name / "redis.conf").read_text()
        [line] = re.findall("^user api (.*)$", config, re.MULTILINE)
        rules = re.sub(r"#\w+", f">{secret}", line).replace(" +client|setinfo", "")
        admin.execute_command("ACL", "SETUSER", "api", *re.findall(r"\([^)]*\)|\S+", rules))
        for text in scripts._texts:
            admin.script_load(text)
        env[variable] = f"redis://api:{secret}@127.0.0.1:{server.port}/0"
    api = Api(tmp_path / "api.log", env)
    yield api
    api.stop()
    for server in servers:
        assert [entry["object"] for entry in server.client(0).acl_log()] == []
        server.stop()


def test_the_rights_of_the_api_are_enough(restricted: Api) -> None:
    ids = batch(restricted, keyed("trotaae-a", {}), {}).json()["task_ids"]
    assert batch(restricted, {}, keyed("trotaae-a", {})).json()["task_ids"][1] == ids[0]
    assert batch(restricted, {}, keyed("trotaae-a", {"n": 1})).status_code == 422
    assert [task["status"] for task in statuses(restricted, *ids)] == ["PENDING"] * 2


def statuses(api: Api, *task_ids: str) -> list[dict[str, Any]]:
    """Return what is answered about several tasks."""
    response = api.post("/tasks/status", json={"task_ids": task_ids})
    assert response.status_code == 200, response.text
    assert_guarded(response)
    answer = response.json()
    assert list(answer) == ["tasks"]
    tasks: list[dict[str, Any]] = answer["tasks"]
    return tasks


class TestStatus:
    """Many at once are answered like one after the other."""

    def test_each_like_its_own(self, api: Api, redis: RedisServer) -> None:
        stored = {
            "done": '{"status": "SUCCESS", "result": {"text": "\\ud800"}}',
            "failed": '{"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["No"]}}',
            "odd": "no JSON",
            "deep": '{"status": "SUCCESS", "result": ' + "[" * 50_000 + "]" * 50_000 + "}",
        }
        for task_id, text in stored.items():
            redis.client(1).set(f"celery-task-meta-{task_id}", text)
        redis.client(1).sadd("celery-task-meta-type", "x")
        pending = api.enqueue({})
        ids = [pending, *stored, "nothing/at all", "type", uuid7(3700), uuid7(1), pending.upper(), "done"]
        answers = statuses(api, *ids)
        assert [answer["code"] for answer in answers] == [200] * 5 + [404, 200, 410, 404, 200, 200]
        for task_id, answer in zip(ids, answers, strict=True):
            single = api.get(f"/tasks/status/{task_id}")
            assert answer.pop("code") == single.status_code
            assert answer.pop("task_id") == (task_id.lower() if task_id == pending.upper() else task_id)
            expected = single.json()
            expected.pop("task_id", None)
            if single.status_code == 410:  # has the age in it
                answer["detail"] = re.sub(r"\d+ s ago", "", answer["detail"])
                expected["detail"] = re.sub(r"\d+ s ago", "", expected["detail"])
            assert answer == expected

    def test_round_trips(self, api: Api, redis: RedisServer) -> None:
        ids = [new_task_id() for _ in range(1000)]
        for task_id in ids:
            redis.client(1).set(f"celery-task-meta-{task_id}", '{"status": "SUCCESS", "result": 1}')
        before = calls(redis)
        assert {task["status"] for task in statuses(api, *ids)} == {"SUCCESS"}
        after = calls(redis)
        assert after["mget"] - before.get("mget", 0) == 1
        assert [after.get(name, 0) - before.get(name, 0) for name in ("get", "hmget")] == [0, 0]

    @pytest.mark.parametrize(
        ("ids", "words"),
        [
            ([], "body.task_ids: "),
            (["x"] * 1001, "body.task_ids: "),
            (["x", ""], "body.task_ids.1: must have 1 to 255 characters."),
            (["x" * 256], "body.task_ids.0: must have 1 to 255 characters."),
            (["x", 7], "body.task_ids.1: "),
        ],
    )
    def test_rejected(self, api: Api, ids: list[Any], words: str) -> None:
        assert_rejected(api.post("/tasks/status", json={"task_ids": ids}), 422, words)

    @pytest.mark.parametrize("gone", ["broker", "results"])
    def test_unavailable(self, tmp_path: Path, gone: str) -> None:
        with (
            running_redis(tmp_path / "broker") as broker,
            running_redis(tmp_path / "results") as results,
            running_api(broker, results, tmp_path) as api,
        ):
            task_id = api.enqueue({})
            {"broker": broker, "results": results}[gone].hang()
            began = time.monotonic()
            assert_come_back_later(api.post("/tasks/status", json={"task_ids": [task_id]}), 503, "")
            assert time.monotonic() - began < 1
