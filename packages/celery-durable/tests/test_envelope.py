"""Messages of a task, put together from texts: what Celery would have written, whatever the arguments are."""

import base64
import json
from typing import Any

from celery import Celery
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_durable import install
from celery_durable.envelope import task_message
from celery_durable.task_ids import new_task_id

app = Celery(set_as_current=False)
install(app)


@app.task(soft_time_limit=50, time_limit=60)
def task(task_id: str, data: dict[str, Any]) -> None:
    """Be sent."""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.dictionaries(st.text(), json_values), request_id=st.none() | st.text())
@example(data={"a": "x" * 968}, request_id=None)
@example(data={"a": "it's"}, request_id=None)
@example(data={"a": 'say "x"', "b": "\\", "c": "\n", "d": "ü😀"}, request_id='"')
def test_like_celery(data: dict[str, Any], request_id: str | None) -> None:
    task_id = new_task_id()
    message = json.loads(task_message(task, task_id, (task_id, data), "celery", request_id))
    expected = task.app.amqp.as_task_v2(
        task_id, task.name, (task_id, data), time_limit=task.time_limit, soft_time_limit=task.soft_time_limit
    )
    assert message["headers"] == json.loads(json.dumps({**expected.headers, "request_id": request_id}))
    assert message["properties"].items() >= expected.properties.items()
    assert json.dumps(json.loads(base64.b64decode(message["body"]))) == json.dumps(expected.body)


def test_lengths_around_celerys_limit() -> None:
    for length in range(960, 1000):
        args = ("0" * 36, {"a": "x" * length})
        shown = json.loads(task_message(task, args[0], args, "celery", None))["headers"]["argsrepr"]
        assert shown == task.app.amqp.as_task_v2(args[0], task.name, args).headers["argsrepr"]


def test_no_two_have_the_same_tag() -> None:
    messages = [json.loads(task_message(task, "x", (), "celery", None)) for _ in range(2)]
    assert len({message["properties"]["delivery_tag"] for message in messages}) == 2
