"""Ids of tasks: UUIDv7, so that each tells when it was made."""

import uuid

from uuid_utils import compat

TIMED_VERSION = 7


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
