"""What fills this host's file systems: prints causes as JSON; with --repair it removes what may go, and prints that.

Runs on the host as root. It never touches Redis' data, nor what belongs to others.
"""

import argparse
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from hosttools import process
from hosttools.findings import Cause, show

# Of a file system, as the alert and the doctor have it.
LEFT = 0.1
PSEUDO = ("proc", "sysfs", "devtmpfs", "overlay", "cgroup2", "devpts", "mqueue", "ramfs", "squashfs", "iso9660")
# What is there for a while, and what a container is given.
PASSING = re.compile(r"/(run|tmp|dev|proc|sys|etc)(/.*)?|/var/tmp")
# Where the installation writes; these are looked at even on a file system in memory.
OURS = ("/", "/var", "/var/log", "/var/lib/redis", "/var/lib/redis/broker", "/var/lib/prometheus", "/opt")
TIMEOUT = 60
COPIES_KEPT = 7 * 24 * 3600  # seconds; aof_broken.yml makes them
JOURNAL_KEPT = "200M"


def mounts(table: Path = Path("/proc/self/mounts")) -> list[str]:
    """Return where file systems are mounted that may fill up."""
    lines = [line.split() for line in table.read_text().splitlines()]
    kinds = {place: kind for _, place, kind, *_ in lines if Path(place).is_dir()}
    return sorted(
        place for place, kind in kinds.items() if place in OURS or (kind not in PSEUDO and not PASSING.fullmatch(place))
    )


def look(host: str) -> Iterator[Cause]:
    """Look at each file system."""
    for place in mounts():
        usage, inodes = shutil.disk_usage(place), os.statvfs(place)
        if usage.total and usage.free < LEFT * usage.total:
            what = f"{host}: {place} has {usage.free >> 20} of {usage.total >> 20} MB left; most is in {biggest(place)}"
            yield Cause("full", what, place, 0)
        if inodes.f_files and inodes.f_favail < LEFT * inodes.f_files:
            left = f"{inodes.f_favail} of {inodes.f_files} inodes left"
            what = f"{host}: {place} has {left}; most files: {crowded(place)}"
            yield Cause("inodes", what, place, 0)


def biggest(place: str) -> str:
    """Return in a sentence what takes the most room of one file system, deleted files that are still open included."""
    sizes = du(place, "--block-size=1M", "--all", "--threshold=1M")
    # What holds nearly all of its parent says more than the parent.
    most = [
        (size, path)
        for size, path in sizes[::-1]
        if not any(other.startswith(path + "/") and part > 0.8 * size for part, other in sizes)
    ]
    said = [f"{path} ({size} MB)" for size, path in most[:4]]
    said += [
        f"deleted, and still open in process {pid}: {ascii(path)[1:-1]} ({size >> 20} MB)"
        for size, pid, path in deleted(place)[:2]
    ]
    return ", ".join(said) or "many small files"


def du(place: str, *options: str) -> list[tuple[int, str]]:
    """Return numbers and names that du finds, the smallest first; a name may hold line breaks and whatever else."""
    entries = process.run(
        "du", "--null", "--one-file-system", "--max-depth=4", *options, place, timeout=TIMEOUT
    ).output.split("\0")[:-1]
    found = (entry.split("\t", 1) for entry in entries)
    return sorted((int(number), ascii(path)[1:-1]) for number, path in found if path != place)


def crowded(place: str) -> str:
    """Return the directories with the most files."""
    counts = du(place, "--inodes")
    return ", ".join(f"{path} ({count})" for count, path in counts[:-4:-1])


def deleted(place: str) -> list[tuple[int, str, str]]:
    """Return size, process and name of files without a name that processes still hold, the biggest first."""
    device, found = Path(place).stat().st_dev, {}
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target, status = str(handle.readlink()), handle.stat()
        except OSError:
            continue
        if target.endswith(" (deleted)") and status.st_dev == device and status.st_size > 1 << 20:
            found[status.st_ino] = (status.st_size, handle.parts[2], target.removesuffix(" (deleted)"))
    return sorted(found.values(), reverse=True)


def removable(prefix: str, keep: int) -> Iterator[Path]:
    """Yield what may go: rotated logs, core files, old copies of Redis' files, releases beyond those that are kept."""
    for log in ("/var/log", "/var/log/redis", f"/var/log/{prefix}", "/var/log/apt", "/var/log/supervisor"):
        for pattern in ("*.gz", "*.[0-9]", "*.old"):
            # No directories: postgresql-9.6 is no rotated log.
            yield from (file for file in Path(log).glob(pattern) if not file.is_dir())
    yield from Path("/var/lib/systemd/coredump").glob("*")
    yield from Path("/var/crash").glob("*")
    copies = Path("/var/lib/redis-aside").glob("*")
    yield from (copy for copy in copies if time.time() - copy.lstat().st_mtime > COPIES_KEPT)
    live = Path(f"/opt/{prefix}/backend").resolve()
    # Resolved on both sides: /opt may be a link.
    others = [release for release in Path(f"/opt/{prefix}/releases").glob("*") if release.resolve() != live]
    yield from sorted(others, key=lambda release: release.stat().st_mtime, reverse=True)[keep - 1 :]


def repair(prefix: str, keep: int) -> Iterator[str]:
    """Remove what may go; yield what was done."""
    before = {place: shutil.disk_usage(place).free for place in mounts()}
    for path in removable(prefix, keep):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        yield f"removed {ascii(str(path))[1:-1]}"
    process.run("journalctl", "--rotate", f"--vacuum-size={JOURNAL_KEPT}", timeout=TIMEOUT)
    process.run("apt-get", "clean", timeout=TIMEOUT)
    yield f"the journal is cut to {JOURNAL_KEPT}, the packages' cache is empty"
    for place, free in before.items():
        if (gained := shutil.disk_usage(place).free - free) > 1 << 20:
            yield f"{place}: {gained >> 20} MB more are free"


def main() -> None:
    """Look, or repair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--keep", type=int, default=3, metavar="RELEASES")
    parser.add_argument("--repair", action="store_true")
    arguments = parser.parse_args()
    if arguments.repair:
        print("\n".join(repair(arguments.prefix, arguments.keep)))
        return
    show(look(arguments.host))
