"""What supervises the workers, systemd or supervisor, and their processes."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosttools import files, process, procfs, systemd
from hosttools.masking import last_words

TIMEOUT = 20  # seconds for each command
# The alert's (roles/monitoring/templates/alerts.yml.j2): more ends than that within that many seconds are a loop.
LOOP_ENDS, LOOP_SECONDS = 3, 15 * 60
SETTLED_SECONDS = 60  # a process that is older has outlived its start
# systemd's message ids: a restart is scheduled, a main process has ended.
RESTART_SCHEDULED, PROCESS_EXIT = "5eb03494b6584870a536b337290809b3", "98e322203f7a4ed290d09fe03c09fe15"


def journal(*options: str) -> str:
    """Return messages of the journal."""
    return systemd.journal(*options, timeout=TIMEOUT)


def under_systemd(unit: str) -> dict[str, Any]:
    """Return how a unit is."""
    names = "LoadState ActiveState UnitFileState MainPID NRestarts ControlGroup MemoryMax StatusText"
    names += " StateChangeTimestampMonotonic"
    is_now = systemd.properties(f"{unit}.service", *names.split(), timeout=TIMEOUT)
    own = f"UNIT={unit}.service"
    scheduled = journal(own, f"MESSAGE_ID={RESTART_SCHEDULED}", "--since=-15min")
    # systemd counts anew when somebody starts the unit.
    ends = min(int(is_now.get("NRestarts") or 0), len(scheduled.splitlines()))
    seen = {
        "enabled": is_now.get("UnitFileState") == "enabled",
        "pid": int(is_now.get("MainPID") or 0),
        "ends": ends,
        "status": is_now.get("StatusText", ""),
        "memory_max": int(limit) if (limit := is_now.get("MemoryMax", "")).isdigit() else 0,
        "oom_kills": _oom_kills(is_now.get("ControlGroup", "")),
        "last_exit": journal(own, f"MESSAGE_ID={PROCESS_EXIT}", "-n1"),
        "last_log": last_words(journal(f"_SYSTEMD_UNIT={unit}.service", "-n20")),
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
    told = process.run("supervisorctl", "status", program, timeout=TIMEOUT).output
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
        "enabled": process.run("systemctl", "is-enabled", "supervisor", timeout=TIMEOUT).ok,
        "pid": int(found[1]) if (found := re.search(r"pid (\d+)", told)) else 0,
        "ends": len(ends),
        "status": " ".join(told.split()[1:]),
        "memory_max": 0,
        "oom_kills": 0,
        "last_exit": ends[-1] if ends else "",
        "last_log": last_words(process.run("tail", "--lines=20", str(log), timeout=TIMEOUT).output),
        "state": "crashing" if state == "starting" and ends else state,
    }


def _exits(program: str) -> Iterator[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - LOOP_SECONDS))
    log = process.run("tail", "--lines=500", "/var/log/supervisor/supervisord.log", timeout=TIMEOUT).output
    for line in log.splitlines():
        if line > since and f"exited: {program} " in line:
            yield line


def _oom_kills(group: str) -> int:
    file = Path(f"/sys/fs/cgroup{group}/memory.events")
    found = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE) if group and file.exists() else None
    return int(found[1]) if found else 0


def processes(main: int) -> list[dict[str, int]]:
    """Return the worker's processes, the main one first: age in seconds, memory in MiB, halted by a signal or not."""
    parents: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        if fields := procfs.stat(directory.name):  # else it has ended
            parents[int(directory.name)] = int(fields[1])
    wanted = [main] + [pid for pid, parent in parents.items() if parent == main]
    found = []
    for pid in wanted:
        stat, smaps = procfs.stat(pid), files.read(f"/proc/{pid}/smaps_rollup")
        if not stat or not smaps:  # it has ended
            continue
        size = {name: int(number) // 1024 for name, number in re.findall(r"^(Rss|Pss): +(\d+)", smaps, re.MULTILINE)}
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
        found.append(
            {"pid": pid, "age": int(age), "rss": size["Rss"], "pss": size["Pss"], "halted": int(stat[0] in "Tt")}
        )
    return found


def shares_processes(pid: int) -> bool:
    """Tell whether hundreds of runs share each process: the pool asyncio is none of Celery's own."""
    return "--pool=custom" in files.read(f"/proc/{pid}/cmdline").split("\0")
