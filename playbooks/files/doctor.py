#!/usr/bin/env python3
"""What is wrong with this host: looks at everything, changes nothing, prints findings as JSON.

Runs on the host as root, with the system's Python alone. Thresholds are those of the alerts
(roles/monitoring/templates/alerts.yml.j2), whose pages say why.

A finding has a layer: what lies lower causes what lies higher, so the filter doctor_findings sorts by it. A suspect is
harmless by itself, but explains what fails above it, unless something that is certain by itself explains that.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

# The platform's own addresses are never behind a proxy, whatever the environment says.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
# A note is told only beside something critical; facts are for the comparison between hosts.
FACTS, CRITICAL, WARNING, NOTE = 0, 1, 2, 3
# Looks of SCAN at 10,000 keys each: two million, some 10 ms for each look.
MOST_SCANS = 200
HOST, NETWORK, REDIS, REACH, RIGHTS, FILES, UNITS, WORKERS, QUEUES, LATER = range(1, 11)
# Shares of a whole, and seconds.
DISK_LEFT, MEMORY_LEFT, BROKER_MEMORY, MEMORY_FULL = 0.1, 0.1, 0.7, 0.97
OLD_TASK, LONG_QUEUE, STUCK_MARGIN = 120, 100, 60
CERTIFICATE_WARNING, CERTIFICATE_CRITICAL = 20 * 24 * 3600, 3 * 24 * 3600
CLOCKS_DIFFER, SLOW_NETWORK, RECENT = 2, 0.25, 300
# Seconds: for each command and answer, and for everything.
PATIENCE, WITHIN = 3, 7.5
# Settings of Redis that redis.conf does not name, and that stop clients when somebody changes them.
DEFAULTS = {
    "min-replicas-to-write": "0",
    "stop-writes-on-bgsave-error": "yes",
    "maxmemory-clients": "0",
    "proto-max-bulk-len": "536870912",
    "client-query-buffer-limit": "1073741824",
    "no-appendfsync-on-rewrite": "no",
}
RULES = "/etc/nftables-platform.conf"
URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REDIS_URL")
# What says that the API lives, is ready, and that workers answer.
PATHS = ("/health", "/health/ready", "/health/celery")
# Of these only figures of several minutes tell.
ONLY_ALERTS = {
    "ApiErrors",
    "ApiSlow",
    "EventLoopBlocked",
    "TasksFail",
    "TasksRetry",
    "TasksTimeOut",
    "WorkerRestartLoop",
}
SECRETS = {*URLS, "TASK_SIGNING_KEY", "CONTROL_SIGNING_KEY", "BACKEND_API_KEY", "FLOWER_BASIC_AUTH"}
SECRETS |= {"DURABLE_SIGNING_KEY", "DURABLE_CONTROL_KEY", "DURABLE_SENTINEL_PASSWORD"}
# Of quoted logs: bounded, but long enough for a whole chain of exceptions.
LONGEST_QUOTE = 1200
TRACEBACK = re.compile(r"^(?:Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE)
FRAME = re.compile(r'^[ |+]*File "([^"]+)", line (\d+), in (.+)(?:\n[ |]+(?!File )(\S.*))?$', re.MULTILINE)
# Where each unit stands, by the page that helps when it is away.
LAYERS = {"": NETWORK, "RedisDown": REDIS, "SentinelsMissing": REDIS, "ApiDown": UNITS, "NoWorkers": WORKERS}
REASON = re.compile(
    r"Failed with result|Main process exited|Failed at step|Failed to (?!kill)|[Ee]rror|ERROR|CRITICAL|FATAL|Can't"
    r"|refuse|already in use|denied|No such file|Killed|[Bb]ad directive|Invalid|Bad file format|Unexpected end of file"
    r"|not permitted|No space left|Read-only file system|corrupt"
)


@dataclass
class Finding:
    """Something that is wrong."""

    severity: int
    what: str
    runbook: str
    layer: int = LATER
    suspect: bool = False
    certain: bool = False
    difference: bool = False


# What still runs when the time is up.
RUNNING: set[subprocess.Popen[str]] = set()


def say(*command: str, patience: float = PATIENCE, **environment: str) -> tuple[bool, str]:
    """Run a command; return whether it succeeded and what it says, also when it takes too long or is not there."""
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
        ) as run:
            RUNNING.add(run)
            try:
                told, _ = run.communicate(timeout=patience)
                return run.returncode == 0, told.strip()
            except subprocess.TimeoutExpired as error:
                run.kill()
                return False, str(error)
            finally:
                RUNNING.discard(run)
    except OSError as error:
        return False, str(error)


Check = Callable[..., Iterable["Finding"]]


def apart(check: Check) -> Check:
    """Keep what goes wrong inside one check from hiding the others; what a connection says is for the caller."""

    @functools.wraps(check)
    def run(*given: Any, **named: Any) -> Iterator[Finding]:
        try:
            yield from check(*given, **named)
        except (RefusedError, ConnectionError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            yield blind(check.__name__, error)

    return run


def blind(check: str, error: Exception) -> Finding:
    """Return that something could not be looked at."""
    line = traceback.extract_tb(error.__traceback__)[-1].lineno
    what = f"the doctor could not look: {type(error).__name__}: {quote(str(error))} ({check}, line {line} of doctor.py)"
    return Finding(WARNING, what, "")


def text(file: Path | str) -> str:
    """Return what a file holds, nothing if there is none."""
    try:
        return Path(file).read_text(errors="replace")
    except OSError:
        return ""


# Units and processes


def units(wanted: dict[str, str]) -> Iterator[Finding]:
    """Look whether each unit runs and comes back after a boot; ``wanted`` names each unit's runbook."""
    names = "Id LoadState ActiveState SubState Result ExecMainCode ExecMainStatus NRestarts UnitFileState ControlGroup"
    names += " FreezerState DropInPaths NeedDaemonReload StateChangeTimestampMonotonic"
    _, told = say("systemctl", "show", f"--property={names.replace(' ', ',')}", *wanted)
    shown = told.split("\n\n")
    if wanted and (len(shown) != len(wanted) or "=" not in told):
        yield Finding(CRITICAL, f"systemd does not answer: {quote(told) or 'systemctl says nothing'}", "", HOST)
        return
    for (unit, runbook), properties in zip(wanted.items(), shown, strict=False):
        yield from state(unit, runbook, dict(line.split("=", 1) for line in properties.splitlines() if "=" in line))
    if say("systemctl", "is-active", "systemd-journald")[1] in ("inactive", "failed"):
        yield Finding(CRITICAL, "systemd-journald does not run: nobody's logs are kept", "UnitRestartLoop", LATER)
    for line in say("systemctl", "list-units", "--failed", "--plain", "--no-legend")[1].splitlines():
        if line and (unit := line.split()[0].removesuffix(".service")) not in wanted:
            yield Finding(WARNING, f"{unit} has failed{because(unit)}", "UnitRestartLoop")


@apart
def state(unit: str, runbook: str, properties: dict[str, str]) -> Iterator[Finding]:
    """Judge what systemd says of a unit."""
    layer = LAYERS.get(runbook, LATER)
    active, result = properties.get("ActiveState", "unknown"), properties.get("Result", "")
    since = time.monotonic() - int(properties.get("StateChangeTimestampMonotonic") or 0) / 1e6
    restarts = int(properties.get("NRestarts") or 0)
    yield from drop_ins(unit, layer, properties.get("DropInPaths", "").split())
    if properties.get("LoadState") == "masked":
        again = " again" if active == "active" else ""
        yield Finding(
            CRITICAL, f"{unit} is masked, it cannot start{again}: systemctl unmask {unit}", runbook, layer, certain=True
        )
    elif properties.get("LoadState") in ("not-found", "bad-setting", "error"):
        problem = properties["LoadState"].replace("-", " ")
        yield Finding(CRITICAL, f"{unit} has no unit file that systemd can read ({problem})", runbook, layer)
    elif properties.get("FreezerState", "running") not in ("running", ""):
        yield Finding(
            CRITICAL, f"{unit} is {properties['FreezerState']}: systemctl thaw {unit}", runbook, layer, certain=True
        )
    elif properties.get("SubState") == "auto-restart" or (active == "activating" and restarts > 1):
        # Between two tries nothing has failed yet.
        ended = f", {how(properties)}" if result not in ("success", "") else ""
        failed = f"{unit} fails again and again ({restarts} restarts{ended}){because(unit)}"
        yield Finding(CRITICAL, failed, runbook, layer)
    elif active == "inactive" and result in ("success", ""):
        yield Finding(CRITICAL, f"{unit} is inactive: it was stopped {since:.0f} s ago", runbook, layer, certain=True)
    elif active == "activating" and since < 10:
        yield Finding(WARNING, f"{unit} is starting", runbook, layer)
    elif active not in ("active", "reloading"):
        ended = f" ({how(properties)})" if result not in ("success", "") else f" for {since:.0f} s"
        yield Finding(CRITICAL, f"{unit} is {active}{ended}{because(unit)}", runbook, layer)
    else:
        yield from processes(unit, runbook, layer, properties.get("ControlGroup", ""))
        if restarts > 2 and since < RECENT:
            yield Finding(
                WARNING,
                f"{unit} was restarted {restarts} times, last {since:.0f} s ago{because(unit)}",
                runbook,
                layer,
                suspect=True,
            )
    if properties.get("UnitFileState", "enabled") in ("disabled", "linked", "enabled-runtime"):
        yield Finding(WARNING, f"{unit} is {properties['UnitFileState']}: it would not start after a boot", runbook)
    if properties.get("NeedDaemonReload") == "yes":
        changed = f"{unit}'s unit file was changed and is not in force yet: systemctl daemon-reload"
        yield Finding(WARNING, changed, "drift", FILES, suspect=True)


def how(properties: dict[str, str]) -> str:
    """Say how a unit's process ended."""
    code = {"1": "exit code", "2": "signal", "3": "signal"}.get(properties.get("ExecMainCode", ""), "")
    return f"{properties.get('Result')}, {code} {properties.get('ExecMainStatus')}" if code else properties["Result"]


def because(unit: str) -> str:
    """Return the reason that a unit's log gives, whole, and which program of others has its port if it is taken."""
    _, log = say("journalctl", "--no-pager", "--output=cat", "--lines=200", f"--unit={unit}")
    said = reason(log)
    if "irective" in said and (directives := re.findall(r"^>>> (.*)$", log, re.MULTILINE)):
        said += f" {quote(directives[-1])}"
    # systemd says more after it, with less in it. Its helper's "in use" is not always counted among the unit's lines.
    if taken := [line for line in reasons(log)[-4:] if "in use" in line or "listening socket" in line]:
        said = quote(taken[0])
        said += listener(wanted_port(taken[0], say("systemctl", "cat", unit)[1]), unit)
    return f": {said}" if said else ""


