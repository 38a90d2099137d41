"""Workers here: whether somebody has changed while they run what their files say."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hosttools import files, procfs
from hosttools.doctor.celery_control import questions, queue_names
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, WARNING, WORKERS, Finding


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
