"""Which tasks hit their time limits: changes nothing, prints JSON.

Runs on the host as root. On a worker's host it counts what the last hour's logs report, on an API's host it reads what
has been counted since its metrics began.
"""

import argparse
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hosttools import files, systemd, web
from hosttools.findings import tell

TIMEOUT = 20
HOUR = 3600
# What Celery raises in a task or says of it (celery_durable/worker/task_logs.py logs the name).
LIMITS = ("SoftTimeLimitExceeded", "TimeLimitExceeded")
SAMPLE = re.compile(r"^(celery_\w+)\{(.*)\} (\S+)$")


def from_logs(prefix: str, supervisor: bool) -> Counter[str]:
    """Return how many runs of each task hit a limit within the last hour."""
    if supervisor:
        files = sorted(Path(f"/var/log/{prefix}").glob("celery-worker*.log"))
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    else:
        lines = systemd.journal("--since=-1h", f"--unit={prefix}-celery*", timeout=TIMEOUT).splitlines()
    found: Counter[str] = Counter()
    since = datetime.fromtimestamp(time.time() - HOUR, tz=UTC).isoformat()
    for line in lines:
        if "TimeLimitExceeded" not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if (
            entry["timestamp"] > since
            and entry["message"].startswith("Task failed")
            and entry["message"].endswith(LIMITS)
        ):
            found[entry.get("task_name", "a task")] += 1
    return found


def from_api(url: str, key_file: str) -> dict[str, dict[str, Any]]:
    """Return for each task its runs by outcome, and how many took at most how long."""
    status, page = web.ask(f"{url}/metrics", {"X-API-Key": files.keys(key_file)[0]}, timeout=TIMEOUT)
    if status != 200:  # the doctor says what is wrong with the API
        return {}
    tasks: dict[str, dict[str, Any]] = {}
    for name, words, value in filter(
        None, (found and found.groups() for found in map(SAMPLE.match, page.splitlines()))
    ):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', words))
        if name == "celery_tasks_ended_total":
            tasks.setdefault(labels["task"], {"ended": {}, "run": {}})["ended"][labels["outcome"]] = float(value)
        if name == "celery_task_run_seconds_bucket":
            tasks.setdefault(labels["task"], {"ended": {}, "run": {}})["run"][labels["le"]] = float(value)
    return tasks


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--worker", action="store_true", help="this host has workers")
    parser.add_argument("--supervisor", action="store_true", help="supervisor runs them, not systemd")
    parser.add_argument("--api", metavar="URL")
    parser.add_argument("--key-file", default="")
    arguments = parser.parse_args()
    told: dict[str, Any] = {}
    if arguments.worker:
        told["hour"] = from_logs(arguments.prefix, arguments.supervisor)
    if arguments.api:
        told["tasks"] = from_api(arguments.api, arguments.key_file)
    tell(told)
