"""What Celery has stored about a task, for whoever reads it without Celery."""

import bz2
import json
import lzma
import math
import zlib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from celery import Celery
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC  # type: ignore[attr-defined]
from kombu.utils.json import object_hook

# What the state of a task is called whose stored result nobody can read.
UNKNOWN = "UNKNOWN"
# Seconds, ten years: Redis wants a number for a key that goes by itself.
FOR_EVER = 10 * 365 * 86400
# Bytes of a compressed result: some hundred of them may be those of a worker that wants to fill its readers' memory.
LARGEST = 64 * 1024 * 1024
# What kombu calls the ways of result_compression that Python has, and that can stop at a length.
DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"application/x-gzip": zlib.decompressobj,
    b"application/x-bz2": bz2.BZ2Decompressor,
    b"application/x-lzma": partial(lzma.LZMADecompressor, memlimit=2 * LARGEST),
}


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
        text = _decompress(stored)
    except (KeyError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
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


def _decompress(stored: bytes) -> bytes:
    if not stored.startswith(COMPRESSED_PAYLOAD_MAGIC):
        return stored
    method, _, body = stored.removeprefix(COMPRESSED_PAYLOAD_MAGIC).partition(b"\0")
    decompressor = DECOMPRESSORS[method]()
    text: bytes = decompressor.decompress(body, LARGEST)
    if not decompressor.eof:
        raise ValueError(f"It is cut off, or has more than {LARGEST} bytes when it is decompressed.")
    return text


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