def reasons(log: str) -> list[str]:
    """Return the lines of a log that look like a reason, those of the program itself where there are any."""
    lines = [line for line in log.splitlines() if REASON.search(line)]
    own = [line for line in lines if not re.search(r"Failed with result|Main process exited|Failed to start", line)]
    return own or lines


def reason(log: str) -> str:
    """Return the last reason in a log: a line, or a chain of exceptions."""
    found = reasons(log)
    # What comes after an exception often says less.
    raised = [line for line in found[-4:] if '"exception"' in line]
    printed = [trace.start() for trace in TRACEBACK.finditer(log)]
    if printed and found and not raised and found[-1] in log[printed[-1] :].splitlines():
        # Up to what systemd, or a logger, says next.
        next_line = r"\n(?:\{|\S+\.(?:service|socket): |(?:Failed to|Start|Stopp)\S* )"
        return quote(re.split(next_line, log[_first_of_chain(log, printed) :], maxsplit=1)[0])
    return quote((raised or found or [""])[-1])


def _first_of_chain(log: str, starts: list[int]) -> int:
    """Return where the chain begins that ends with the last traceback of a log."""
    first = starts[-1]
    for before in reversed(starts[:-1]):
        if not re.search(r"\n\n(?:The above exception was|During handling of)[^\n]*\n\n$", log[before:first]):
            break
        first = before
    return first


def chain(told: str) -> str:
    """Return a printed chain of exceptions in one line: each whole, with the frame that raised it and ours."""
    links = []
    for block in re.split(r"\n\n(?:The above exception was|During handling of)[^\n]*\n\n", told):
        frames = list(FRAME.finditer(block))
        # Behind the last frame: source that goes over several lines, marks below it, then the exception.
        rest = block[frames[-1].end() :] if frames else TRACEBACK.sub("", block)
        said = re.sub(r"\A(?:\n(?: {4}|[ ~^]+$).*)*", "", rest, flags=re.MULTILINE)
        places = dict.fromkeys(
            f"{re.sub('.*/(?:site-packages|python3[.0-9]*|releases/[^/]+)/', '', frame[1])}:{frame[2]} in {frame[3]}"
            + (f": {frame[4]}" if frame[4] else "")
            for frame in [*[frame for frame in frames if "/app/" in frame[1]][-1:], *frames[-1:]]
        )
        links.append(" ".join(said.split()) + (f" [{'; '.join(places)}]" if places else ""))
    return " -> ".join(filter(None, links))


def wanted_port(line: str, unit_file: str) -> int:
    """Return the port that a unit did not get: its log names it, or its file; 0 where neither does."""
    found = re.search(r":(\d{2,5})\b", re.sub(r"(?<![\d.:])\d\d:\d\d(:\d\d)?", "", line)) or re.search(
        r"(?:ListenStream=|--port[= ]|listen-address=)(?:\S*:)?(\d{2,5})\b", unit_file
    )
    return int(found[1]) if found else 0


