"""Units of systemd and programs of supervisor: whether they run, and come back after a boot."""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hosttools import files, process, procfs, systemd
from hosttools.doctor.checks import apart
from hosttools.doctor.reasons import because, reason
from hosttools.findings import CRITICAL, FILES, HOST, LATER, NETWORK, NOTE, REDIS, UNITS, WARNING, WORKERS, Finding
from hosttools.masking import quote

RECENT = 300  # seconds
# Where each unit stands, by the page that helps when it is away.
LAYERS = {"": NETWORK, "RedisDown": REDIS, "SentinelsMissing": REDIS, "ApiDown": UNITS, "NoWorkers": WORKERS}


def check(wanted: dict[str, str]) -> Iterator[Finding]:
    """Look whether each unit runs and comes back after a boot; ``wanted`` names each unit's runbook."""
    names = "Id LoadState ActiveState SubState Result ExecMainCode ExecMainStatus NRestarts UnitFileState ControlGroup"
    names += " FreezerState DropInPaths NeedDaemonReload StateChangeTimestampMonotonic"
    asked = process.run("systemctl", "show", f"--property={names.replace(' ', ',')}", *wanted)
    shown = asked.output.split("\n\n")
    if wanted and (len(shown) != len(wanted) or "=" not in asked.output):
        what = f"systemd does not answer: {quote(asked.errors) or 'systemctl says nothing'}"
        yield Finding(CRITICAL, what, "", HOST)
        return
    changed: dict[str, list[str]] = {}
    for (unit, runbook), told in zip(wanted.items(), shown, strict=False):
        properties = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        yield from state(unit, runbook, properties)
        for file in foreign(properties.get("DropInPaths", "").split()):
            changed.setdefault(file, []).append(unit)
    for file, names_here in changed.items():
        layer = min(LAYERS.get(wanted[unit], LATER) for unit in names_here)
        yield from drop_in(file, names_here, layer)
    if systemd.active("systemd-journald") in ("inactive", "failed"):
        yield Finding(CRITICAL, "systemd-journald does not run: nobody's logs are kept", "UnitRestartLoop", LATER)
    for line in process.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").output.splitlines():
        if line and (unit := line.split()[0].removesuffix(".service")) not in wanted:
            yield Finding(WARNING, f"{unit} has failed{because(unit)}", "UnitRestartLoop")


@apart
def state(unit: str, runbook: str, properties: dict[str, str]) -> Iterator[Finding]:
    """Judge what systemd says of a unit."""
    layer = LAYERS.get(runbook, LATER)
    active, result = properties.get("ActiveState", "unknown"), properties.get("Result", "")
    since = time.monotonic() - int(properties.get("StateChangeTimestampMonotonic") or 0) / 1e6
    restarts = int(properties.get("NRestarts") or 0)
    if properties.get("LoadState") == "masked":
        what = f"{unit} is masked, it cannot start{' again' if active == 'active' else ''}: systemctl unmask {unit}"
        yield Finding(CRITICAL, what, "drift", layer, certain=True)
    elif properties.get("LoadState") in ("not-found", "bad-setting", "error"):
        problem = properties["LoadState"].replace("-", " ")
        yield Finding(CRITICAL, f"{unit} has no unit file that systemd can read ({problem})", runbook, layer)
    elif properties.get("FreezerState", "running") not in ("running", ""):
        what = f"{unit} is {properties['FreezerState']}: systemctl thaw {unit}"
        yield Finding(CRITICAL, what, "drift", layer, certain=True)
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
            what = f"{unit} was restarted {restarts} times, last {since:.0f} s ago{because(unit)}"
            yield Finding(WARNING, what, runbook, layer, suspect=True)
    if properties.get("UnitFileState", "enabled") in ("disabled", "linked", "enabled-runtime"):
        yield Finding(WARNING, f"{unit} is {properties['UnitFileState']}: it would not start after a boot", runbook)
    if properties.get("NeedDaemonReload") == "yes":
        changed = f"{unit}'s unit file was changed and is not in force yet: systemctl daemon-reload"
        yield Finding(WARNING, changed, "drift", FILES, suspect=True)


def how(properties: dict[str, str]) -> str:
    """Say how a unit's process ended."""
    code = {"1": "exit code", "2": "signal", "3": "signal"}.get(properties.get("ExecMainCode", ""), "")
    return f"{properties.get('Result')}, {code} {properties.get('ExecMainStatus')}" if code else properties["Result"]


