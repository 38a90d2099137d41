"""Ids of tasks: UUIDv7, so that each tells when it was made. Those that Celery makes for tasks of tasks do not."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

from uuid_utils import compat

TIMED_VERSION = 7
# The header that tells it of a task whose id does not.
MADE = "made"


def new_task_id() -> str:
    """Return an id that nothing else has."""
    return str(compat.uuid7())


def created(task_id: str) -> float | None:
    """Return when an id was made, in seconds since 1970; None for one that does not tell.

    The first 48 bits of a UUIDv7 are milliseconds (RFC 9562).
    """
    try:
        value = uuid.UUID(task_id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == TIMED_VERSION else None


def made(headers: Mapping[str, Any]) -> float | None:
    """Return when a task was made, by its headers, in seconds since 1970; None when they do not tell."""
    task_id, since = headers.get("id"), headers.get(MADE)
    if isinstance(task_id, str) and (of_its_id := created(task_id)) is not None:
        return of_its_id
    try:
        return float(since) if isinstance(since, int | float) and math.isfinite(since) else None
    except OverflowError:
        return None
