"""The host itself: memory, processors, clock, names, packages of Debian."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from hosttools import files, process, procfs
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, FILES, HOST, LATER, NETWORK, NOTE, WARNING, Finding

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
        what = f"packages are half installed: {', '.join(half[:5])}: dpkg --configure -a"
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
    foreign = place.exists() and not 0 < place.stat().st_uid < 1000
    if foreign or os.getloadavg()[0] >= 2 * processors:
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


DISK_LEFT = 0.1


@apart
def disks() -> Iterator[Finding]:
    """Look whether what must be written can be."""
    seen = set()
    places = ["/", "/var", "/var/lib", "/var/lib/redis", "/var/lib/redis/broker", "/var/log", "/var/log/redis"]
    places += ["/var/log/journal", "/var/lib/prometheus", "/opt", "/etc", "/tmp", "/var/tmp", "/run", "/dev/shm"]  # noqa: S108 - looked at
    for _, place, kind, *_ in map(str.split, files.read("/proc/mounts").splitlines()):
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
            # Nothing fails before there is no space.
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
        found = {name: files.lstat(Path(directory) / name) for name in [*below, *names]}
        here = {name: seen.st_blocks * 512 for name, seen in found.items() if seen and seen.st_dev == device}
        best = max([best, *((here[name], f"{directory}/{name}") for name in names if name in here)])
        below[:] = [name for name in below if name in here]
    return f"; its largest file is {best[1]}, {best[0] >> 20} MiB" if best[1] else ""