@apart
def drop_in(file: str, units: list[str], layer: int) -> Iterator[Finding]:
    """Name what somebody has changed about units besides us and Debian."""
    changes = ", ".join(units)
    if file.endswith("/90-debug-mode.conf"):
        yield Finding(NOTE, f"{changes} is in debug mode, which ends by itself", "debug-mode")
        return
    lines = [line for line in files.read(file).splitlines() if "=" in line and not line.startswith(("#", ";"))]
    what = f"{file}, not ours, changes {changes}: {quote(', '.join(lines[:4]))}"
    yield Finding(WARNING, what, "drift", min(layer, FILES), suspect=True)


def foreign(paths: list[str]) -> list[str]:
    """Return the drop-ins that are neither ours nor Debian's."""
    theirs = [
        path for path in paths if not path.startswith(("/usr/lib/", "/lib/")) and not path.endswith("/restart.conf")
    ]
    return [path for path in theirs if "Ansible managed" not in files.read(path)]


@apart
def programs(names: list[str], app: str) -> Iterator[Finding]:
    """Look at supervisor's programs."""
    for line in process.run("supervisorctl", "status", *names, merge=True).output.splitlines():
        words = line.split()
        if line.startswith(("unix:", "http:", "error:")):
            yield Finding(CRITICAL, f"supervisord does not answer: {quote(line)}", "NoWorkers", WORKERS)
            return
        if "RUNNING" not in line:
            log = Path(f"/var/log/{app}/{words[0].removeprefix(f'{app}-')}.log")
            said = "" if "STOPPED" in line else reason(files.read(log)[-100_000:])
            what = " ".join(words) + (f": {said}" if said else "")
            yield Finding(CRITICAL, what, "NoWorkers", WORKERS, certain="STOPPED" in line)
        elif number := re.search(r"pid (\d+)", line):
            children = files.read(f"/proc/{number[1]}/task/{number[1]}/children").split()
            yield from halted(words[0], "NoWorkers", WORKERS, [number[1], *children])


@apart
def processes(unit: str, runbook: str, layer: int, group: str) -> Iterator[Finding]:
    """Look at a unit's processes: halted, killed for lack of memory, slowed down."""
    if not group:
        return
    place = Path("/sys/fs/cgroup") / group.lstrip("/")
    numbers = files.read(place / "cgroup.procs").split()
    yield from halted(unit, runbook, layer, numbers)
    yield from crowded(unit, runbook, layer, numbers)
    for file, field, what in (
        ("memory.events", "oom_kill", "processes of {} were killed for lack of memory since it started"),
        ("pids.events", "max", "times {} could not start a process or thread (TasksMax)"),
    ):
        count = re.search(rf"^{field} (\d+)", files.read(place / file), re.MULTILINE)
        if count and int(count[1]):
            yield Finding(WARNING, f"{count[1]} {what.format(unit)}", runbook, layer, suspect=True)
    throttled = dict(line.split() for line in files.read(place / "cpu.stat").splitlines())
    if int(throttled.get("nr_throttled", 0)) > 0.5 * int(throttled.get("nr_periods", 0)):
        yield Finding(CRITICAL, f"{unit} is held back: it has used up its CPUQuota", runbook, layer)


@apart
def crowded(unit: str, runbook: str, layer: int, numbers: Iterable[str]) -> Iterator[Finding]:
    """Name processes that can open hardly any file or connection more."""
    for number in numbers:
        limit = re.search(r"^Max open files\s+(\d+)", files.read(f"/proc/{number}/limits"), re.MULTILINE)
        with contextlib.suppress(OSError):
            opened = len(list(Path(f"/proc/{number}/fd").iterdir()))
            if limit and opened > 0.9 * int(limit[1]):
                what = f"process {number} of {unit} has {opened} of {limit[1]} possible files and connections open"
                yield Finding(CRITICAL, f"{what} (LimitNOFILE): restart it", runbook, layer)


@apart
def halted(unit: str, runbook: str, layer: int, numbers: Iterable[str]) -> Iterator[Finding]:
    """Name processes that were stopped by a signal."""
    found = {number: files.read(f"/proc/{number}/comm").strip() for number in numbers if procfs.is_halted(number)}
    if found:
        which = f"{next(iter(found.values()))} of {unit}, process {' '.join(found)}, is halted by a signal"
        yield Finding(CRITICAL, f"{which}: kill -CONT {' '.join(found)}", runbook, layer, certain=True)
