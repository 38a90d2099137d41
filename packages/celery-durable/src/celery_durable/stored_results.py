"""What Celery has stored about a task, for whoever reads it without Celery."""

import json
import math
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.backends.base import decompress_payload  # type: ignore[attr-defined]
from kombu.utils.json import object_hook

# What the state of a task is called whose stored result nobody can read.
UNKNOWN = "UNKNOWN"
# Seconds, ten years: Redis wants a number for a key that goes by itself.
FOR_EVER = 10 * 365 * 86400


def kept_seconds(app: Celery) -> int:
    """Return how long results of ``app`` are kept; Celery takes a number or a timedelta, and nothing for ever."""
    expires = app.conf.result_expires
    return int(expires.total_seconds() if isinstance(expires, timedelta) else expires or FOR_EVER)


def parse(stored: bytes) -> dict[str, Any]:
    """Return what Celery has stored about a task, made of what JSON knows alone: dates are texts, NaN is null.

    Raises:
        ValueError: it is not Celery's.
        RecursionError: it is nested too deep for what is left of the stack.
    """
    try:
        text = decompress_payload(stored)
    except Exception as error:
        raise ValueError(f"It is compressed in a way that cannot be read here: {error!r}") from error
    meta = json.loads(text, object_hook=_plain, parse_constant=lambda _: None, parse_float=_finite)
    if not isinstance(meta, dict) or "status" not in meta:
        raise ValueError("What is stored as a task's result is not Celery's.")
    return meta


def state_of(stored: bytes) -> Any:
    """Return a task's state from what Celery has stored about it; UNKNOWN where that cannot be read."""
    try:
        return parse(stored)["status"]
    except (ValueError, RecursionError):
        return UNKNOWN


def _finite(number: str) -> float | None:
    """Return a number; null for one like 1e999, which other languages' JSON writes and Python would call infinite."""
    value = float(number)
    return value if math.isfinite(value) else None


def _plain(value: dict[str, Any]) -> Any:
    """Turn what kombu writes for a date, a UUID, bytes ... into a text, and leave what it does not know as it is."""
    try:
        revived = object_hook(value)
        if revived is value:
            return value
        if isinstance(revived, bytes):
            return revived.decode()
        return revived.isoformat().replace("+00:00", "Z") if hasattr(revived, "isoformat") else str(revived)
    except Exception:  # noqa: BLE001 - what looks like one may be anything
        return value
