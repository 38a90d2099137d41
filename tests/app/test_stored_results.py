"""Whatever Celery can store about a task, GET /tasks/status answers, and says the truth."""

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC  # type: ignore[attr-defined]
from celery.exceptions import Ignore
from celery.states import EXCEPTION_STATES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_durable.stored_results import UNKNOWN, state_of
from celery_durable.task_ids import new_task_id
from celery_durable.testing import RedisServer
from tests.support import Api

pytestmark = pytest.mark.integration

# Halves of surrogate pairs and control characters among them.
texts = st.text(st.characters(blacklist_categories=()), max_size=20)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts,
    st.just({"exc_type": 5}), st.just({"exc_type": "ValueError"}), st.just({"__type__": "datetime", "__value__": "no"}),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(texts, inner, max_size=4),
        st.fixed_dictionaries(
            {"exc_type": inner}, optional={"exc_message": inner, "exc_module": inner, "pid": inner, "hostname": inner}
        ),
    ),
    max_leaves=12,
)
states = st.one_of(
    st.sampled_from(
        ["SUCCESS", "FAILURE", "RETRY", "REVOKED", "STARTED", "PENDING", "RECEIVED", "PROGRESS", "IGNORED"]
    ),
    texts,
    st.none(),
    st.integers(0, 5),
)
ids = st.one_of(
    st.uuids(version=4).map(str),
    st.builds(new_task_id),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: text.strip("./")),
)


@pytest.fixture(scope="module")
def plain(redis_server: RedisServer) -> Celery:
    """Celery as it comes, which stores where the API looks."""
    return Celery("plain", broker=redis_server.url(0), backend=redis_server.url(1))


def ask(api: Api, task_id: str) -> dict[str, Any]:
    """Return the status of a task with any id."""
    response = api.get(f"/tasks/status/{quote(task_id, safe='')}")
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ids, states, values)
def test_update_state(lonely_api: Api, plain: Celery, task_id: str, state: Any, meta: Any) -> None:
    plain.backend.forget(task_id)  # a success stays
    plain.backend.store_result(task_id, meta, state)
    told = ask(lonely_api, task_id)
    assert told["task_id"] == task_id
    assert told["status"] == (state if isinstance(state, str) else json.dumps(state))
    assert told["result"] == (meta if state == "SUCCESS" else None)
    assert (told["error"] is None) == (state not in EXCEPTION_STATES)
    assert "\n" not in (told["error"] or "")
    if state == "PROGRESS" and not (isinstance(meta, dict) and meta.keys() == {"pid", "hostname"}):
        assert told["meta"] == meta


@pytest.mark.parametrize("state", sorted(EXCEPTION_STATES))
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("half \ud800 of a pair"), "ValueError: half \ud800 of a pair"),
        (ValueError(), "ValueError"),
        (ValueError({"a": dt.date(2026, 11, 29)}), "ValueError: "),
        (Ignore("é\nsecond line"), "Ignore: é"),
        (KeyError(object()), "KeyError: <object object"),
        (None, "The task gave no reason."),
        ("a sentence", "a sentence"),
        ({"step": 3}, '{"step": 3}'),
        ([], "The task gave no reason."),
    ],
)
def test_errors(lonely_api: Api, plain: Celery, state: str, error: Any, line: str) -> None:
    task_id = str(uuid.uuid4())
    plain.backend.store_result(task_id, error, state)
    told = ask(lonely_api, task_id)
    assert told["error"].startswith(line)
    assert told["meta"] == (None if isinstance(error, Exception) else error)


