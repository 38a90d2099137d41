#!/usr/bin/env python3
"""How the workers of this host are, and why: changes nothing, prints JSON.

Runs on the host as root, with the system's Python alone. On a worker's host it looks at each pool's unit or program and
at the memory of its processes, and tries what a worker does first, as the worker's own user: import the application,
reach Redis. On the broker's host it reads when each worker has last told Redis that it lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 20  # seconds for each command
NO_PROGRAM, TOO_LONG = 127, 124  # as shells and timeout(1) say it
# The alert's (roles/monitoring/templates/alerts.yml.j2): more ends than that within that many seconds are a loop.
LOOP_ENDS, LOOP_SECONDS = 3, 15 * 60
NEVER_LIVE = 1e9
SETTLED_SECONDS = 60  # a process that is older has outlived its start
# systemd's message ids: a restart is scheduled, a main process has ended.
RESTART_SCHEDULED, PROCESS_EXIT = "5eb03494b6584870a536b337290809b3", "98e322203f7a4ed290d09fe03c09fe15"
JOURNAL = ["--no-pager", "--quiet", "--output=cat"]
URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")
# As pip sees it: markers judged, versions compared, nothing installed.
CHECK_PACKAGES = ["-m", "pip", "--isolated", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
CHECK_PACKAGES += ["--no-index", "--no-deps", "--require-hashes", "--requirement", "requirements.txt"]
CHECK_DEPENDENCIES = ["-m", "pip", "--isolated", "check", "--disable-pip-version-check"]
# A PING to what the secrets name, as a worker and without the application.
TRY_REDIS = """
import redis
from celery_durable.connection import broker_client, results_client
from durable_console.application import options

for part, client in (("queue", broker_client(options)), ("results", results_client(options))):
    try:
        client.ping()
    except redis.RedisError as error:
        address = client.connection_pool.connection_kwargs
        raise SystemExit(f"Redis for the {part} at {address.get('host')}:{address.get('port')}: {error}")
"""


def say(*command: str, **options: Any) -> tuple[int, str, str]:
    """Run a command; return its exit status, output and errors; also when it takes too long or is not there."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False, **options
        )
    except subprocess.TimeoutExpired:
        return TOO_LONG, "", f"{command[0]} did not end within {PATIENCE} s"
    except OSError as error:
        return NO_PROGRAM, "", str(error)
    return run.returncode, run.stdout.strip(), run.stderr.strip()


def last_line(text: str) -> str:
    """Return the last line that says something, passwords in URLs masked; of a JSON log its message and exceptions."""
    line = ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            # Of a printed chain, the lines that are not indented name each exception.
            raised = re.findall(r"^[\w.]+(?:: .*)?$", told.get("exception", ""), re.MULTILINE)
            line = ": ".join([str(told.get("message", line)).strip(), *([" -> ".join(raised)] if raised else [])])
    return URL_PASSWORD.sub(r"\1**@", line)[:600]


# What would keep a worker from starting


def obstacle(prefix: str, user: str, secrets: list[str]) -> dict[str, str]:
    """Return what keeps a worker from starting on this host, its ``kind`` and a sentence; nothing when it could start.

    Kinds: secrets, settings, venv, release, password (refused by Redis), redis (not reached) and slow (nobody knows).
    """
    release, directory = Path(f"/opt/{prefix}/backend"), Path(f"/etc/{prefix}/secrets/worker")
    if not release.exists():
        return {"kind": "release", "says": f"{release} leads to no release"}
    for name in secrets:
        if not (directory / name).is_file() or not (directory / name).stat().st_size:
            return {"kind": "secrets", "says": f"the secret file {directory / name} is missing or empty"}
    account = pwd.getpwnam(user)
    options: dict[str, Any] = {
        "cwd": release,
        "user": account.pw_uid,
        "group": account.pw_gid,
        "extra_groups": os.getgrouplist(user, account.pw_gid),
        "env": {"PATH": "/usr/bin:/bin", "SECRETS_DIRECTORY": str(directory), "PYTHONDONTWRITEBYTECODE": "1"},
    }
    return _not_loaded(prefix, options) or _not_connected(prefix)