def quote(line: str) -> str:
    """Return what a log says, an exception with its whole chain, and take out what may be a secret."""
    exception = ""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            line = str(entry.get("message") or entry.get("event") or line)
            exception = str(entry.get("exception") or "")
    if found := TRACEBACK.search(line):
        line, exception = line[: found.start()], exception or line[found.start() :]
    line = ": ".join(filter(None, [line.strip(), chain(exception)]))
    line = re.sub(r"(://[^\s:/@]*:)[^\s/@]+@", r"\1**@", line)
    line = " ".join(re.sub(r"[A-Za-z0-9_-]{24,}", _masked, line).split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE // 2]} ... {line[-LONGEST_QUOTE // 2 :]}"


def _masked(word: re.Match[str]) -> str:
    # What is a file's name here is no secret.
    way = re.search(r"(?:/[\w.@:+-]+)+$", word.string[: word.end()])
    return word[0] if not re.search(r"\d", word[0]) or (way and os.path.lexists(way[0])) else "**"


def listener(port: int, unit: str = "") -> str:
    """Say which program has a port, unless it is the unit itself, or systemd for its socket."""
    sockets = say("ss", "-ltnpH", f"sport = :{port}")[1] if port else ""
    stem = re.sub(r"\.(?:service|socket)$", "", unit)
    for name, number in re.findall(r'"([^"]+)",pid=(\d+)', sockets):
        group = text(f"/proc/{number}/cgroup").strip().rpartition("/")[2]
        if number == "1" and stem:
            mine = f":{port} " in say("systemctl", "show", "--property=Listen", f"{stem}.socket")[1]
        else:
            mine = bool(stem) and re.sub(r"\.(?:service|socket)$", "", group) == stem
        if mine:
            return ""
        of = f" of {group}" if group.endswith((".service", ".scope")) else ""
        return f" (port {port} is held by {name}, process {number}{of})"
    return ""


@apart
def drop_ins(unit: str, layer: int, files: list[str]) -> Iterator[Finding]:
    """Name what somebody has changed about a unit besides us and Debian."""
    for file in files:
        content = text(file)
        if file.startswith(("/usr/lib/", "/lib/")) or "Ansible managed" in content or file.endswith("/restart.conf"):
            continue
        if file.endswith("/90-debug-mode.conf"):
            yield Finding(NOTE, f"{unit} is in debug mode, which ends by itself", "debug-mode")
            continue
        lines = [line for line in content.splitlines() if "=" in line and not line.startswith(("#", ";"))]
        what = f"{file}, not ours, changes {unit}: {quote(', '.join(lines[:4]))}"
        yield Finding(WARNING, what, "drift", min(layer, FILES), suspect=True)


@apart
def processes(unit: str, runbook: str, layer: int, group: str) -> Iterator[Finding]:
    """Look at a unit's processes: halted, killed for want of memory, slowed down."""
    if not group:
        return
    place = Path("/sys/fs/cgroup") / group.lstrip("/")
    numbers = text(place / "cgroup.procs").split()
    yield from halted(unit, runbook, layer, numbers)
    yield from crowded(unit, runbook, layer, numbers)
    for file, field, what in (
        ("memory.events", "oom_kill", "processes of {} were killed for want of memory since it started"),
        ("pids.events", "max", "times {} could not start a process or thread (TasksMax)"),
    ):
        count = re.search(rf"^{field} (\d+)", text(place / file), re.MULTILINE)
        if count and int(count[1]):
            yield Finding(WARNING, f"{count[1]} {what.format(unit)}", runbook, layer, suspect=True)
    throttled = dict(line.split() for line in text(place / "cpu.stat").splitlines())
    if int(throttled.get("nr_throttled", 0)) > 0.5 * int(throttled.get("nr_periods", 0)):
        yield Finding(CRITICAL, f"{unit} is held back: it has used up its CPUQuota", runbook, layer)


@apart
def crowded(unit: str, runbook: str, layer: int, numbers: Iterable[str]) -> Iterator[Finding]:
    """Name processes that can open hardly any file or connection more."""
    for number in numbers:
        limit = re.search(r"^Max open files\s+(\d+)", text(f"/proc/{number}/limits"), re.MULTILINE)
        with contextlib.suppress(OSError):
            opened = len(list(Path(f"/proc/{number}/fd").iterdir()))
            if limit and opened > 0.9 * int(limit[1]):
                what = f"process {number} of {unit} has {opened} of {limit[1]} possible files and connections open"
                yield Finding(CRITICAL, f"{what} (LimitNOFILE): restart it", runbook, layer)


@apart
def halted(unit: str, runbook: str, layer: int, numbers: Iterable[str]) -> Iterator[Finding]:
    """Name processes that were stopped by a signal."""
    found = {
        number: text(f"/proc/{number}/comm").strip()
        for number in numbers
        if re.search(r"^State:\s+[Tt]", text(f"/proc/{number}/status"), re.MULTILINE)
    }
    if found:
        which = f"{next(iter(found.values()))} of {unit}, process {' '.join(found)}, is halted by a signal"
        yield Finding(CRITICAL, f"{which}: kill -CONT {' '.join(found)}", runbook, layer, certain=True)


@apart
def programs(names: list[str], app: str) -> Iterator[Finding]:
    """Look at supervisor's programs."""
    for line in say("supervisorctl", "status", *names)[1].splitlines():
        words = line.split()
        if line.startswith(("unix:", "http:", "error:")):
            yield Finding(CRITICAL, f"supervisord does not answer: {quote(line)}", "NoWorkers", WORKERS)
            return
        if "RUNNING" not in line:
            log = Path(f"/var/log/{app}/{words[0].removeprefix(f'{app}-')}.log")
            said = "" if "STOPPED" in line else reason(text(log)[-100_000:])
            what = " ".join(words) + (f": {said}" if said else "")
            yield Finding(CRITICAL, what, "NoWorkers", WORKERS, certain="STOPPED" in line)
        elif number := re.search(r"pid (\d+)", line):
            children = text(f"/proc/{number[1]}/task/{number[1]}/children").split()
            yield from halted(words[0], "NoWorkers", WORKERS, [number[1], *children])


# Redis


class RefusedError(Exception):
    """Redis has answered with an error."""


class Connection:
    """A connection to Redis, spoken over a socket: passwords stay out of every process list."""

    def __init__(self, connected: socket.socket) -> None:
        """Take a connected socket."""
        self.stream = connected.makefile("rwb")

    def ask(self, *words: str) -> object:
        """Send one command and return its answer."""
        parts = [word.encode() for word in words]
        self.stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        with contextlib.suppress(BrokenPipeError):  # it may have said why before it closed
            self.stream.flush()
        return self._answer()

    def _answer(self) -> object:
        line = self.stream.readline().rstrip(b"\r\n").decode(errors="replace")
        if not line:
            raise ConnectionResetError("Redis closed the connection")
        kind, rest = line[0], line[1:]
        if kind == "-":
            raise RefusedError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$":
            return "" if rest == "-1" else self.stream.read(int(rest) + 2)[:-2].decode(errors="replace")
        if kind == "*":  # -1: nothing has come in time
            return [self._answer() for _ in range(int(rest))] if rest != "-1" else ""
        return rest


def redis(name: str, port: int, queues: Sequence[str] = ()) -> Iterator[Finding]:
    """Look into one instance, through its socket on this host."""
    suffix = "" if name == "main" else f"-{name}"
    config = Path(f"/etc/redis/redis{suffix}.conf")
    password = re.search(r"^requirepass (\S+)", text(config), re.MULTILINE)
    if password is None:
        yield Finding(CRITICAL, f"Redis {name} is not configured: {config} has no requirepass", "RedisDown", REDIS)
        return
    if port and not re.search(rf"^(tls-)?port {port}$", text(config), re.MULTILINE):
        wrong = f"Redis {name} does not listen on port {port}: {config} says something else"
        yield Finding(CRITICAL, wrong, "RedisDown", REDIS)
    yield from data_directory(name, text(config))
    way = f"/run/redis{suffix}/redis-server.sock"
    try:
        with socket.socket(socket.AF_UNIX) as local:
            local.settimeout(PATIENCE)
            local.connect(way)
            connection = Connection(local)
            try:
                connection.ask("AUTH", password[1])
            except RefusedError as error:
                if "WRONGPASS" not in str(error) and "without any password" not in str(error):
                    raise
                wrong = f"Redis {name} refuses the administrator's password of {config}: changed, or default is off"
                yield Finding(CRITICAL, wrong, "RedisDown", RIGHTS)
                return
            yield from instance(name, config, connection, queues)
    except RefusedError as error:
        if str(error).startswith("BUSY "):
            busy = f"Redis {name} is busy with a script, and refuses everything else: SCRIPT KILL"
            yield Finding(CRITICAL, busy, "RedisBusy", REDIS, certain=True)
            return
        layer = REDIS if "max number of clients" in str(error) or "LOADING" in str(error) else RIGHTS
        whose = holders(port) if "max number of clients" in str(error) else ""
        yield Finding(CRITICAL, f"Redis {name} refuses: {error}{whose}", "RedisDown", layer)
    except TimeoutError:
        slow = f"Redis {name} does not answer within {PATIENCE} s: {silence(suffix)}"
        yield Finding(CRITICAL, slow, "RedisDown", REACH)
    except OSError as error:
        what = f"Redis {name} does not answer at {way} ({error.strerror or error})"
        yield Finding(CRITICAL, what, "RedisDown", REACH)


def holders(port: int) -> str:
    """Say who has most of the connections to a port, here and from where."""
    lines = say("ss", "-tnpH", "state", "established", f"( sport = :{port} or dport = :{port} )")[1].splitlines()
    peers, here = Counter[str](), Counter[tuple[str, str]]()
    for line in lines:
        words = line.split()
        if len(words) > 3 and words[2].endswith(f":{port}"):
            peers[words[3].rpartition(":")[0]] += 1
        elif user := re.search(r'"([^"]+)",pid=(\d+)', line):
            here[user[1], user[2]] += 1
    told = [f"{count} from {peer}" for peer, count in peers.most_common(1)]
    for (program, number), count in here.most_common(1):
        group = text(f"/proc/{number}/cgroup").strip().rpartition("/")[2]
        told.append(f"{count} of {program}, process {number} of {group or 'no unit'}")
    return f": most are {'; '.join(told)}" if told else ""


def silence(suffix: str) -> str:
    """Say why a Redis that runs is silent: whether it works."""
    number = text(f"/run/redis{suffix}/redis-server.pid").strip()
    before = _ticks()
    time.sleep(0.3)
    if number in before and _ticks().get(number, 0) - before[number] > 0.15 * os.sysconf("SC_CLK_TCK"):
        return "it is busy with a slow command"
    return "it is halted, or holds all commands back (CLIENT PAUSE), which ends by itself or with a restart"


def instance(name: str, config: Path, connection: Connection, queues: Sequence[str] = ()) -> Iterator[Finding]:
    """Judge what an instance says of itself."""
    told = str(connection.ask("INFO", "everything"))
    info = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    if info.get("loading") == "1":
        yield Finding(CRITICAL, f"Redis {name} is loading its data", "RedisDown", REDIS)
    # How replicas stand to their primary is told by replication.py.
    if info.get("role") == "slave" and "\nmasteruser " not in text(config):
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        what = f"Redis {name} was made a replica of {master} and refuses to write: REPLICAOF NO ONE"
        yield Finding(CRITICAL, what, "RedisDown", REDIS)
    if info.get("paused_actions", "none") != "none":
        yield Finding(CRITICAL, f"Redis {name} holds commands back (CLIENT PAUSE): CLIENT UNPAUSE", "RedisDown", REDIS)
    if int(info["connected_clients"]) > 0.95 * int(info.get("maxclients", 0) or 1e9):
        full = f"Redis {name} has {info['connected_clients']} of {info['maxclients']} possible clients"
        port = re.search(r"^(?:tls-)?port ([1-9]\d*)", text(config), re.MULTILINE)
        full += holders(int(port[1])) if port else ""
        yield Finding(CRITICAL, full, "RedisDown", REDIS)
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(field, "ok") != "ok":
            yield Finding(CRITICAL, f"Redis {name} cannot write to its disk ({field})", "RedisCannotSave", REDIS)
    if info.get("aof_enabled") == "0":
        yield Finding(CRITICAL, f"Redis {name} keeps no append-only file", "RedisCannotSave", RIGHTS)
    yield from settings(name, config, connection)
    yield from rights(name, config, connection)
    if re.search(r"count=(\d+)", info.get("errorstat_NOPERM", "")):
        yield from denials(name, connection)
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if name == "broker":
        yield from broker(info)
        yield from shapes(connection, queues)
        yield from unnamed(connection, queues)
    if limit and used > MEMORY_FULL * limit and info.get("maxmemory_policy") == "noeviction":
        full = f"Redis {name} is full and refuses to write: it uses {used >> 20} of {limit >> 20} MiB (maxmemory)"
        yield Finding(CRITICAL, full, "RedisMemoryHigh", RIGHTS)
    if "paused_actions" not in info:  # before 7.4
        yield from paused(name, connection)


def paused(name: str, connection: Connection) -> Iterator[Finding]:
    """Find a CLIENT PAUSE of writes by a command that only reads and waits with them; it must come last."""
    try:
        connection.ask("PFCOUNT", "doctor")
    except RefusedError:
        return
    except TimeoutError:
        yield Finding(CRITICAL, f"Redis {name} holds writes back (CLIENT PAUSE): CLIENT UNPAUSE", "RedisDown", REDIS)


@apart
def shapes(connection: Connection, queues: Sequence[str] = ("celery",)) -> Iterator[Finding]:
    """Look whether the broker's keys are what the application takes them for."""
    wanted = dict.fromkeys([*queues, "dead_letters", "failures"], "list") | {"accepted": "hash", "workers": "hash"}
    for key, kind in {**wanted, "figures": "hash", "alerts": "hash", "unacked_leases": "zset"}.items():
        if (found := connection.ask("TYPE", key)) not in (kind, "none"):
            what = f"the broker's key {key} is a {found} instead of a {kind}, every use of it fails: RENAME it away"
            yield Finding(CRITICAL, what, "BrokerUnreachable", RIGHTS)


@apart
def unnamed(connection: Connection, queues: Sequence[str]) -> Iterator[Finding]:
    """Find tasks in queues that no pool, route or setting names: no worker takes them, no metric counts them."""
    held, cursor, rounds = Counter[str](), "0", 0
    while queues and rounds < MOST_SCANS and (cursor != "0" or not rounds):
        rounds += 1
        answer = connection.ask("SCAN", cursor, "COUNT", "10000", "TYPE", "list")
        cursor, found = answer if isinstance(answer, list) else ("0", [])
        for key in found:
            kind, _, rest = key.partition(":")
            name = {"deferred": rest, "unacked": rest.partition(":")[2]}.get(kind, key)
            if name not in queues and not name.endswith(".pidbox") and is_task(connection.ask("LINDEX", key, "-1")):
                held[name] += int(str(connection.ask("LLEN", key)))
    for name, count in sorted(held.items()):
        remedy = f"name it in celery_worker_pools, or playbooks/ops/move_queue.yml -e from={name!r} -e to=QUEUE"
        what = f"{count} tasks are in the queue {name!r}, which no pool, route or setting names: {remedy}"
        yield Finding(WARNING, what, "QueueTooOld", QUEUES)


def is_task(entry: object) -> bool:
    """Tell whether an entry of a list has the form that Celery gives a task."""
    try:
        message = json.loads(str(entry))
        return "properties" in message and "task" in message["headers"]
    except (ValueError, TypeError, KeyError):
        return False


@apart
def broker(info: dict[str, str]) -> Iterator[Finding]:
    """Look at what holds for the queue's instance alone."""
    if info.get("maxmemory_policy") != "noeviction":
        evicts = f"the broker evicts ({info.get('maxmemory_policy')}): tasks may be lost"
        yield Finding(CRITICAL, evicts, "BrokerEvicts", RIGHTS)
    if int(info.get("evicted_keys", 0)):
        yield Finding(CRITICAL, f"the broker has evicted {info['evicted_keys']} keys", "BrokerEvicts", RIGHTS)
    limit = int(info.get("maxmemory", 0))
    if limit and int(info["used_memory"]) > BROKER_MEMORY * limit:
        share = int(info["used_memory"]) / limit
        yield Finding(WARNING, f"the broker uses {share:.0%} of its memory", "RedisMemoryHigh", RIGHTS)


@apart
def settings(name: str, config: Path, connection: Connection) -> Iterator[Finding]:
    """Compare the running server's settings with its file."""
    said: dict[str, list[str]] = {}
    for line in text(config).splitlines():
        key, _, value = line.partition(" ")
        if re.fullmatch(r"[a-z][a-z-]+", key) and key not in (
            "user",
            "requirepass",
            "masterauth",
            "logfile",
            "pidfile",
        ):
            said.setdefault(key, []).append(in_bytes(value.strip().strip('"')))
    for key, values in {**{key: [value] for key, value in DEFAULTS.items()}, **said}.items():
        answer = connection.ask("CONFIG", "GET", key)
        live = answer[1] if isinstance(answer, list) and len(answer) > 1 else " ".join(values)
        if live != " ".join(values) and key != "unixsocketperm":
            meant = f"{config} says" if key in said else "its default is"
            what = f"the running Redis {name} has {key} {live or 'empty'}, {meant} {' '.join(values) or 'empty'}"
            yield Finding(WARNING, what, "drift", REDIS, suspect=True)


def in_bytes(value: str) -> str:
    """Return a size as CONFIG GET tells it, anything else as it is."""
    size = re.fullmatch(r"(\d+)mb", value)
    return str(int(size[1]) << 20) if size else value


@apart
def rights(name: str, config: Path, connection: Connection) -> Iterator[Finding]:
    """Compare the users of the running server with those of its file, and try what they must be able to do."""
    answer = connection.ask("ACL", "LIST")
    live = {line.split()[1]: line.split() for line in answer} if isinstance(answer, list) else {}
    if "nopass" in live.get("default", []):
        yield Finding(CRITICAL, f"everybody may use Redis {name} without a password", "RedisDenies", RIGHTS)
    for user, words in re.findall(r"^user (\S+) (.*)$", text(config), re.MULTILINE):
        if user not in live:
            yield Finding(CRITICAL, f"Redis {name} does not know the user {user} of its file", "RedisDenies", RIGHTS)
        elif "off" in live[user]:
            yield Finding(CRITICAL, f"the user {user} of Redis {name} is switched off", "RedisDenies", RIGHTS)
        elif {word for word in words.split() if word[0] == "#"} - set(live[user]):
            changed = f"the running Redis {name} has another password for the user {user} than {config}"
            yield Finding(CRITICAL, changed, "RedisDenies", RIGHTS)
        elif lost := missing(words, " ".join(live[user]), connection):
            what = f"the user {user} of the running Redis {name} has lost {quote(' '.join(lost))} of {config}"
            yield Finding(CRITICAL, what, "RedisDenies", RIGHTS)
        if more := set(live.get(user, [])) & {"nopass", "+@all", "~*"} - set(words.split()):
            what = f"the user {user} of the running Redis {name} has more than {config} says: {' '.join(sorted(more))}"
            yield Finding(WARNING, what, "RedisDenies", RIGHTS)
    denied: dict[str, str] = {}
    for user, command in re.findall(r"^# may (\S+) (.*)$", text(config), re.MULTILINE):
        if user in live and user not in denied and not str(_try(connection, user, command)).startswith("OK"):
            denied[user] = command
    for user, command in denied.items():
        what = f"Redis {name} denies its user {user} what its file allows: {command}"
        yield Finding(CRITICAL, what, "RedisDenies", RIGHTS)


def missing(meant: str, live: str, connection: Connection) -> list[str]:
    """Return the keys, channels and commands of a user's rules that the running server does not have.

    Selectors are left to what the user is tried with, and so are commands beside categories.
    """
    wanted, has = (re.sub(r"\([^)]*\)", "", rules).split() for rules in (meant, live))
    whole = {"~": "~*", "%": "~*", "&": "&*", "+": "+@all"}
    told = [word for word in wanted if word[0] in ("~%&" if any("@" in word for word in wanted) else "~%&+")]
    allowed = {*(word for word in has if word[0] != "+"), *(f"+{command}" for command in commands_of(has, connection))}
    return [word for word in told if word not in allowed and whole[word[0]] not in has]


def commands_of(rules: list[str], connection: Connection) -> set[str]:
    """Return the commands that rules allow; Redis 7.0 makes categories of commands: ``+@transaction -discard``."""
    allowed: set[str] = set()
    for word in rules:
        if word == "-@all":
            allowed.clear()
        elif word[0] in "+-" and word != "+@all":
            answer: object = connection.ask("ACL", "CAT", word[2:]) if word[1] == "@" else [word[1:]]
            named = {str(name) for name in answer} if isinstance(answer, list) else set()
            allowed = allowed | named if word[0] == "+" else allowed - named
    return allowed


def _try(connection: Connection, user: str, command: str) -> object:
    try:
        return connection.ask("ACL", "DRYRUN", user, *command.split())
    except RefusedError as error:
        return "OK" if "unknown" in str(error).lower() else error


@apart
def denials(name: str, connection: Connection) -> Iterator[Finding]:
    """Name who was denied what lately."""
    log = connection.ask("ACL", "LOG", "20")
    told = set()
    for entry in log if isinstance(log, list) else []:
        fields = dict(zip(entry[::2], entry[1::2], strict=False))
        who = f"{fields['username']}: {fields['reason']} {fields['object']}"
        if fields["reason"] != "auth" and float(fields["age-seconds"]) < RECENT and who not in told:
            told.add(who)
            yield Finding(WARNING, f"Redis {name} has denied {who}", "RedisDenies", RIGHTS)


@apart
def data_directory(name: str, config: str) -> Iterator[Finding]:
    """Look whether Redis may write where its data is."""
    if (found := re.search(r"^dir (\S+)", config, re.MULTILINE)) is None:
        return
    try:
        directory = Path(found[1]).stat()
        owner = pwd.getpwuid(directory.st_uid).pw_name
    except (OSError, KeyError) as error:
        yield Finding(CRITICAL, f"the data directory of Redis {name} is not there: {error}", "RedisCannotSave", HOST)
        return
    if owner != "redis" or not directory.st_mode & stat.S_IWUSR:
        mode = f"{stat.S_IMODE(directory.st_mode):04o}"
        what = f"Redis {name} may not write into {found[1]}: it belongs to {owner}, mode {mode}"
        yield Finding(CRITICAL, what, "RedisCannotSave", HOST)


@apart
def certificates() -> Iterator[Finding]:
    """Look how long Redis' certificate is valid."""
    for file in [*Path("/etc/redis/tls").glob("*.pem"), *Path("/etc/redis/sentinel-tls").glob("*.pem")]:
        for seconds, severity in ((0, CRITICAL), (CERTIFICATE_CRITICAL, CRITICAL), (CERTIFICATE_WARNING, WARNING)):
            if not say("openssl", "x509", "-in", str(file), "-noout", "-checkend", str(seconds))[0]:
                ends = f"ends within {seconds // (24 * 3600)} days" if seconds else "has ended, or cannot be read"
                what = f"Redis' certificate {ends}: run site.yml"
                yield Finding(severity, what, "CertificateExpires", REDIS, suspect=True)
                break


# Clients of Redis


def clients(app: str, services: list[str], host: str, ports: list[int]) -> Iterator[Finding]:
    """Reach Redis from here as each service does: name, TCP, TLS, user and password, answer, clock."""
    told: dict[tuple[str, str, int, int], set[str]] = {}
    endpoints: dict[tuple[str, str], set[str]] = {}
    for service in services:
        for file in sorted(Path(f"/etc/{app}/secrets/{service}").glob("*")):
            value = text(file).strip()
            if value.startswith("sentinel://"):
                try:
                    value = through_sentinels(app, file)
                except ConnectionError as error:
                    told.setdefault((str(error), "BrokerUnreachable", REACH, CRITICAL), set()).add(f"{service}/")
            if re.match(r"rediss?://", value):
                endpoints.setdefault((value, service), set()).add(file.name)
    with ThreadPoolExecutor(16) as pool:
        asked = pool.map(lambda key: reach(key[0], key[1], host, ports), endpoints)
        for (value, service), found in zip(endpoints, asked, strict=True):
            for finding in found:
                key = (finding.what, finding.runbook, finding.layer, finding.severity)
                told.setdefault(key, set()).update(f"{service}/{name}" for name in endpoints[value, service])
    for (what, runbook, layer, severity), names in told.items():
        whose = sorted({name.partition("/")[0] for name in names})
        yield Finding(severity, f"{what} (for {', '.join(whose)})", runbook, layer)


def through_sentinels(app: str, secret: Path) -> str:
    """Return the URL of the server that the sentinels of a secret name as the primary.

    Raises:
        ConnectionError: none of them names one.
    """
    broker = secret.name == "CELERY_BROKER_URL"
    names = dict(re.findall(r"^DURABLE_(\w+)_PRIMARY='(.*)'", text(f"/etc/{app}/backend.env"), re.MULTILINE))
    password = text(secret.parent / "SENTINEL_PASSWORD").strip()
    asked = []
    for url in map(urlsplit, text(secret).strip().split(";")):
        authority = parse_qs(url.query).get("ssl_ca_certs", [""])[0]
        scheme, options = ("rediss", f"?ssl_ca_certs={authority}") if authority else ("redis", "")
        # As redis_urls() says it: only the broker is asked more in database 0.
        database = "" if secret.name == "REDIS_URL" else url.path
        asked.append(f"{url.hostname}:{url.port}")
        with contextlib.suppress(OSError, RefusedError), opened(url._replace(scheme=scheme)) as stream:
            connection = Connection(stream)
            connection.ask("AUTH", password)
            found = connection.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", names["BROKER" if broker else "RESULTS"])
            if isinstance(found, list):
                return f"{scheme}://{url.netloc.rpartition('@')[0]}@{found[0]}:{found[1]}{database}{options}"
    raise ConnectionError(f"none of the sentinels {', '.join(asked)} names a primary to this host")


def reach(secret: str, service: str, host: str, ports: list[int]) -> list[Finding]:
    """Reach Redis with one secret URL, and say where that ends."""
    page = "BrokerUnreachable"
    try:
        url = urlsplit(secret)
        name, port = str(url.hostname), url.port or 6379
    except ValueError:
        return [Finding(CRITICAL, f"a secret of {service} is no URL of Redis", page, FILES)]
    where = f"{name}:{port}"
    if host and (name != host.lower() or port not in ports or url.username != service):
        meant = f"{service}@{host}, ports {' and '.join(map(str, ports))}"
        wrong = f"a secret of {service} names {url.username}@{where}, the inventory {meant}"
        return [Finding(CRITICAL, wrong, "drift", FILES)]
    # Not by this process: it could not end the resolver's wait for servers that are silent.
    found, told = say("getent", "ahosts", name)
    if not found or not told:
        servers = " and ".join(re.findall(r"^nameserver (\S+)", text("/etc/resolv.conf"), re.MULTILINE))
        why = f"{servers} of /etc/resolv.conf did not answer within {PATIENCE} s" if "timed out" in told else ""
        why = why or f"look into /etc/hosts, /etc/nsswitch.conf and /etc/resolv.conf ({servers or 'no name server'})"
        return [Finding(CRITICAL, f"the name {name} is unknown here: {why}", page, NETWORK)]
    address = told.split()[0]
    at = where if address == name else f"{where} ({address}{fixed(name, address)})"
    try:
        with socket.create_connection((address, port), PATIENCE) as plain:
            return talk(plain, url, at)
    except TimeoutError:
        way = re.search(r"(?:via \S+ )?dev \S+", say("ip", "route", "get", address)[1])
        where = f" (they go {way[0]})" if way else ""
        return [Finding(CRITICAL, f"{at} does not answer: packets are dropped, or nobody is there{where}", page, REACH)]
    except OSError as error:
        return [Finding(CRITICAL, f"{at} cannot be reached: {error.strerror or error}", page, REACH)]


def fixed(name: str, address: str) -> str:
    """Say where a name's address comes from if that is a file of this host."""
    for line in text("/etc/hosts").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == [address] and name in words:
            return ", says /etc/hosts"
    return ""


def talk(plain: socket.socket, url: SplitResult, at: str) -> list[Finding]:
    """Speak with Redis over a connection."""
    page, speaking = "BrokerUnreachable", plain
    try:
        if url.scheme == "rediss":
            speaking = trust(url).wrap_socket(plain, server_hostname=url.hostname)
        connection = Connection(speaking)
        connection.ask("AUTH", unquote(url.username or ""), unquote(url.password or ""))
        took, sent = [], time.time()
        for _ in range(3):
            before = time.monotonic()
            connection.ask("PING")
            took.append(time.monotonic() - before)
        found = []
        if min(took) > SLOW_NETWORK:
            found.append(Finding(CRITICAL, f"{at} is slow: an answer takes {min(took):.1f} s", page, NETWORK))
        if url.username in ("worker", "operator") and url.path == "/0":
            sent, answer = time.time(), connection.ask("TIME")
            seconds = float(answer[0]) + float(answer[1]) / 1e6 if isinstance(answer, list) else sent
            ahead = (sent + time.time()) / 2 - seconds
            if abs(ahead) > CLOCKS_DIFFER:
                way = "ahead of" if ahead > 0 else "behind"
                found.append(Finding(CRITICAL, f"the clock is {abs(ahead):.0f} s {way} {at}'s", "ClockWrong", HOST))
        return found
    except RefusedError as error:
        if "WRONGPASS" in str(error):
            what = f"{at} refuses the password of {url.username} that its secret file holds, or the user is off"
            return [Finding(CRITICAL, what, page, RIGHTS)]
        crowded = "max number of clients" in str(error) or "LOADING" in str(error)
        return [Finding(CRITICAL, f"{at} refuses: {quote(str(error))}", page, REDIS if crowded else RIGHTS)]
    except TimeoutError:
        what = f"{at} takes connections and does not answer within {PATIENCE} s"
        return [Finding(CRITICAL, what, page, REACH)]
    except (ssl.SSLError, ssl.CertificateError, FileNotFoundError) as error:
        return [Finding(CRITICAL, f"TLS with {at} fails: {quote(str(error))}", page, REACH)]
    except OSError as error:
        return [Finding(CRITICAL, f"{at} breaks off: {error.strerror or error}", page, REACH)]


def trust(url: SplitResult) -> ssl.SSLContext:
    """Return what a server is verified with, as its URL says."""
    authority = parse_qs(url.query).get("ssl_ca_certs", [""])[0]
    if authority and "BEGIN CERTIFICATE" not in text(authority):
        raise ssl.SSLError(f"{authority} is missing or holds no certificate")
    return ssl.create_default_context(cafile=authority)


@apart
def firewall(ports: list[int]) -> Iterator[Finding]:
    """Look for our table and its rules, and for others that drop what must come through."""
    listing = ("nft", "--stateless", "--terse", "list", "table", "inet", "platform")
    there, table = say(*listing)
    if not there:
        yield Finding(CRITICAL, "the firewall's table inet platform is gone: every port is open", "", NETWORK)
    wanted = Counter(re.findall(r'accept comment "([^"]+)"', text(RULES)))
    for name in wanted - Counter(re.findall(r'accept comment "([^"]+)"', table)) if there else ():
        what = f"the firewall has lost its rule for {name}: systemctl restart platform-firewall"
        yield Finding(CRITICAL, what, "BrokerUnreachable", NETWORK)
    # An empty network namespace shows how this nft prints the file.
    meant = Counter(drops(say("unshare", "--net", "sh", "-c", f"nft --file {RULES} && {' '.join(listing)}")[1]))
    for rule in Counter(drops(table)) - meant if meant else ():
        what = f"a rule of the table inet platform that is not ours drops packets: {rule}"
        yield Finding(CRITICAL, what, "BrokerUnreachable", NETWORK)
    yield from egress()
    yield from foreign_rules(ports)
    for line in say("tc", "qdisc", "show")[1].splitlines():
        if re.search(r"\b(netem|tbf)\b", line):
            what = f"somebody slows packets down: {line.strip()}"
            yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)
    for line in say("ip", "route", "show")[1].splitlines():
        if line.startswith(("blackhole", "unreachable", "prohibit")):
            yield Finding(WARNING, f"a route leads nowhere: {line}", "BrokerUnreachable", NETWORK, suspect=True)


