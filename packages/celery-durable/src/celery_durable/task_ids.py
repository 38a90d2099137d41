"""Ids of tasks: UUIDv7, so that each tells when it was made. Those that Celery makes for tasks of tasks do not."""

import json
import math
import os
import time
import uuid
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

TIMED_VERSION = 7
# The header that tells it of a task whose id does not.
MADE = "made"
# The headers that name tasks.
IDS = ("id", "root_id", "parent_id", "group")


def new_task_id() -> str:
    """Return an id that nothing else has."""
    # RFC 9562: milliseconds, the version, 12 random bits, the variant, 62 random bits.
    random = int.from_bytes(os.urandom(10))
    bits = (
        time.time_ns() // 1_000_000 << 80
        | TIMED_VERSION << 76
        | random >> 68 << 64
        | 0b10 << 62
        | random & (1 << 62) - 1
    )
    return str(uuid.UUID(int=bits))


def created(task_id: str) -> float | None:
    """Return when an id was made, in seconds since 1970; None for one that does not tell.

    The first 48 bits of a UUIDv7 are milliseconds (RFC 9562).
    """
    try:
        value = uuid.UUID(task_id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == TIMED_VERSION else None


def as_text(value: Any) -> Any:
    """Return an id, or several, with its text for each UUID: Celery takes both from a caller."""
    if isinstance(value, list | tuple | set):
        return [as_text(one) for one in value]
    return str(value) if isinstance(value, uuid.UUID) else value


def write_out(message: dict[str, Any]) -> None:
    """Let a message of kombu's name tasks by texts alone; its JSON has a notation for UUIDs."""
    headers, properties = message["headers"], message["properties"]
    for holder, name in [*((headers, name) for name in IDS), (properties, "correlation_id")]:
        if isinstance(holder.get(name), uuid.UUID):
            holder[name] = str(holder[name])


def task_of(message: Mapping[str, Any]) -> str:
    """Return the id of the task that a message of kombu's holds; nothing for one that holds no task.

    Celery's first protocol has it in the body (``task_protocol=1``).
    """
    headers = message["headers"]
    if "task" in headers or message.get("content-type") != "application/json":
        task_id = headers.get("id", "")
        return task_id if "task" in headers and isinstance(task_id, str) else ""
    try:
        body = json.loads(b64decode(message["body"]))
        return str(body["id"]) if "task" in body else ""
    except (ValueError, TypeError, KeyError):
        return ""


def made(headers: Mapping[str, Any]) -> float | None:
    """Return when a task was made, by its headers, in seconds since 1970; None when they do not tell."""
    task_id, since = headers.get("id"), headers.get(MADE)
    if isinstance(task_id, str) and (of_its_id := created(task_id)) is not None:
        return of_its_id
    try:
        return float(since) if isinstance(since, int | float) and math.isfinite(since) else None
    except OverflowError:
        return None
