"""Workers here: whether somebody has changed while they run what their files say."""

import base64
import contextlib
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from hosttools import files, procfs
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, WARNING, WORKERS, Finding
from hosttools.redis_client import Redis, RedisError, log_in, opened, through_sentinels


@apart
def check(app: str) -> Iterator[Finding]:
    """Ask the workers here whether somebody has told them to work otherwise than their files say."""
    meant = dict(commands(app, socket.gethostname()))
    by_hand, page = "(celery control): restart it", "QueueTooOld"
    answers = questions(app, "active_queues")
    for node, times in Counter(node for node, _ in answers).items():
        if times > 1:
            what = f"{times} workers are named {node}: one of them is no unit's{others_named(node)}"
            yield Finding(CRITICAL, what, page, WORKERS)
    for node, answer in answers:
        if node in meant and queue_names(answer) != meant[node]:
            takes, wanted = " and ".join(queue_names(answer)) or "no queue", " and ".join(meant[node])
            what = f"the worker {node} takes from {takes} instead of {wanted} {by_hand}"
            yield Finding(CRITICAL, what, page, WORKERS)
    default = files.settings(f"/etc/{app}/backend.env").get("TASK_DEFAULT_RATE_LIMIT", "")
    # The application's own limits stand in its code.
    live = Path(f"/opt/{app}/backend")
    sources = "".join(files.read(live / name) for name in files.of_release(live) if name.endswith(".py"))
    if re.search(r"\brate_limit *=", sources):
        return
    for node, answer in questions(app, "registered", taskinfoitems=["rate_limit"]):
        for task, limit in re.findall(r"([^' ]+) \[rate_limit=([^\]]+)\]", str(answer)):
            if node in meant and limit != default:
                what = f"the worker {node} runs {task} at most {limit} {by_hand}"
                yield Finding(WARNING, what, page, WORKERS, suspect=True)


def commands(app: str, host: str) -> Iterator[tuple[str, list[str]]]:
    """Return the names of this host's workers, each with the queues that its unit or program says."""
    places = [
        *Path("/etc/systemd/system").glob(f"{app}-celery*.service"),
        *Path("/etc/supervisor/conf.d").glob("*.conf"),
    ]
    for command in "\n[".join(map(files.read, places)).split("\n["):
        told = dict(re.findall(r"--(hostname|queues)=(\S+)", command))
        if len(told) == 2:
            yield f"{told['hostname'].partition('@')[0]}@{host}", sorted(told["queues"].split(","))


def others_named(node: str) -> str:
    """Name the units and sessions here that run a worker of that name."""
    word = f"--hostname={node.partition('@')[0]}@"
    groups: dict[str, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        if any(argument.startswith(word) for argument in files.read(place / "cmdline").split("\0")):
            groups.setdefault(procfs.group(place.name), place.name)
    return "".join(f"; process {number} of {group}" for group, number in groups.items())


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
