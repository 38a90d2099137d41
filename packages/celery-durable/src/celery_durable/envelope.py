"""Queue entries as kombu's Redis transport writes them, built without a kombu connection.

``tests/test_api.py`` compares them with the ones Celery itself writes, so that a change in a new version is seen.
"""

import base64
import uuid
from typing import Any

from celery import Task
from kombu.serialization import dumps as serialize
from kombu.utils.json import dumps

from celery_durable.signing import sign


def task_message(task: Task[Any, Any], task_id: str, args: tuple[Any, ...], queue: str, request_id: str | None) -> str:
    """Build what ``task.apply_async`` would push to ``queue``, with the request's id in its headers."""
    message = task.app.amqp.as_task_v2(
        task_id,
        task.name,
        args=args,
        time_limit=task.time_limit,
        soft_time_limit=task.soft_time_limit,
        ignore_result=task.ignore_result,
    )
    entry = envelope(
        message.body,
        exchange="",
        routing_key=queue,
        headers={**message.headers, "request_id": request_id},
        properties={**message.properties, "delivery_mode": task.app.conf.task_default_delivery_mode},
    )
    return sign(queue, entry)


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
