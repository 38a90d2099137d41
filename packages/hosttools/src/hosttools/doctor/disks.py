"""File systems: full, or read-only."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from hosttools import files
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, HOST, LATER, Finding

DISK_LEFT = 0.1


@apart
def disks() -> Iterator[Finding]:
    """Look whether what must be written can be."""
    seen = set()
    places = ["/", "/var", "/var/lib", "/var/lib/redis", "/var/lib/redis/broker", "/var/log", "/var/log/redis"]
    places += ["/var/log/journal", "/var/lib/prometheus", "/opt", "/etc", "/tmp", "/var/tmp", "/run"]  # noqa: S108 - looked at
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
        found = {name: files.lstat(Path(directory) / name) for name in [*below, *names]}
        here = {name: seen.st_blocks * 512 for name, seen in found.items() if seen and seen.st_dev == device}
        best = max([best, *((here[name], f"{directory}/{name}") for name in names if name in here)])
        below[:] = [name for name in below if name in here]
    return f"; its largest file is {best[1]}, {best[0] >> 20} MiB" if best[1] else ""
