"""Processes of a unit: halted, killed for lack of memory, slowed down."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hosttools import files, procfs
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, WARNING, Finding


@apart
def check(unit: str, runbook: str, layer: int, group: str) -> Iterator[Finding]:
    """Look at a unit's processes: halted, killed for want of memory, slowed down."""
    if not group:
        return
    place = Path("/sys/fs/cgroup") / group.lstrip("/")
    numbers = files.read(place / "cgroup.procs").split()
    yield from halted(unit, runbook, layer, numbers)
    yield from crowded(unit, runbook, layer, numbers)
    for file, field, what in (
        ("memory.events", "oom_kill", "processes of {} were killed for want of memory since it started"),
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
