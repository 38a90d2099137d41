"""Queue entries as kombu's Redis transport writes them, built without a kombu connection.

``tests/app/test_api.py`` compares them with the ones Celery itself writes, so that a change in a new version is seen.
"""

import base64
import json
import re
import uuid
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.utils.saferepr import saferepr
from kombu.serialization import dumps as serialize
from kombu.utils.json import dumps

from celery_durable.signing import sign

# The places in which a task's messages differ; names that nobody else can have chosen.
PLACES = BODY, ID, ARGUMENTS, REQUEST, TAG = [uuid.uuid4().hex for _ in range(5)]
# What a plain call has in its body, beside the arguments.
EMBEDDED = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
# Values without anything inside of them, and levels that Celery must show for those in an argument's dictionary.
PLAIN = {str, int, float, bool}
SHALLOW = 2


def task_message(task: Task[Any, Any], task_id: str, args: tuple[Any, ...], queue: str, request_id: str | None) -> str:
    """Build what ``task.apply_async`` would push to ``queue``, with the request's id in its headers."""
    _, _, body = serialize((args, {}, EMBEDDED), serializer="json")
    values = {
        BODY: base64.b64encode(body.encode()).decode(),
        ID: task_id,
        ARGUMENTS: _shown(task.app, args),
        REQUEST: request_id,
        TAG: str(uuid.uuid4()),
    }
    texts = {place: json.dumps(value) for place, value in values.items()}
    return sign(queue, "".join([texts.get(part, part) for part in _parts(task, queue)]))


@cache
def _parts(task: Task[Any, Any], queue: str) -> list[str]:
    """Return the text of a task's messages, with PLACES where they differ.

    To build all of it for each message took three quarters of the time.
    """
    message = task.app.amqp.as_task_v2(
        ID,
        task.name,
        argsrepr=ARGUMENTS,
        time_limit=task.time_limit,
        soft_time_limit=task.soft_time_limit,
        ignore_result=task.ignore_result,
    )
    entry = json.loads(
        envelope(
            message.body,
            exchange="",
            routing_key=queue,
            headers={**message.headers, "request_id": REQUEST},
            properties={**message.properties, "delivery_mode": task.app.conf.task_default_delivery_mode},
        )
    )
    entry["body"], entry["properties"]["delivery_tag"] = BODY, TAG
    return re.split(f'"({"|".join(PLACES)})"', json.dumps(entry))


def _shown(app: Celery, args: tuple[Any, ...]) -> str:
    """Return arguments as Celery shows them to people: its own way is slow, and for most of them says what Python says.

    It differs where something is cut off, nested or escaped.
    """
    longest, levels = _limits(app)
    if levels >= SHALLOW and all(map(_is_shallow, args)):
        text = repr(args)
        if len(text) < longest and "\\" not in text and '"' not in text:
            return text
    return saferepr(args, longest, maxlevels=levels)


def _is_shallow(argument: Any) -> bool:
    values = argument.values() if type(argument) is dict else (argument,)
    return all(value is None or type(value) in PLAIN for value in values)


@cache
def _limits(app: Celery) -> tuple[int, int]:
    """Return the characters and the levels of arguments that Celery shows."""
    return app.amqp.argsrepr_maxsize, app.conf.task_repr_maxlevels


def envelope(body: Any, exchange: str, routing_key: str, headers: dict[str, Any], properties: dict[str, Any]) -> str:
    """Wrap ``body`` as kombu's virtual transport does."""
    content_type, content_encoding, serialized = serialize(body, serializer="json")
    return dumps(
        {
            "body": base64.b64encode(serialized.encode()).decode(),
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": {
                **properties,
                "delivery_info": {"exchange": exchange, "routing_key": routing_key},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
