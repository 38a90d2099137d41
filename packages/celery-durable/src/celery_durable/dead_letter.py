"""The form of a dead letter: a message that no worker will run, and why."""

import base64
import hashlib
import json
import logging
import time
from typing import Any

from celery_durable import signing
from celery_durable.options import Options
from celery_durable.task_ids import task_of

logger = logging.getLogger(__name__)

# Bytes that a dead letter keeps of a message that is larger than any worker takes.
KEPT_BYTES = 4096
# Characters that a dead letter shows of anything that a message says.
LONGEST_SHOWN = 500


def digest_of(raw: bytes) -> str:
    """Return a short name of a message's text."""
    return hashlib.sha256(raw).hexdigest()[:16]


def arguments(options: Options, queue: str, raw: bytes, reason: str) -> list[str | bytes]:
    """Return the arguments of the script that dead-letters a message of ``queue``."""
    # What a forged message says of itself must change nothing: the id may be that of a task of ours.
    message = None if signing.rejection(options, queue, raw) else signing.parse(raw)
    headers = message["headers"] if message else {}
    task_id, digest = task_of(message) if message else "", hashlib.sha256(raw).hexdigest()
    letter: dict[str, Any] = {
        "id": shown(task_id) or digest[:32],
        "task": shown(headers.get("task", "")),
        "queue": queue,
        "reason": shown(reason),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    kept = raw
    if len(raw) > options.message_limit:
        kept = raw[:KEPT_BYTES]
        letter["reason"] += f" Only its first {KEPT_BYTES} bytes are kept."
        letter |= {"size": len(raw), "sha256": digest}
    letter["message"] = base64.b64encode(kept).decode()
    extra = log_fields(headers, queue)
    logger.error("Task %s becomes a dead letter: %s", letter["id"], letter["reason"], extra=extra)
    return [raw, json.dumps(letter), task_id]


def log_fields(headers: dict[str, Any], queue: str) -> dict[str, Any]:
    """Return what a log line says of a message that is known to be ours."""
    task_id, name = shown(headers.get("id")), shown(headers.get("task"))
    return {"task_id": task_id, "task_name": name, "request_id": shown(headers.get("request_id")), "queue": queue}


def shown(value: object) -> str:
    """Return what a message says in a form that an operator's terminal can show."""
    text = value if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else "?" for char in text[:LONGEST_SHOWN])