def slow(complaint: str) -> dict[str, str]:
    """Return that nobody knows: what takes too long on a busy host is not broken."""
    return {"kind": "slow", "says": complaint}


def _not_loaded(prefix: str, options: dict[str, Any]) -> dict[str, str]:
    release, settings = Path(f"/opt/{prefix}/backend"), f"/etc/{prefix}/backend.env"
    python, admin = str(release / "venv/bin/python"), f"/usr/local/sbin/{prefix}-admin"
    failed, _, errors = say(admin, "--as=worker", "--check")
    if failed == TOO_LONG:
        return slow(errors)
    if failed not in (0, NO_PROGRAM) and "Traceback" not in errors:
        sentence = " ".join(last_line(line) for line in errors.splitlines())
        return {"kind": "settings", "says": f"{settings} or a secret is refused: {sentence}"}
    for check in (CHECK_PACKAGES, CHECK_DEPENDENCIES):
        broken, told, complaint = say(python, *check, **options)
        if broken == TOO_LONG:
            return slow(complaint)
        if broken:
            return {"kind": "venv", "says": f"{release}/venv is broken: {last_line(complaint or told)}"}
    if failed == NO_PROGRAM:
        return {"kind": "settings", "says": f"{admin} is missing"}
    return _broken(errors) if failed else {}


def _broken(errors: str) -> dict[str, str]:
    """Judge the traceback of an application that cannot be imported."""
    file, line = re.findall(r'File "([^"]+)", line (\d+)', errors)[-1]
    kind = "venv" if "/venv/" in file else "release"
    return {"kind": kind, "says": f"the application cannot be loaded: {file}:{line}: {last_line(errors)}"}


def _not_connected(prefix: str) -> dict[str, str]:
    failed, _, errors = say(
        f"/usr/local/sbin/{prefix}-admin", "--as=worker", "--run", "venv/bin/python", "-c", TRY_REDIS
    )
    if not failed:
        return {}
    if failed == TOO_LONG:
        return slow(errors)
    refused = re.search("WRONGPASS|NOAUTH|NOPERM|invalid username-password", errors)
    return {"kind": "password" if refused else "redis", "says": last_line(errors)}


def releases(prefix: str) -> dict[str, Any]:
    """Return the live release and the other complete ones, the one that was live last first."""
    root = Path(f"/opt/{prefix}")
    live = (root / "backend").resolve().name
    # A directory's time is when the release was last live (roles/app_release/tasks/switch.yml), the oldest of one that
    # has failed its gates. Somebody has gone back from one that is marked so (playbooks/tasks/roll_host.yml).
    complete = [mark.parent for mark in root.glob("releases/*/.complete") if mark.parent.name != live]
    complete = [path for path in complete if not (path / ".rolled-back").exists() and path.stat().st_mtime > NEVER_LIVE]
    return {"live": live, "others": [path.name for path in sorted(complete, key=lambda path: -path.stat().st_mtime)]}


# What supervises the workers


