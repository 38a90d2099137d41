"""The host itself: memory, processors, clock, names, packages of Debian."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from hosttools import files, process, procfs
from hosttools.doctor.checks import apart
from hosttools.doctor.disks import disks
from hosttools.findings import CRITICAL, FILES, HOST, NETWORK, NOTE, WARNING, Finding

MEMORY_LEFT, RECENT = 0.1, 300  # a share, and seconds


def check() -> Iterator[Finding]:
    """Look at disk, memory, load and clock."""
    yield from disks()
    memory = {name: int(rest.split()[0]) for name, rest in _colons(files.read("/proc/meminfo"))}
    left = memory["MemAvailable"] / memory["MemTotal"]
    if left < MEMORY_LEFT:
        what = f"{left:.0%} of the memory is left{biggest('rss')}"
        # Little is left on many a healthy host: it explains what fails only when it is nearly gone.
        scarce = left < MEMORY_LEFT / 3
        yield Finding(CRITICAL if scarce else WARNING, what, "MemoryLow", HOST, suspect=scarce)
    pressure = re.search(r"full avg10=([\d.]+)", files.read("/proc/pressure/memory"))
    if pressure and float(pressure[1]) > 20:
        what = f"the host waits for memory {pressure[1]}% of the time{biggest('rss')}"
        yield Finding(WARNING, what, "MemoryLow", HOST, suspect=True)
    yield from busy()
    if process.run("timedatectl", "show", "--property=NTPSynchronized", "--value").output == "no":
        yield Finding(WARNING, "the clock is not synchronized", "ClockWrong")
    if not re.search(r"^nameserver \S", files.read("/etc/resolv.conf"), re.MULTILINE):
        yield Finding(WARNING, "/etc/resolv.conf names no name server", "BrokerUnreachable", NETWORK, suspect=True)
    if re.search(r"^127\.\S+\s.*\blocalhost\b", files.read("/etc/hosts"), re.MULTILINE) is None:
        yield Finding(WARNING, "/etc/hosts does not know localhost", "BrokerUnreachable", NETWORK, suspect=True)
    states = process.run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}\n").output
    if half := re.findall(r"^(?:i[HUF]|..R).*\|(\S+)$", states, re.MULTILINE):
        what = f"packages are installed by half: {', '.join(half[:5])}: dpkg --configure -a"
        yield Finding(WARNING, what, "failed-deploy", FILES, suspect=True)
    if Path("/run/reboot-required").exists():
        yield Finding(WARNING, "an update waits for a reboot", "")
    up = time.time() - Path("/proc/1").stat().st_mtime
    if up < RECENT:
        yield Finding(NOTE, f"the host was booted {up:.0f} s ago", "")
    overcommit = files.read("/proc/sys/vm/overcommit_memory").strip()
    if overcommit == "2":
        yield Finding(WARNING, "vm.overcommit_memory is 2: Redis cannot save", "RedisCannotSave", HOST, suspect=True)


@apart
def busy() -> Iterator[Finding]:
    """Look whether the processors have more to do than they can; what other machines' guests do is not seen here."""
    processors = os.cpu_count() or 1
    before = procfs.ticks()
    time.sleep(1)
    used = {
        number: ticks - before.get(number, ticks)
        for number, ticks in procfs.ticks().items()
        if number != str(os.getpid())
    }
    if sum(used.values()) / os.sysconf("SC_CLK_TCK") < 0.8 * processors:
        return
    number = max(used, key=lambda key: used[key])
    place = Path(f"/proc/{number}")
    # Our services may be busy with what they are there for.
    stranger = place.exists() and not 0 < place.stat().st_uid < 1000
    if stranger or os.getloadavg()[0] >= 2 * processors:
        name, load = files.read(place / "comm").strip(), os.getloadavg()[0]
        what = f"the {processors} processors are busy (load {load:.0f}), mostly with {name} (process {number})"
        yield Finding(WARNING, what, "", HOST, suspect=True)


def biggest(column: str) -> str:
    """Name the process that has most of something."""
    lines = process.run("ps", "-eo", f"pid,{column},comm", f"--sort=-{column}", "--no-headers").output.splitlines()
    if not lines:
        return ""
    number, size, name = lines[0].split(None, 2)
    return f"; {name} (process {number}) has most, {int(size) >> 10} MiB"


def _colons(lines: str) -> Iterator[tuple[str, str]]:
    for line in lines.splitlines():
        name, _, rest = line.partition(":")
        yield name, rest
