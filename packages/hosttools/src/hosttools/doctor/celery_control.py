"""Celery's remote control, spoken without Celery: the host's Python has none."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from hosttools import files
from hosttools.redis_client import Redis, RedisError, log_in, opened, through_sentinels


def questions(app: str, method: str, **arguments: object) -> list[tuple[str, object]]:
    """Ask all workers something, as the operator does; return the answers that come within a second."""
    mailbox = f"doctor-{os.getpid()}-{method}-{time.monotonic_ns()}.reply.celery.pidbox"
    headers = {"clock": 0, "expires": time.time() + 1}
    question = {
        "method": method,
        "arguments": arguments,
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": mailbox,
        "reply_to": {"exchange": "", "routing_key": mailbox},
    }
    properties = {
        "delivery_mode": 1,
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": mailbox,
    }
    message = {
        "body": base64.b64encode(json.dumps(question).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    answers: list[tuple[str, object]] = []
    # What is wrong with the way there is told by clients().
    with contextlib.suppress(OSError, RedisError, ValueError, KeyError, TypeError), contextlib.ExitStack() as stack:
        secret = Path(f"/etc/{app}/secrets/operator/CELERY_BROKER_URL")
        sentinels = files.read(secret).startswith("sentinel://")
        url = urlsplit(through_sentinels(secret) if sentinels else files.read(secret).strip())
        connection = Redis(stack.enter_context(opened(url)))
        log_in(connection, url)
        connection.call("SELECT", url.path[1:] or "0")
        listening = connection.call("PUBLISH", f"/{url.path[1:] or '0'}.celery.pidbox", json.dumps(message))
        until = time.monotonic() + 1
        while isinstance(listening, int) and len(answers) < listening and (left := until - time.monotonic()) > 0:
            reply = connection.call("BRPOP", mailbox, f"{left:.2f}")
            if isinstance(reply, list) and len(reply) > 1:
                answers += json.loads(base64.b64decode(json.loads(reply[1])["body"])).items()
        # Answers that come later are kept by nobody.
        connection.call("EXPIRE", mailbox, "60")
    return answers


def queue_names(answer: object) -> list[str]:
    """Return the queues of a worker's answer."""
    return sorted(queue["name"] for queue in answer) if isinstance(answer, list) else []