def under_systemd(unit: str) -> dict[str, Any]:
    """Return how a unit is."""
    names = "LoadState,ActiveState,UnitFileState,MainPID,NRestarts,ControlGroup,MemoryMax,StatusText"
    names += ",StateChangeTimestampMonotonic"
    _, shown, _ = say("systemctl", "show", f"--property={names}", f"{unit}.service")
    is_now = dict(line.split("=", 1) for line in shown.splitlines())
    scheduled = say(
        "journalctl", f"UNIT={unit}.service", f"MESSAGE_ID={RESTART_SCHEDULED}", *JOURNAL, "--since=-15min"
    )[1]
    # systemd counts anew when somebody starts the unit.
    ends = min(int(is_now.get("NRestarts") or 0), len(scheduled.splitlines()))
    seen = {
        "enabled": is_now.get("UnitFileState") == "enabled",
        "pid": int(is_now.get("MainPID") or 0),
        "ends": ends,
        "status": is_now.get("StatusText", ""),
        "memory_max": int(limit) if (limit := is_now.get("MemoryMax", "")).isdigit() else 0,
        "oom_kills": _oom_kills(is_now.get("ControlGroup", "")),
        "last_exit": say("journalctl", f"UNIT={unit}.service", f"MESSAGE_ID={PROCESS_EXIT}", *JOURNAL, "-n1")[1],
        "last_log": last_line(say("journalctl", f"_SYSTEMD_UNIT={unit}.service", *JOURNAL, "-n20")[1]),
    }
    active = is_now.get("ActiveState", "")
    if is_now.get("LoadState") == "masked":
        state = "masked"
    elif is_now.get("LoadState") == "not-found":
        state = "missing"
    elif active == "activating":
        since = time.monotonic() - int(is_now.get("StateChangeTimestampMonotonic") or 0) / 1e6
        state = "crashing" if ends else "starting" if since < SETTLED_SECONDS else "hanging"
    else:
        state = {"active": "running", "deactivating": "stopping", "failed": "failed"}.get(active, "stopped")
    return {**seen, "state": state}


def under_supervisor(program: str, prefix: str) -> dict[str, Any]:
    """Return how a program is."""
    _, told, _ = say("supervisorctl", "status", program)
    word = [*told.split(), "", ""][1]
    states = {
        "RUNNING": "running",
        "STARTING": "starting",
        "STOPPING": "stopping",
        "BACKOFF": "crashing",
        "FATAL": "failed",
    }
    ends = list(_exits(program))
    log = Path(f"/var/log/{prefix}/{program.removeprefix(prefix + '-')}.log")
    state = "missing" if "no such process" in told else states.get(word, "stopped")
    return {
        # supervisor starts its programs with itself.
        "enabled": say("systemctl", "is-enabled", "supervisor")[0] == 0,
        "pid": int(found[1]) if (found := re.search(r"pid (\d+)", told)) else 0,
        "ends": len(ends),
        "status": " ".join(told.split()[1:]),
        "memory_max": 0,
        "oom_kills": 0,
        "last_exit": ends[-1] if ends else "",
        "last_log": last_line(say("tail", "--lines=20", str(log))[1]),
        "state": "crashing" if state == "starting" and ends else state,
    }


def _exits(program: str) -> Iterator[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - LOOP_SECONDS))
    for line in say("tail", "--lines=500", "/var/log/supervisor/supervisord.log")[1].splitlines():
        if line > since and f"exited: {program} " in line:
            yield line


def _oom_kills(group: str) -> int:
    file = Path(f"/sys/fs/cgroup{group}/memory.events")
    found = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE) if group and file.exists() else None
    return int(found[1]) if found else 0


# Processes


