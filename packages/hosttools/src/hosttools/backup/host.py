"""What this host has: room, memory, files of Redis, the redis user."""

import os
import pwd
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from hosttools import files
from hosttools.redis_client import Instance

TIMEOUT = 1800  # seconds: gigabytes are written and read
SPARE = 32 * 1024**2  # bytes of disk and memory that stay free
STATE = Path("/var/lib")  # in which nobody but root makes directories
AOF_MANIFEST = "appendonlydir/appendonly.aof.manifest"
# All of an instance's data; the last is what Redis takes over at its start when there is no appendonlydir.
DATA = ("appendonlydir", "dump.rdb", "appendonly.aof")


def data_of(instance: Instance) -> list[Path]:
    """Return what there is of an instance's data."""
    return [path for name in DATA if os.path.lexists(path := instance.data / name)]


def reject(sentence: str) -> NoReturn:
    """End with one sentence."""
    sys.exit(sentence)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            reject(f"{what}: not within {TIMEOUT} s.")
        time.sleep(0.1)


def size(paths: list[Path]) -> int:
    """Return the bytes of files and of what directories hold."""
    files = [file for path in paths for file in (path, *(path.rglob("*") if path.is_dir() else ()))]
    return sum(found.st_size for found in map(Path.lstat, files) if stat.S_ISREG(found.st_mode))


def need_disk(place: Path | int, wanted: int) -> None:
    """Refuse when the file system of a directory or an open file has too little room."""
    free = shutil.disk_usage(place).free
    if free < wanted + SPARE:
        name = place if isinstance(place, Path) else "The archive's directory"
        reject(f"{name} has {free >> 20} MB left, and {(wanted + SPARE) >> 20} MB are needed.")


def need_memory(wanted: int) -> None:
    """Refuse when a second server with this data would take the memory of the first."""
    found = re.search(r"^MemAvailable: +(\d+) kB", files.read("/proc/meminfo"), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    if available < wanted + SPARE:
        reject(f"{available >> 20} MB of memory are available, and trying the data needs {(wanted + SPARE) >> 20} MB.")


def make_for_redis(directory: Path) -> None:
    """Make a directory of the redis user, whose parents only root can change."""
    own = STATE / directory.relative_to(STATE).parts[0]
    for place in reversed([directory, *directory.parents]):
        if place.is_relative_to(own):
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
    shutil.chown(directory, "redis", "redis")
    directory.chmod(0o750)


def become_redis() -> None:
    """Be the redis user from now on, without a way back."""
    user = pwd.getpwnam("redis")
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.umask(0o027)
    os.chdir("/")


def open_file(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        SystemExit: it is a link, or no file: one that never ends, or that nobody writes.
        FileNotFoundError: it is not there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reject(f"{str(path)!a} cannot be read as a file of Redis: {error.strerror}.")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        reject(f"{str(path)!a} is not a file, as Redis' data is.")
    return os.fdopen(handle, "rb")


def copy(source: BinaryIO, target: Path) -> None:
    """Copy as much of a file as there is now: Redis may go on writing."""
    left = os.fstat(source.fileno()).st_size
    with target.open("xb") as out:
        while left and (block := source.read(min(left, 1 << 20))):
            out.write(block)
            left -= len(block)


def open_archive(path: Path) -> BinaryIO:
    """Make an archive, for the owner of its directory alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    owner = path.parent.stat()
    os.fchown(handle, owner.st_uid, owner.st_gid)
    return os.fdopen(handle, "wb")