def egress() -> Iterator[Finding]:
    """Tell how many packets of tasks were refused since the rules were loaded."""
    counter = re.search(r"packets (\d+)", say("nft", "list", "counter", "inet", "platform", "egress_refused")[1])
    if counter and int(counter[1]):
        what = f"the firewall has refused {counter[1]} packets of tasks: journalctl -k -g 'platform egress'"
        yield Finding(NOTE, what, "TaskEgressRefused", NETWORK)


def drops(rules: str) -> list[str]:
    """Return the rules that end in a drop."""
    return [
        line for line in map(str.strip, rules.splitlines()) if re.search(r"(^|[^:] )(drop|reject)( with .*)?$", line)
    ]


@apart
def foreign_rules(ports: list[int]) -> Iterator[Finding]:
    """Name rules of other tables than ours that drop packets for our ports, or for all."""
    table, base = "", False
    for line in map(str.strip, say("nft", "list", "ruleset")[1].splitlines()):
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            base = False
        elif words[:3] == ["type", "filter", "hook"]:
            base = table != "inet platform" and words[3] in ("input", "output", "prerouting")
            if base and "policy drop" in line:
                what = f"the table {table}, not ours, drops what it does not know"
                yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)
        elif table != "inet platform" and re.search(r"\b(drop|reject)\b", line):
            number = re.search(r"[ds]port (\{[^}]*\}|\S+)", line)
            if any(re.search(rf"\b{port}\b", number[1]) for port in ports) if number else base:
                what = f"a rule of the table {table} that is not ours drops packets: {line}"
                yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)