def processes(main: int) -> list[dict[str, int]]:
    """Return the worker's processes, the main one first: age in seconds, memory in MiB, halted by a signal or not."""
    parents: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(directory.name)] = int(_stat(int(directory.name))[1])
        except OSError:  # it has ended
            continue
    wanted = [main] + [pid for pid, parent in parents.items() if parent == main]
    found = []
    for pid in wanted:
        try:
            stat, smaps = _stat(pid), Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        size = {name: int(number) // 1024 for name, number in re.findall(r"^(Rss|Pss): +(\d+)", smaps, re.MULTILINE)}
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
        found.append(
            {"pid": pid, "age": int(age), "rss": size["Rss"], "pss": size["Pss"], "halted": int(stat[0] in "Tt")}
        )
    return found


def _shares_processes(pid: int) -> bool:
    """Tell whether hundreds of runs share each process: the pool asyncio is none of Celery's own."""
    try:
        return b"--pool=custom" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def _stat(pid: int) -> list[str]:
    # The name in parentheses may hold blanks.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


# Everything


def look(pool: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how a pool's worker is."""
    suffix = "" if pool == "default" else f"-{pool}"
    if arguments.supervisor:
        unit = f"{arguments.prefix}-celery-worker{suffix}"
        seen = under_supervisor(unit, arguments.prefix)
    else:
        unit = f"{arguments.prefix}-celery{suffix}"
        seen = under_systemd(unit)
    seen["processes"] = processes(seen["pid"]) if seen["pid"] else []
    if seen["state"] == "running" and seen["processes"]:
        main = seen["processes"][0]
        if main["halted"]:
            seen["state"] = "halted"
        elif seen["ends"] > LOOP_ENDS and main["age"] < SETTLED_SECONDS:
            seen["state"] = "crashing"
    seen["shared"] = bool(seen["processes"]) and _shares_processes(seen["pid"])
    return {"unit": unit, "node": f"{pool}@{socket.gethostname()}", **seen}


def signs(instance: str) -> dict[str, int] | None:
    """Return the seconds since each worker last told the broker that it lives; None when the broker does not answer."""
    suffix = "" if instance == "main" else f"-{instance}"
    config = Path(f"/etc/redis/redis{suffix}.conf")
    password = re.search(r"^requirepass (\S+)", config.read_text(), re.MULTILINE) if config.exists() else None
    client = ["redis-cli", "--no-auth-warning", "-s", f"/run/redis{suffix}/redis-server.sock"]
    environment = {**os.environ, "REDISCLI_AUTH": password[1] if password else ""}
    _, now, _ = say(*client, "TIME", env=environment)
    _, told, _ = say(*client, "HGETALL", "workers", env=environment)
    # One that loads its data tells the time, and nothing else.
    if not now.split("\n")[0].isdigit() or told.startswith("LOADING"):
        return None
    second, lines = int(now.split("\n")[0]), told.splitlines()
    return {node: second - int(state.split()[0]) for node, state in zip(lines[::2], lines[1::2], strict=True)}


def memory() -> dict[str, Any]:
    """Return the host's memory in MiB, its largest programs, and the kernel's kills for want of it within a day."""
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    kernel = say("journalctl", "--dmesg", *JOURNAL, "--since=-24hours")[1]
    largest = say("ps", "-eo", "rss=,pid=,comm=", "--sort=-rss")[1].splitlines()[:3]
    words = [line.split(maxsplit=2) for line in largest]
    return {
        "total": int(sizes["MemTotal"]) // 1024,
        "available": int(sizes["MemAvailable"]) // 1024,
        "kernel_kills": len(re.findall(r"Killed process", kernel)),
        "largest": [f"{name} (process {pid}) {int(rss) // 1024} MiB" for rss, pid, name in words],
    }


def settings(prefix: str) -> dict[str, str]:
    """Return the application's settings as they were deployed; no secret is among them."""
    file = Path(f"/etc/{prefix}/backend.env")
    found = dict(re.findall(r"^(\w+)='(.*)'$", file.read_text(), re.MULTILINE)) if file.exists() else {}
    # An application that does not read the platform's names has them by the library's alone.
    return {name.removeprefix("DURABLE_"): value for name, value in found.items()} | found


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="typesafe", help="the installation's name")
    parser.add_argument("--pool", action="append", default=[])
    parser.add_argument("--supervisor", action="store_true", help="supervisor runs the workers, not systemd")
    parser.add_argument("--secret", action="append", default=[], help="a secret file that a worker needs")
    parser.add_argument("--broker", metavar="INSTANCE", help="this host's Redis instance that holds the queue")
    arguments = parser.parse_args()
    told: dict[str, Any] = {"memory": memory(), "settings": settings(arguments.prefix)}
    if arguments.pool:
        told["workers"] = [look(pool, arguments) for pool in arguments.pool]
        told["obstacle"] = obstacle(arguments.prefix, arguments.prefix, arguments.secret)
        told["releases"] = releases(arguments.prefix)
    if arguments.broker:
        told["signs"] = signs(arguments.broker)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
