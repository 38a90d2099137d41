"""Runs inside worker and beat under test: one line in the ledger when a task starts and ends, and when beat sends.

Python imports this module at its start because PYTHONPATH names its folder. The ledger lies outside Redis, so that it
knows what a faulted Redis may have forgotten. Each event is one write to a file opened for appending: lines of several
processes do not mix, and what is written survives the process.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Of the ten seconds that a run of the pool asyncio waits: it takes two, as other tasks do.
SHORTER = 5
# Of the tasks that it adds to those of the application: seconds of work, and the rate of those with a limit.
SECONDS = 0.7
RATE_LIMIT = "20/m"
# What beat sends, and seconds between two runs of it.
TICK, TICK_SECONDS = "chaos.tick", 2.0
LEDGER = Path("/var/lib/chaos/ledger/ledger.jsonl")


def _birth(pid: int | str) -> str | None:
    """Return when a process was started, in ticks since the machine's boot; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def _unfinished_elsewhere(task_id: str) -> list[int]:
    """Return the processes that still live and that began this task earlier without having ended it."""
    running: dict[tuple[int, str], int] = {}
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    for event in map(json.loads, lines):
        if event["id"] == task_id:
            process = (event["pid"], event["birth"])
            running[process] = running.get(process, 0) + {"start": 1, "end": -1}.get(event["event"], 0)
    return [pid for (pid, birth), runs in running.items() if runs > 0 and _birth(pid) == birth]


def _write(event: str, task_id: str, **details: object) -> None:
    pid = os.getpid()
    line = {"event": event, "id": task_id, "pid": pid, "birth": _birth(pid), "time": time.time(), **details}
    file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def started(task_id: str, task: Any, **_: Any) -> None:
    """Write that a task begins, and whether it runs already. Celery's own are those of a deployment's gate."""
    if not task.name.startswith("celery."):
        _write("start", task_id, alive=_unfinished_elsewhere(task_id))


def ended(task_id: str, task: Any, state: str | None, **_: Any) -> None:
    """Write that a task has ended, and how."""
    if not task.name.startswith("celery."):
        _write("end", task_id, state=state)


def _has_rejected(task_id: str) -> bool:
    events = map(json.loads, LEDGER.read_text().splitlines())
    return any(event["id"] == task_id and event.get("state") == "REJECTED" for event in events)


async def work(task: Any, *_: Any) -> None:
    """Work for a moment, and write that the work is done: its end is written when Celery has stored it."""
    await wait(SECONDS)
    _write("done", task.request.id)


async def rejecting(task: Any, *_: Any) -> None:
    """Reject the message once, then work."""
    if not _has_rejected(task.request.id):
        await wait(SECONDS)
        raise Reject("once", requeue=True)
    await work(task)


def _add_task(body: Any, name: str, **options: Any) -> None:
    """Add a task to every application: a coroutine in the pool that is for them, a function in the others."""

    def function(*arguments: Any) -> None:
        asyncio.run(body(*arguments))

    task: Any = shared_task(bind=True, name=name, **options)
    task(body if "CELERY_CUSTOM_WORKER_POOL" in os.environ else function)


def tick(sender: Any, **_: Any) -> None:
    """Give beat its schedule."""
    sender.scheduler.update_from_dict({TICK: {"task": TICK, "schedule": TICK_SECONDS}})


def planned(headers: Any, **_: Any) -> None:
    """Write that beat is about to send a run."""
    _write("planned", headers["id"])


def sent(headers: Any, **_: Any) -> None:
    """Write that the broker has it."""
    _write("sent", headers["id"])


# Other Python programs of the unit import nothing more.
PROGRAM = sys.argv[1:] if Path(sys.argv[0]).name in ("celery", "celery-durable") else []
if "worker" in PROGRAM:
    from celery import shared_task, signals
    from celery.exceptions import Reject

    wait = asyncio.sleep
    asyncio.sleep = lambda seconds: wait(seconds / SHORTER)  # type: ignore[assignment]  # no task wants a result of it
    signals.task_prerun.connect(started, weak=False)
    signals.task_postrun.connect(ended, weak=False)
    # What tests/chaos/probe/client.py sends.
    _add_task(work, "chaos.work")
    _add_task(rejecting, "chaos.rejecting")
    _add_task(work, "chaos.limited", rate_limit=RATE_LIMIT)
    _add_task(work, TICK)
elif "beat" in PROGRAM:
    from celery import signals

    signals.beat_init.connect(tick, weak=False)
    signals.before_task_publish.connect(planned, weak=False)
    signals.after_task_publish.connect(sent, weak=False)
