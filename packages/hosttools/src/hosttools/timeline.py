"""What this host's logs say about one task, as JSON; the playbook merges all hosts'.

Runs on the host as root, and changes nothing. A line belongs to the task when it names the task's id, or the id of a
request that did. What systemd and supervisor say of the platform's units is listed separately: only with the whole
timeline at hand it is known up to when it matters.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hosttools import files, web
from hosttools.findings import tell

# Seconds that clocks of different hosts may differ.
CLOCKS = 5
TIMEOUT = 5
# Ids of this version begin with the time (RFC 9562).
TIMED_VERSION = 7
LEVELS = ["EMERGENCY", "ALERT", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]  # syslog's priorities
FIELDS = "MESSAGE,PRIORITY,UNIT,_HOSTNAME,_PID,_SYSTEMD_UNIT"
SUPERVISOR_LOG = "/var/log/supervisor/supervisord.log"
SUPERVISOR_LINE = re.compile(r"(?P<time>\S+ \S+),(?P<ms>\d{3}) (?P<level>[A-Z]+) (?P<message>.*)")
# A client that waits asks many times a second.
ANSWERED_POLL = re.compile(r'"GET \S*/tasks/status/\S+ HTTP/[\d.]+" 200')


@dataclass
class Line:
    """One line of a log; ``about_unit`` when it tells of a unit, and not of the task."""

    time: str
    host: str
    unit: str
    level: str
    message: str
    request_id: str = ""
    about_unit: bool = False


def moment(seconds: float) -> str:
    """Return a time as the application's logs write it."""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")


def parse(text: str, written: str, host: str, unit: str, level: str) -> Line:
    """Return a log line; what the application writes as JSON tells time and level itself."""
    try:
        entry = json.loads(text)
        line = Line(entry["timestamp"], host, unit, entry["level"], entry["message"], entry.get("request_id", ""))
    except (ValueError, TypeError, KeyError):
        return Line(written, host, unit, level, text)
    if exception := entry.get("exception", "").strip():
        line.message += f" ({exception.splitlines()[-1].strip()})"
    return line


def belongs(text: str, task: str, requests: Iterable[str]) -> bool:
    """Tell whether a line is about the task, or about one of its requests and no other task."""
    if task.lower() in text.lower():
        return ANSWERED_POLL.search(text.replace('\\"', '"')) is None
    try:
        entry = json.loads(text)
        return entry.get("request_id") in requests and not {"task_id", "task_ids"} & entry.keys()
    except (ValueError, AttributeError):
        return False


def journalctl(units: list[str], since: float, *options: str) -> Iterator[dict[str, Any]]:
    """Yield the journal's entries of these units, those that other hosts have sent here included."""
    command = ["journalctl", "--merge", "--output=json", "--all", f"--output-fields={FIELDS}", f"--since=@{since:.0f}"]
    command += [f"--unit={unit}" for unit in units]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout or ():
            yield json.loads(line)
        process.terminate()