def test_values_of_kombus_own(lonely_api: Api, plain: Celery) -> None:
    """What its JSON has a notation for, and what looks like it."""
    noted = {"__type__": "none of kombu's", "__value__": 1}
    value = {
        "day": dt.date(2026, 11, 29),
        "price": Decimal("1.50"),
        "id": uuid.UUID(int=1),
        "text": b"text",
        "bytes": b"\xff\xfe",
        "infinite": float("inf"),
        "noted": noted,
    }
    plain.backend.store_result("values", value, "SUCCESS")
    told = ask(lonely_api, "values")["result"]
    assert told.pop("bytes")  # in some form: there is no text for them
    assert told == {
        "day": "2026-11-29",
        "price": "1.50",
        "id": str(uuid.UUID(int=1)),
        "text": "text",
        "infinite": None,
        "noted": noted,
    }


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
@pytest.mark.parametrize("state", ["SUCCESS", "STARTED", "FAILURE"])
def test_compressed(lonely_api: Api, redis_server: RedisServer, compression: str, state: str) -> None:
    """https://github.com/celery/celery/issues/9370: the setting result_compression."""
    app = Celery("compressing", backend=redis_server.url(1), set_as_current=False)
    app.conf.result_compression = compression
    task_id, value = new_task_id(), ValueError("on purpose") if state == "FAILURE" else "x" * 1000
    app.backend.store_result(task_id, value, state)
    told = ask(lonely_api, task_id)
    assert told["status"] == state
    assert told["result"] == (value if state == "SUCCESS" else None)
    assert (told["error"] or "").endswith("on purpose" if state == "FAILURE" else "")


@pytest.mark.attack("a bound for what is decompressed")
@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_what_decompresses_to_more_than_readers_have_memory_for(
    lonely_api: Api, redis_server: RedisServer, compression: str
) -> None:
    app = Celery("bomb", backend=redis_server.url(1), set_as_current=False)
    app.conf.result_compression = compression
    task_id = new_task_id()
    app.backend.store_result(task_id, " " * 70_000_000, "SUCCESS")
    assert redis_server.client(1).strlen(f"celery-task-meta-{task_id}") < 200_000
    told = ask(lonely_api, task_id)
    assert (told["status"], told["result"]) == ("UNKNOWN", None)
    assert "from 64 MiB at most" in told["error"]


def test_compressed_rubbish(lonely_api: Api, redis_server: RedisServer) -> None:
    redis_server.client(1).set("celery-task-meta-good", COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\0rubbish")
    redis_server.client(1).set("celery-task-meta-bad", COMPRESSED_PAYLOAD_MAGIC + b"application/x-nothing\0rubbish")
    for task_id in ("good", "bad"):
        assert ask(lonely_api, task_id)["status"] == "UNKNOWN"


@pytest.mark.parametrize("depth", [100, 500, 950])
def test_deep_results(lonely_api: Api, redis_server: RedisServer, depth: int) -> None:
    """As deep as a worker's stack lets Celery write it."""
    deep = "[" * depth + "]" * depth
    redis_server.client(1).set("celery-task-meta-deep", f'{{"status": "SUCCESS", "result": {deep}}}')
    response = lonely_api.get("/tasks/status/deep")
    assert response.status_code == 200
    assert deep in response.text


def test_deeper_than_any_stack(lonely_api: Api, redis_server: RedisServer) -> None:
    redis_server.client(1).set("celery-task-meta-deep", '{"status": "SUCCESS", "result": ' + "[" * 100_000)
    told = ask(lonely_api, "deep")
    assert (told["status"], told["result"]) == ("UNKNOWN", None)
    assert "too deep" in told["error"]


@pytest.mark.parametrize("stored", [b"", b"x", b"[]", b"{}", b"\xff", None])
def test_what_somebody_else_has_stored(lonely_api: Api, redis_server: RedisServer, stored: bytes | None) -> None:
    """Not 503 for ever, as if Redis were away, and not 500."""
    key, client = "celery-task-meta-foreign", redis_server.client(1)
    client.delete(key)
    if stored is None:
        client.lpush(key, "x")  # a key of another type
    else:
        client.set(key, stored)
    told = ask(lonely_api, "foreign")
    assert told["status"] == "UNKNOWN"
    assert "not Celery's" in told["error"]


@given(st.binary(max_size=50))
def test_what_is_not_celerys_has_no_state(stored: bytes) -> None:
    assert state_of(stored) == UNKNOWN


def test_a_subtask_and_a_plain_task_wait(lonely_api: Api, redis_server: RedisServer, plain: Celery) -> None:
    """Celery makes their ids itself."""
    del plain
    for task_id in (str(uuid.uuid4()), "nightly", "a/b c"):
        redis_server.client(0).hset("accepted", task_id, "1")
        assert ask(lonely_api, task_id)["status"] == "PENDING"
        redis_server.client(0).hdel("accepted", task_id)