# Files


def files(app: str, services: list[str], wanted: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at the release, the settings and the secrets, which are ``wanted`` as SERVICE/NAME."""
    settings_file = Path(f"/etc/{app}/backend.env")
    if not text(settings_file):
        yield Finding(CRITICAL, f"the settings {settings_file} are missing or empty", "UnitRestartLoop", FILES)
    for name in re.findall(r"^(?:export )?(\w+)=", text(settings_file), re.MULTILINE):
        if name in SECRETS:
            what = f"{settings_file} sets {name}, which goes before the secret file of that name"
            yield Finding(CRITICAL, what, "drift", FILES, certain=True)
    live = Path(f"/opt/{app}/backend")
    listed = release_files(live)
    for needed in (
        "",
        ".complete",
        *filter(lambda name: (live / name).is_symlink(), [".env"]),
        *listed,
        "venv/bin/python",
    ):
        if not (live / needed).exists():
            what = f"the release is incomplete: {live / needed} is missing or leads nowhere"
            yield Finding(CRITICAL, what, "UnitRestartLoop", FILES, certain=True)
            break
    folders = {live / Path(name).parts[0] for name in listed}
    yield from closed([live, *sorted(folders), live / "venv/lib", live / "venv/bin/python", settings_file])
    yield from packages(live)
    for service in services:
        names = sorted(name.partition("/")[2] for name in wanted if name.startswith(f"{service}/"))
        user = app if service == "worker" else f"{app}-{service}"
        yield from secrets(Path(f"/etc/{app}/secrets/{service}"), names, user)
    yield from foreign_keys(app, services)
    for unit in Path("/etc/systemd/system").glob(f"{app}-*.service"):
        for secret in re.findall(r"^LoadCredential=[^:]+:(\S+)", text(unit), re.MULTILINE):
            if not secret.startswith(f"/etc/{app}/secrets/") and not text(secret).strip():
                what = f"the secret {secret} of {unit.stem} is missing or empty"
                yield Finding(CRITICAL, what, "UnitRestartLoop", FILES)
        yield from outdated(unit.stem, live, settings_file, text(unit))


def release_files(live: Path) -> list[str]:
    """Return the application's files in a release, as it lists them (roles/app_release/files/build_release.py)."""
    return text(live / ".files").splitlines()


@apart
def closed(places: list[Path]) -> Iterator[Finding]:
    """Name what the services must read and cannot, and the directories on the way there."""
    ways = [[*place.parents, *place.resolve().parents] for place in places if place.exists()]
    for place in dict.fromkeys([*sorted(parent for way in ways for parent in way), *places]):
        if place.exists() and not place.stat().st_mode & (0o001 if place.is_dir() else 0o004):
            what = f"{place} cannot be read by the services (mode {stat.S_IMODE(place.stat().st_mode):04o})"
            yield Finding(CRITICAL, what, "UnitRestartLoop", FILES, certain=True)


@apart
def foreign_keys(app: str, services: list[str]) -> Iterator[Finding]:
    """Compare the keys that services sign and verify with to the operator's."""
    for name, what, page in (
        ("TASK_SIGNING_KEY", "its tasks become dead letters", "DeadLetters"),
        ("CONTROL_SIGNING_KEY", "it does not do what celery control says", "WorkersMissing"),
        ("DURABLE_SIGNING_KEY", "its tasks become dead letters", "DeadLetters"),
        ("DURABLE_CONTROL_KEY", "it does not do what celery control says", "WorkersMissing"),
    ):
        keys = {
            service: set(text(f"/etc/{app}/secrets/{service}/{name}").replace(",", " ").split()) for service in services
        }
        for service, own in keys.items():
            if service != "flower" and own and keys["operator"] and not own & keys["operator"]:
                yield Finding(CRITICAL, f"{name} of {service} is not that of the operator: {what}", page, FILES)


@apart
def packages(live: Path) -> Iterator[Finding]:
    """Look whether the packages that the release names are whole: each has a list of its files and their sizes."""
    page = "failed-deploy"
    for place in live.glob("venv/lib/python3*/site-packages"):
        installed = {}
        for package in place.glob("*.dist-info"):
            name, _, version = package.name.removesuffix(".dist-info").partition("-")
            name = re.sub(r"[-_.]+", "-", name).lower()
            installed[name] = version
            for line in text(package / "RECORD").splitlines():
                file, _, size = line.rsplit(",", 2) if line.count(",") > 1 else (line, "", "")
                seen = _lstat(place / file.strip('"'))
                if seen is None and not file.endswith(".pyc"):
                    yield Finding(
                        CRITICAL, f"{place / file} is missing, of the package {name}", page, FILES, certain=True
                    )
                    break
                if seen is not None and size.isdigit() and seen.st_size != int(size):
                    what = f"{place / file}, of the package {name}, was changed by hand"
                    yield Finding(WARNING, what, page, FILES, suspect=True)
                    break
        pins = re.findall(r"^([\w.-]+)(?:\[.*\])?==([^;\s]+)[^;\n]*$", text(live / "requirements.txt"), re.MULTILINE)
        for name, version in pins:
            here = installed.get(re.sub(r"[-_.]+", "-", name).lower())
            if here is None:
                yield Finding(CRITICAL, f"the package {name} is missing in {place}", page, FILES, certain=True)
            elif here != version:
                what = f"the package {name} in {place} is {here}, the release needs {version}"
                yield Finding(WARNING, what, page, FILES, suspect=True)


@apart
def secrets(directory: Path, wanted: list[str], user: str) -> Iterator[Finding]:
    """Look at one service's secret files."""
    page = "UnitRestartLoop"
    try:
        group = pwd.getpwnam(user).pw_gid
    except KeyError:
        yield Finding(CRITICAL, f"the user {user} is gone", page, FILES)
        return
    for name in wanted:
        if not text(directory / name).strip():
            yield Finding(CRITICAL, f"the secret {directory / name} is missing or empty", page, FILES)
    for file in (directory, *directory.glob("*")):
        if not file.exists():
            continue
        seen, mode = file.stat(), stat.S_IMODE(file.stat().st_mode)
        if mode & 0o007:
            yield Finding(WARNING, f"everybody on the host may get at {file} (mode {mode:04o})", "drift", FILES)
        elif mode != (0o750 if file.is_dir() else 0o640) or (seen.st_uid, seen.st_gid) != (0, group):
            what = f"{file} has another owner or mode ({mode:04o}) than it was installed with"
            yield Finding(WARNING, what, "drift", FILES, suspect=True)


@apart
def outdated(unit: str, live: Path, settings_file: Path, content: str) -> Iterator[Finding]:
    """Look whether a service runs with the release, settings and secrets that are on the disk."""
    number = say("systemctl", "show", "--property=MainPID", "--value", unit)[1]
    process = Path(f"/proc/{number}")
    if number in ("", "0") or not process.exists():
        return
    runs = process / "cwd"
    # The console has releases of its own, which its unit names.
    named = re.search(r"^WorkingDirectory=(\S+)", content, re.MULTILINE)
    wanted = Path(named[1]) if named else live
    # A process that systemd is about to start is still in /.
    if runs.exists() and wanted.exists() and runs.resolve() not in (wanted.resolve(), Path("/")):
        what = f"{unit} runs release {runs.resolve().name}, but {wanted} is {wanted.resolve().name}: restart it"
        yield Finding(WARNING, what, "drift", UNITS, suspect=True)
    started = process.stat().st_mtime
    read = [settings_file, *map(Path, re.findall(r"^LoadCredential=[^:]+:(\S+)", content, re.MULTILINE))]
    for file in read:
        if file.exists() and file.stat().st_mtime > started + 1:
            what = f"{unit} runs with what {file} held before it was changed: restart it"
            yield Finding(WARNING, what, "drift", UNITS, suspect=True)


def facts(app: str) -> Iterator[dict[str, object]]:
    """Tell what must be the same on all hosts."""
    live = Path(f"/opt/{app}/backend")
    code = hashlib.sha256()
    for name in release_files(live):
        code.update(name.encode() + text(live / name).encode())
    names = (
        "TASK_ROUTES",
        "DURABLE_TASK_TIME_LIMIT",
        "DURABLE_TASK_SOFT_TIME_LIMIT",
        "DURABLE_RESULT_EXPIRES",
        "ENVIRONMENT",
    )
    known = dict(re.findall(r"^([A-Z_]+)='(.*)'$", text(f"/etc/{app}/backend.env"), re.MULTILINE))
    # The digest of a long random key tells nothing about it.
    key = text(f"/etc/{app}/secrets/operator/DURABLE_SIGNING_KEY").replace(",", " ").split()
    told = {f"the setting {name}": known.get(name) for name in names if name in known}
    if live.exists():
        told["the application's code"] = code.hexdigest()[:12]
    if key:
        told["the task signing key"] = hashlib.sha256(key[0].encode()).hexdigest()[:12]
    yield {"severity": FACTS, "what": "", "runbook": "", "facts": told}


# The API and what it sees


def ask(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return status and body of a GET; 0 and why when nobody answers, or no HTTP. No proxy is asked."""
    try:
        with OPEN(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return 0, str(error)


def words(status: int, body: str) -> str:
    """Return what an answer says: its status and, of JSON, its sentence."""
    with contextlib.suppress(ValueError, AttributeError):
        told = json.loads(body)
        body = str(told.get("detail") or told.get("message") or told.get("error") or body)
    return quote(f"{status or 'no connection'}: {body}" if body else f"{status or 'no connection'}")


def api(url: str, key_file: str, hard_limit: int, app: str, paths: Sequence[str] = PATHS) -> Iterator[Finding]:
    """Look at the API, and at what it says of queues and workers.

    Args:
        url: where it listens.
        key_file: has its key; empty where it has none, and no metrics of the platform.
        hard_limit: of tasks, in seconds.
        app: the installation's name.
        paths: what says that it lives, is ready, and that workers answer; an empty one is not asked.
    """
    alive_path, ready_path, workers_path = paths
    keys = text(key_file).replace(",", " ").split() if key_file else []
    headers = {"X-API-Key": keys[0]} if keys else {}
    if key_file and not keys:
        yield Finding(CRITICAL, f"the API has no key ({key_file})", "ApiDown", FILES)
    # Its socket would start it, and nobody would see that it was stopped.
    if say("systemctl", "is-active", f"{app}-api.service")[1] in ("inactive", "failed"):
        return
    status, body = ask(f"{url}{alive_path or '/'}", headers)
    if status != 200 if alive_path else not status:
        why = listener(urlsplit(url).port or 80, f"{app}-api") or because(f"{app}-api")
        what = f"the API does not answer at {url} ({words(status, body)}){why}"
        yield Finding(CRITICAL, what, "ApiDown", UNITS)
        return
    status, body = ask(f"{url}{ready_path}", headers) if ready_path else (200, "")
    if status != 200:
        fails = "does not reach the broker" if key_file else f"is not ready: {ready_path}"
        what = f"the API {fails} ({words(status, body)})"
        yield Finding(CRITICAL, what, "BrokerUnreachable" if key_file else "ApiDown", UNITS)
        return
    if key_file:
        shown = Shown("the API", url, key_file, workers_path, "ApiDown")
        yield from metrics(shown, hard_limit, app)


@apart
def console(url: str, hard_limit: int, app: str) -> Iterator[Finding]:
    """Look at the console of an application that has no metrics of the platform, and at what it says."""
    status, body = ask(f"{url}/health", {})
    if status != 200:
        why = listener(urlsplit(url).port or 80, f"{app}-console") or because(f"{app}-console")
        what = f"the console does not answer at {url} ({words(status, body)}){why}"
        yield Finding(CRITICAL, what, "TargetDown", LATER)
        return
    key_file = f"/etc/{app}/secrets/console/BACKEND_API_KEY"
    yield from metrics(Shown("the console", url, key_file, "/health/celery", "TargetDown"), hard_limit, app)


@dataclass(frozen=True)
class Shown:
    """A service that has the platform's metrics, and the page that helps when it answers wrong."""

    name: str
    url: str
    key_file: str
    workers_path: str  # says that workers answer; an empty one is not asked
    runbook: str


def metrics(service: Shown, hard_limit: int, app: str) -> Iterator[Finding]:
    """Look at what a service says of queues and workers, and of tasks with this hard limit in seconds."""
    name, url, key_file, runbook = service.name, service.url, service.key_file, service.runbook
    keys = text(key_file).replace(",", " ").split()
    headers = {"X-API-Key": keys[0]} if keys else {}
    status, page = ask(f"{url}/metrics", headers)
    if status != 200:
        what = f"{name} answers the key of {key_file} with {status}: it runs with another one, restart it"
        yield Finding(CRITICAL, what if keys else f"{name} answers with {words(status, page)}", runbook, UNITS)
        return
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line[:1] not in ("", "#")]
    figures = {name: float(value) for name, value in lines}
    if figures.get("celery_broker_up") == 0:
        what = f"{name} cannot read the queues: Redis broker refuses it something, or a key is not what it should be"
        yield Finding(CRITICAL, what, "RedisDenies", UNITS)
        return
    alive, expected = figures.get("celery_workers_alive", 0), figures.get("celery_workers_expected", 0)
    if alive == 0:
        yield Finding(CRITICAL, "no worker is alive", "NoWorkers", QUEUES)
    elif service.workers_path and ask(f"{url}{service.workers_path}", headers)[0] != 200:
        yield Finding(CRITICAL, "no worker answers", "NoWorkers", QUEUES)
    elif alive < expected:
        yield Finding(WARNING, f"{alive:.0f} of {expected:.0f} workers are alive", "WorkersMissing", QUEUES)
    if figures.get("celery_beat_active") == 0:
        yield Finding(CRITICAL, "no beat holds the lease, nothing periodic is sent", "BeatMissing", QUEUES)
    yield from tasks(figures, hard_limit, app)


@apart
def tasks(figures: dict[str, float], hard_limit: int, app: str) -> Iterator[Finding]:
    """Judge what the API says of queues and of tasks in workers' hands."""
    yield from lengths(figures, app)
    waits = {
        name.partition('"')[2].rpartition('"')[0]: age
        for name, age in figures.items()
        if name.startswith("celery_queue_oldest_seconds") and age > RECENT / 10
    }
    yield from unserved(app, sorted(waits)) if waits and figures.get("celery_workers_alive") else ()
    for queue, age in waits.items():
        if age > OLD_TASK:
            yield Finding(WARNING, f"a task has waited for {age:.0f} s in {queue}", "QueueTooOld", QUEUES)
    if figures.get("celery_unacknowledged_oldest_seconds", 0) > hard_limit + STUCK_MARGIN:
        held = figures["celery_unacknowledged_oldest_seconds"]
        yield Finding(CRITICAL, f"a task has been in a worker's hands for {held:.0f} s", "TaskStuck", QUEUES)
    if deferred := sum(number for name, number in figures.items() if name.startswith("celery_deferred_tasks")):
        resume = "playbooks/runbooks/queue_backlog.yml -e verb=resume -e confirm=yes puts them back"
        yield Finding(WARNING, f"{deferred:.0f} tasks are deferred; {resume}", "", QUEUES)
    if letters := figures.get("celery_dead_letters", 0):
        yield Finding(WARNING, f"{letters:.0f} dead letters", "DeadLetters", QUEUES)


@apart
def lengths(figures: dict[str, float], app: str) -> Iterator[Finding]:
    """Look whether queues are full, so that the API refuses tasks, or long."""
    limit = re.search(r"^QUEUE_MAX_LENGTH='(\d+)'", text(f"/etc/{app}/backend.env"), re.MULTILINE)
    for name, length in figures.items():
        if not name.startswith("celery_queue_length"):
            continue
        queue = name.partition('"')[2].rpartition('"')[0]
        if limit and length >= int(limit[1]):
            what = f"the queue {queue} is full, the API refuses tasks: {length:.0f} wait (QUEUE_MAX_LENGTH {limit[1]})"
            yield Finding(CRITICAL, what, "BacklogGrowing", QUEUES)
        elif length > LONG_QUEUE:
            # No page: a runbook that has mended a backlog does not wait until it is gone.
            yield Finding(WARNING, f"{length:.0f} tasks wait in {queue}", "", QUEUES)


@apart
def unserved(app: str, queues: list[str]) -> Iterator[Finding]:
    """Name the queues where tasks wait, and from which no worker takes."""
    taken = {queue for _, answer in questions(app, "active_queues") for queue in names(answer)}
    for queue in queues if taken else ():
        if queue not in taken:
            what = f"tasks wait in the queue {queue}, but no worker takes from it (workers take from {sorted(taken)})"
            yield Finding(CRITICAL, what, "QueueTooOld", WORKERS)


def names(answer: object) -> list[str]:
    """Return the queues of a worker's answer."""
    return sorted(queue["name"] for queue in answer) if isinstance(answer, list) else []


@apart
def workers(app: str) -> Iterator[Finding]:
    """Ask the workers here whether somebody has told them to work otherwise than their files say."""
    meant = dict(commands(app, socket.gethostname()))
    by_hand, page = "(celery control): restart it", "QueueTooOld"
    answers = questions(app, "active_queues")
    for node, times in Counter(node for node, _ in answers).items():
        if times > 1:
            what = f"{times} workers are named {node}: one of them is no unit's{strangers(node)}"
            yield Finding(CRITICAL, what, page, WORKERS)
    for node, answer in answers:
        if node in meant and names(answer) != meant[node]:
            takes, wanted = " and ".join(names(answer)) or "no queue", " and ".join(meant[node])
            what = f"the worker {node} takes from {takes} instead of {wanted} {by_hand}"
            yield Finding(CRITICAL, what, page, WORKERS)
    default = re.search(r"^TASK_DEFAULT_RATE_LIMIT='(.*)'", text(f"/etc/{app}/backend.env"), re.MULTILINE)
    # The application's own limits stand in its code.
    live = Path(f"/opt/{app}/backend")
    sources = "".join(text(live / name) for name in release_files(live) if name.endswith(".py"))
    if re.search(r"\brate_limit *=", sources):
        return
    for node, answer in questions(app, "registered", taskinfoitems=["rate_limit"]):
        for task, limit in re.findall(r"([^' ]+) \[rate_limit=([^\]]+)\]", str(answer)):
            if node in meant and limit != (default[1] if default else ""):
                what = f"the worker {node} runs {task} at most {limit} {by_hand}"
                yield Finding(WARNING, what, page, WORKERS, suspect=True)


def commands(app: str, host: str) -> Iterator[tuple[str, list[str]]]:
    """Return the names of this host's workers, each with the queues that its unit or program says."""
    files = [
        *Path("/etc/systemd/system").glob(f"{app}-celery*.service"),
        *Path("/etc/supervisor/conf.d").glob("*.conf"),
    ]
    for command in "\n[".join(map(text, files)).split("\n["):
        told = dict(re.findall(r"--(hostname|queues)=(\S+)", command))
        if len(told) == 2:
            yield f"{told['hostname'].partition('@')[0]}@{host}", sorted(told["queues"].split(","))


def strangers(node: str) -> str:
    """Name the units and sessions here that run a worker of that name."""
    word = f"--hostname={node.partition('@')[0]}@"
    groups: dict[str, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        if any(argument.startswith(word) for argument in text(place / "cmdline").split("\0")):
            groups.setdefault(text(place / "cgroup").strip().rpartition("/")[2], place.name)
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
    with contextlib.suppress(OSError, RefusedError, ValueError, KeyError, TypeError), contextlib.ExitStack() as stack:
        secret = Path(f"/etc/{app}/secrets/operator/CELERY_BROKER_URL")
        sentinels = text(secret).startswith("sentinel://")
        url = urlsplit(through_sentinels(app, secret) if sentinels else text(secret).strip())
        connection = Connection(stack.enter_context(opened(url)))
        connection.ask("AUTH", unquote(url.username or ""), unquote(url.password or ""))
        connection.ask("SELECT", url.path[1:] or "0")
        listening = connection.ask("PUBLISH", f"/{url.path[1:] or '0'}.celery.pidbox", json.dumps(message))
        until = time.monotonic() + 1
        while isinstance(listening, int) and len(answers) < listening and (left := until - time.monotonic()) > 0:
            reply = connection.ask("BRPOP", mailbox, f"{left:.2f}")
            if isinstance(reply, list) and len(reply) > 1:
                answers += json.loads(base64.b64decode(json.loads(reply[1])["body"])).items()
        # Answers that come later are kept by nobody.
        connection.ask("EXPIRE", mailbox, "60")
    return answers


@contextlib.contextmanager
def opened(url: SplitResult) -> Iterator[socket.socket]:
    """Connect to the Redis of a URL."""
    with socket.create_connection((str(url.hostname), url.port or 6379), PATIENCE) as plain:
        if url.scheme != "rediss":
            yield plain
            return
        with trust(url).wrap_socket(plain, server_hostname=url.hostname) as speaking:
            yield speaking


def flower(url: str, app: str) -> Iterator[Finding]:
    """Look whether Flower answers; without a password it must refuse."""
    status, body = ask(url, {})
    if status == 0 or status >= 500:
        why = listener(urlsplit(url).port or 80, f"{app}-flower") or because(f"{app}-flower")
        what = f"Flower does not answer at {url} ({words(status, body)}){why}"
        yield Finding(CRITICAL, what, "UnitRestartLoop", LATER)


def monitoring(prometheus: str, alertmanager: str) -> Iterator[Finding]:
    """Ask Prometheus for its rules and whom it does not reach, and Alertmanager what we do not see ourselves."""
    login = base64.b64encode(f"admin:{text('/etc/prometheus/secrets/password').strip()}".encode()).decode()
    headers = {"Authorization": f"Basic {login}"}

    status, body = ask(f"{prometheus}/api/v1/targets?state=active", headers)
    password = "; it refuses the password of /etc/prometheus/secrets/password" if status == 401 else ""
    if status != 200:
        what = f"Prometheus does not answer at {prometheus} ({words(status, body)}{password})"
        yield Finding(CRITICAL, what, "Watchdog", LATER)
    else:
        yield from watched(prometheus, headers)
        for target in json.loads(body)["data"]["activeTargets"]:
            if target["health"] == "down":
                labels = target["labels"]
                what = f"Prometheus does not get figures from {labels['job']} on {labels['host']}: "
                yield Finding(WARNING, what + quote(target["lastError"]), "TargetDown", LATER)
    yield from alerts(alertmanager, headers)


@apart
def watched(prometheus: str, headers: dict[str, str]) -> Iterator[Finding]:
    """Look whether Prometheus has rules that it can evaluate, and somebody to tell."""
    found = _json(f"{prometheus}/api/v1/alertmanagers", headers)
    if found and not found["data"]["activeAlertmanagers"]:
        yield Finding(CRITICAL, "Prometheus has no Alertmanager to tell of alerts", "Watchdog", LATER)
    rules = _json(f"{prometheus}/api/v1/rules?type=alert", headers)
    named = [rule for group in rules["data"]["groups"] for rule in group["rules"]] if rules else []
    if rules and not named:
        yield Finding(CRITICAL, "Prometheus has no rule for any alert: nothing can fire", "Watchdog", LATER)
    for rule in named:
        if rule.get("health") == "err":
            what = f"Prometheus cannot evaluate the alert {rule['name']}: {quote(rule.get('lastError', ''))}"
            yield Finding(CRITICAL, what, "Watchdog", LATER)


def _json(url: str, headers: dict[str, str]) -> Any:
    status, body = ask(url, headers)
    return json.loads(body) if status == 200 else None


@apart
def alerts(alertmanager: str, headers: dict[str, str]) -> Iterator[Finding]:
    """Ask Alertmanager what it shows that we do not see ourselves, and what it is silent about."""
    status, body = ask(f"{alertmanager}/api/v2/alerts?active=true", headers)
    if status != 200:
        what = f"Alertmanager does not answer at {alertmanager} ({words(status, body)})"
        yield Finding(CRITICAL, what, "Watchdog", LATER)
    fire = {alert["labels"]["alertname"]: alert for alert in json.loads(body)} if status == 200 else {}
    for name in sorted(fire.keys() & ONLY_ALERTS):
        # Without a page of its own: it fires for minutes after a runbook of that page has mended it.
        what = f"{fire[name]['annotations'].get('summary', '')} (docs/runbooks/{name}.md)"
        yield Finding(WARNING, what, "", QUEUES)
    if names := sorted(fire.keys() - {"Watchdog"} - ONLY_ALERTS):
        yield Finding(NOTE, f"alerts that fire: {', '.join(names)}", "", LATER)
    for silence in _json(f"{alertmanager}/api/v2/silences", headers) or []:
        if silence["status"]["state"] == "active":
            which = ", ".join(f"{matcher['name']}={matcher['value']}" for matcher in silence["matchers"])
            what = f"nobody is told of alerts with {which} until {silence['endsAt'][:16]} UTC: {silence['comment']}"
            yield Finding(WARNING, quote(what), "planned-maintenance", LATER)


# The host


def host() -> Iterator[Finding]:
    """Look at disk, memory, load and clock."""
    yield from disks()
    memory = {name: int(rest.split()[0]) for name, rest in _colons(text("/proc/meminfo"))}
    left = memory["MemAvailable"] / memory["MemTotal"]
    if left < MEMORY_LEFT:
        what = f"{left:.0%} of the memory is left{biggest('rss')}"
        # Little is left on many a healthy host: it explains what fails only when it is nearly gone.
        scarce = left < MEMORY_LEFT / 3
        yield Finding(CRITICAL if scarce else WARNING, what, "MemoryLow", HOST, suspect=scarce)
    pressure = re.search(r"full avg10=([\d.]+)", text("/proc/pressure/memory"))
    if pressure and float(pressure[1]) > 20:
        what = f"the host waits for memory {pressure[1]}% of the time{biggest('rss')}"
        yield Finding(WARNING, what, "MemoryLow", HOST, suspect=True)
    yield from busy()
    if say("timedatectl", "show", "--property=NTPSynchronized", "--value") == (True, "no"):
        yield Finding(WARNING, "the clock is not synchronized", "ClockWrong")
    if not re.search(r"^nameserver \S", text("/etc/resolv.conf"), re.MULTILINE):
        yield Finding(WARNING, "/etc/resolv.conf names no name server", "BrokerUnreachable", NETWORK, suspect=True)
    if re.search(r"^127\.\S+\s.*\blocalhost\b", text("/etc/hosts"), re.MULTILINE) is None:
        yield Finding(WARNING, "/etc/hosts does not know localhost", "BrokerUnreachable", NETWORK, suspect=True)
    states = say("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}\n")[1]
    if half := re.findall(r"^(?:i[HUF]|..R).*\|(\S+)$", states, re.MULTILINE):
        what = f"packages are installed by half: {', '.join(half[:5])}: dpkg --configure -a"
        yield Finding(WARNING, what, "failed-deploy", FILES, suspect=True)
    if Path("/run/reboot-required").exists():
        yield Finding(WARNING, "an update waits for a reboot", "")
    up = time.time() - Path("/proc/1").stat().st_mtime
    if up < RECENT:
        yield Finding(NOTE, f"the host was booted {up:.0f} s ago", "")
    overcommit = text("/proc/sys/vm/overcommit_memory").strip()
    if overcommit == "2":
        yield Finding(WARNING, "vm.overcommit_memory is 2: Redis cannot save", "RedisCannotSave", HOST, suspect=True)


@apart
def disks() -> Iterator[Finding]:
    """Look whether what must be written can be."""
    seen = set()
    places = ["/", "/var", "/var/lib", "/var/lib/redis", "/var/lib/redis/broker", "/var/log", "/var/log/redis"]
    places += ["/var/log/journal", "/var/lib/prometheus", "/opt", "/etc", "/tmp", "/var/tmp", "/run"]  # noqa: S108 - looked at
    for _, place, kind, *_ in map(str.split, text("/proc/mounts").splitlines()):
        ours = place.startswith(("/var/", "/opt/", "/etc/", "/srv/")) and kind not in ("squashfs", "overlay", "iso9660")
        places += [place] if ours and Path(place).is_dir() else []
    for place in dict.fromkeys(places):
        if not Path(place).exists():
            continue
        device, usage, system = Path(place).stat().st_dev, shutil.disk_usage(place), os.statvfs(place)
        # A bind mount of the same device may be read-only by itself.
        if (device, read_only := bool(system.f_flag & os.ST_RDONLY)) in seen:
            continue
        seen.add((device, read_only))
        if read_only:
            yield Finding(CRITICAL, f"{place} is mounted read-only", "DiskFilling", HOST)
        if usage.free < DISK_LEFT * usage.total:
            what = f"{place} has {usage.free / usage.total:.0%} left{largest(place, device)}"
            # Nothing fails for want of space before there is none.
            yield Finding(CRITICAL, what, "DiskFilling", HOST if usage.free < DISK_LEFT / 3 * usage.total else LATER)
        if system.f_files and system.f_favail < DISK_LEFT * system.f_files:
            share = system.f_favail / system.f_files
            yield Finding(CRITICAL, f"{place} has {share:.0%} of its inodes left", "DiskFilling", HOST)


def largest(place: str, device: int) -> str:
    """Name the largest file of a file system, as far as can be seen within a moment."""
    best, until = (0, ""), time.monotonic() + 2
    for directory, below, names in os.walk(place):
        if time.monotonic() > until:
            break
        found = {name: _lstat(Path(directory) / name) for name in [*below, *names]}
        here = {name: seen.st_blocks * 512 for name, seen in found.items() if seen and seen.st_dev == device}
        best = max([best, *((here[name], f"{directory}/{name}") for name in names if name in here)])
        below[:] = [name for name in below if name in here]
    return f"; its largest file is {best[1]}, {best[0] >> 20} MiB" if best[1] else ""


def _lstat(file: Path) -> os.stat_result | None:
    try:
        return file.lstat()
    except OSError:
        return None


@apart
def busy() -> Iterator[Finding]:
    """Look whether the processors have more to do than they can; what other machines' guests do is not seen here."""
    processors = os.cpu_count() or 1
    before = _ticks()
    time.sleep(1)
    used = {
        number: ticks - before.get(number, ticks) for number, ticks in _ticks().items() if number != str(os.getpid())
    }
    if sum(used.values()) / os.sysconf("SC_CLK_TCK") < 0.8 * processors:
        return
    number = max(used, key=lambda key: used[key])
    place = Path(f"/proc/{number}")
    # Our services may be busy with what they are there for.
    stranger = place.exists() and not 0 < place.stat().st_uid < 1000
    if stranger or os.getloadavg()[0] >= 2 * processors:
        name, load = text(place / "comm").strip(), os.getloadavg()[0]
        what = f"the {processors} processors are busy (load {load:.0f}), mostly with {name} (process {number})"
        yield Finding(WARNING, what, "", HOST, suspect=True)


def _ticks() -> dict[str, int]:
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        fields = text(place / "stat").rpartition(")")[2].split()
        if len(fields) > 12:
            found[place.name] = int(fields[11]) + int(fields[12])
    return found


def biggest(column: str) -> str:
    """Name the process that has most of something."""
    lines = say("ps", "-eo", f"pid,{column},comm", f"--sort=-{column}", "--no-headers")[1].splitlines()
    if not lines:
        return ""
    number, size, name = lines[0].split(None, 2)
    return f"; {name} (process {number}) has most, {int(size) >> 10} MiB"


def _colons(lines: str) -> Iterator[tuple[str, str]]:
    for line in lines.splitlines():
        name, _, rest = line.partition(":")
        yield name, rest


def differences(source: str, arguments: list[str]) -> Iterator[Finding]:
    """Compare this host with its last healthy state."""
    done, told = say(sys.executable, "-c", source, *arguments, patience=WITHIN)
    if not done:
        what = f"how this host differs from its healthy state cannot be seen: {quote(told[-LONGEST_QUOTE:])}"
        yield Finding(WARNING, what, "drift")
    for found in json.loads(told) if done else []:
        yield Finding(**found)


def careful(check: Check, found: list[Finding] | None = None) -> list[Finding]:
    """Run one check; what goes wrong in it must not hide what it and the others find."""
    found = [] if found is None else found
    try:
        for finding in check():
            found.append(finding)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        found.append(blind(getattr(check, "__name__", "check"), error))
    return found


def within(seconds: float, checks: dict[str, Check]) -> list[Finding]:
    """Run all checks at once; what is not seen within so many seconds is told, and not waited for."""
    found: dict[str, list[Finding]] = {name: [] for name in checks}
    until = time.monotonic() + seconds
    threads = {
        name: threading.Thread(target=careful, args=(check, found[name]), daemon=True) for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            what = f"the doctor could not look at everything within {seconds:g} s: {name} takes longer"
            found[name].append(Finding(WARNING, what, "", HOST))
    return [finding for part in found.values() for finding in list(part)]


def pages(given: argparse.Namespace) -> dict[str, Check]:
    """Return the checks of what answers over HTTP."""
    checks: dict[str, Check] = {}
    if given.api:
        checks["the API"] = lambda: api(given.api, given.key_file, given.hard_limit, given.app, given.api_path or PATHS)
    if given.console:
        checks["the console"] = lambda: console(given.console, given.hard_limit, given.app)
    if given.flower:
        checks["Flower"] = lambda: flower(given.flower, given.app)
    if given.monitoring:
        checks["monitoring"] = lambda: monitoring(*given.monitoring.split(","))
    return checks


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", default="typesafe", help="the installation's name")
    parser.add_argument("--unit", action="append", default=[], metavar="UNIT=RUNBOOK")
    parser.add_argument("--program", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE=PORT")
    parser.add_argument("--queue", action="append", default=[], help="of the broker")
    parser.add_argument("--redis-host", default="")
    parser.add_argument("--port", action="append", type=int, default=[], help="that all clients find Redis on")
    parser.add_argument("--service", action="append", default=[], help="that has secrets here")
    parser.add_argument("--secret", action="append", default=[], metavar="SERVICE/NAME", help="that must be here")
    parser.add_argument("--firewall", action="store_true")
    parser.add_argument("--api", metavar="URL")
    parser.add_argument("--key-file", default="", help="the API's key, for its metrics of the platform")
    parser.add_argument("--api-path", action="append", default=[], help="alive, ready and workers, in this order")
    parser.add_argument("--hard-limit", type=int, default=60, metavar="SECONDS")
    parser.add_argument("--console", metavar="URL")
    parser.add_argument("--flower", metavar="URL")
    parser.add_argument("--monitoring", metavar="PROMETHEUS,ALERTMANAGER")
    parser.add_argument("--record", default="", metavar="DIRECTORY", help="of the last healthy state")
    parser.add_argument("--state", default="", metavar="SOURCE", help="of playbooks/files/state.py")
    given = parser.parse_args()
    checks: dict[str, Check] = {
        "the host": host,
        "certificates": certificates,
        "units": lambda: units(dict(pair.split("=", 1) for pair in given.unit)),
    }
    if given.program:
        checks["programs"] = lambda: programs(given.program, given.app)
    for pair in given.redis:
        name, _, port = pair.partition("=")
        checks[f"Redis {name}"] = functools.partial(redis, name, int(port or 0), given.queue)
    if given.service:
        checks["files"] = lambda: files(given.app, given.service, given.secret)
        checks["the ways to Redis"] = lambda: clients(given.app, given.service, given.redis_host, given.port)
    if "worker" in given.service:
        checks["workers"] = lambda: workers(given.app)
    if given.firewall:
        checks["the firewall"] = lambda: firewall(given.port)
    checks |= pages(given)
    if given.state:
        known = [f"--{name}={value}" for name in ("unit", "redis") for value in getattr(given, name)]
        arguments = [given.record, f"--app={given.app}", f"--monitoring={given.monitoring or ''}", *known]
        checks["what differs from the healthy state"] = lambda: differences(given.state, arguments)
    findings = [asdict(finding) for finding in within(WITHIN, checks)]
    with contextlib.suppress(Exception):
        findings += facts(given.app) if given.service else []
    print(json.dumps(findings), flush=True)
    for run in list(RUNNING):
        run.kill()
    # Without waiting for what hangs.
    os._exit(0)


if __name__ == "__main__":
    main()