def from_journal(entry: dict[str, Any]) -> tuple[str, Line]:
    """Return an entry's text, and the line that it is."""
    text = entry.get("MESSAGE") or ""
    if isinstance(text, list):  # bytes that are no text
        text = bytes(text).decode(errors="replace")
    written = moment(int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
    unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or ""
    level = LEVELS[int(entry.get("PRIORITY", 6))]
    line = parse(text, written, entry.get("_HOSTNAME", ""), unit.removesuffix(".service"), level)
    line.about_unit = entry.get("_PID") == "1"
    return text, line


def log_files(directory: Path, since: float) -> Iterator[tuple[str, Line]]:
    """Yield the lines of the log files that supervisor writes, rotated ones included."""
    for file in sorted(directory.glob("*.log*")):
        written = file.stat().st_mtime
        if written < since:
            continue
        with gzip.open(file, "rt", errors="replace") if file.suffix == ".gz" else file.open(errors="replace") as lines:
            for text in map(str.rstrip, lines):
                yield text, parse(text, moment(written), os.uname().nodename, file.name.partition(".")[0], "INFO")


def supervisor(file: Path, since: float, prefix: str) -> Iterator[Line]:
    """Yield what supervisor says of the workers; its clock is the host's local time."""
    for name in (file.with_name(f"{file.name}.1"), file):
        for text in name.read_text(errors="replace").splitlines() if name.exists() else ():
            if (found := SUPERVISOR_LINE.match(text)) is None or f"{prefix}-celery-worker" not in found["message"]:
                continue
            seconds = datetime.fromisoformat(found["time"]).timestamp() + int(found["ms"]) / 1000
            if seconds >= since:
                level = {"WARN": "WARNING", "CRIT": "CRITICAL"}.get(found["level"], found["level"])
                yield Line(moment(seconds), os.uname().nodename, "supervisor", level, found["message"], about_unit=True)


def timeline(task: str, prefix: str, log_directory: Path, since: float) -> list[Line]:
    """Return all lines about the task, and those about units."""
    ours, units = [f"{prefix}-*"], [f"{prefix}-*", "redis-server*", "supervisor"]
    # journalctl looks for the text itself: a journal may hold millions of lines.
    named = [
        from_journal(entry) for entry in journalctl(ours, since, f"--grep={re.escape(task)}", "--case-sensitive=no")
    ]
    in_files = list(log_files(log_directory, since))
    named += [(text, line) for text, line in in_files if task.lower() in text.lower()]
    found = [line for text, line in named if belongs(text, task, ())]
    requests = {line.request_id for line in found if line.request_id}
    if requests:
        pattern = "|".join(map(re.escape, sorted(requests)))
        # A pattern of small letters alone would find capitals too.
        asked = journalctl(ours, since, f"--grep={pattern}", "--case-sensitive")
        candidates = [*map(from_journal, asked), *in_files]
        found += [
            line for text, line in candidates if task.lower() not in text.lower() and belongs(text, task, requests)
        ]
    found += [from_journal(entry)[1] for entry in journalctl(units, since, "_PID=1")]
    found += supervisor(Path(SUPERVISOR_LOG), since, prefix)
    return found


def oldest(prefix: str, log_directory: Path) -> str:
    """Return the time of the oldest line that is left; empty when there is none."""
    first = next(journalctl([f"{prefix}-*"], 0), None)
    times = [from_journal(first)[1].time] if first else []
    times += [line.time for _, line in log_files(log_directory, 0)][:1]
    return min(times, default="")


def created(task: str) -> float | None:
    """Return when an id was made, in seconds since 1970; None for one that does not tell, which is not of the API's."""
    try:
        value = uuid.UUID(task)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == TIMED_VERSION else None


def state(url: str, key_file: Path, task: str) -> str:
    """Return what the API says about the task, in one sentence."""
    address = f"{url}/tasks/status/{quote(task, safe='')}"
    status, body = web.ask(address, {"X-API-Key": files.keys(key_file)[0]}, timeout=TIMEOUT)
    if not status:
        return f"The API does not answer: {body}"
    answer = json.loads(body)
    if status != 200:
        return f"{status}: {answer.get('detail', '')}"
    return str(answer["status"]) + (f": {answer['error']}" if answer["error"] else "")


def main() -> None:
    """Print lines, state and the oldest line's time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="id of the task")
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--log-directory", type=Path, help="where supervisor writes the workers' log files")
    parser.add_argument("--api", metavar="URL")
    parser.add_argument("--key-file", type=Path)
    arguments = parser.parse_args()
    task = arguments.task
    directory = arguments.log_directory or Path("/var/log") / arguments.prefix
    made = created(task)
    told = {
        "created": moment(made) if made else "",
        "lines": [asdict(line) for line in timeline(task, arguments.prefix, directory, made - CLOCKS if made else 0)],
        "oldest": oldest(arguments.prefix, directory),
        "state": state(arguments.api, arguments.key_file, task) if arguments.api else "",
    }
    tell(told)
