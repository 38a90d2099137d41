"""Why a Redis cannot read or write its append-only file: prints causes as JSON, and what it holds with --count.

Runs on the host as root. --rewrite ends a previous failure, --own gives the files to Redis. The redis user may have put
anything into its directory: no link there is followed, and Redis' tools run as it.
"""

import argparse
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from hosttools import masking, process, systemd
from hosttools.findings import Cause, show
from hosttools.redis_client import DATA, Instance, RedisError

ENOUGH = 32 * 1024**2  # bytes that must be free for Redis to write
TIMEOUT = 300  # seconds: gigabytes are read
ANSWER = 10  # seconds in which a Redis that runs answers
MANIFEST_SIZE = 1 << 20  # bytes; Redis' has a line for each file
AS_REDIS = ("setpriv", "--reuid=redis", "--regid=redis", "--init-groups", "--")


def client(name: str, *words: str) -> str:
    """Ask an instance as its administrator; an error is an answer, too."""
    try:
        with Instance(name).connect(ANSWER) as redis:
            return str(redis.call(*words))
    except RedisError as error:
        return str(error)
    except OSError as error:
        sys.exit(f"Redis {name} does not answer {words[0]}: {error}.")


def owner(number: int) -> str:
    """Return who a user is: a copy from elsewhere may have an owner that has no name here."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user number {number}"


def files(directory: Path) -> dict[Path, os.stat_result]:
    """Return an instance's directory and what is in it, links as themselves; another instance's is left out."""
    append_only = directory / "appendonlydir"
    below = [*append_only.glob("*")] if not append_only.is_symlink() else []
    found = [append_only, *below, *directory.glob("dump*.rdb"), *directory.glob("appendonly.aof")]
    return {directory: directory.stat()} | {path: path.lstat() for path in found if os.path.lexists(path)}


def strange(seen: os.stat_result) -> bool:
    """Tell whether something is what Redis never makes: a link, a device, a pipe, a file with a second name."""
    return not stat.S_ISDIR(seen.st_mode) and (not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1)


def look(host: str, name: str) -> Iterator[Cause]:
    """Look at one instance: at its file system, its files' rights, and, where it does not run, into its files."""
    directory = Instance(name).data
    if not directory.is_dir():
        yield Cause("lost", f"{host}: {directory} is not there", name, 0)
        return
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        yield Cause("readonly", f"{host}: {directory} is mounted read-only (dmesg says why)", name, 0)
        return
    free = shutil.disk_usage(directory).free
    if free < ENOUGH or os.statvfs(directory).f_favail == 0:
        yield Cause("full", f"{host}: the file system of {directory} is full ({free >> 20} MB left)", name, 1)
        return
    append_only, found = directory / "appendonlydir", files(directory)
    planted = [path for path, seen in found.items() if strange(seen)]
    if directory.is_symlink() and directory.lstat().st_uid != 0:
        planted = [directory]
    if planted:
        what = f"{host}: {str(planted[0])!a} is a link, a device or a file with a second name, which Redis never makes"
        yield Cause("strange", what, name, 0)
        return
    foreign = [(path, owner(seen.st_uid)) for path, seen in found.items() if owner(seen.st_uid) != "redis"]
    if foreign:
        yield Cause("rights", f"{host}: {str(foreign[0][0])!a} belongs to {foreign[0][1]}, not to redis", name, 2)
    if systemd.active(Instance(name).unit, TIMEOUT) == "active":
        status = re.findall(r"^(\w+_status):err", client(name, "INFO", "persistence"), re.MULTILINE)
        if status and not foreign:
            what = f"{host}: Redis {name} could not write ({', '.join(status)}); its disk can now"
            yield Cause("status", what, name, 4)
        return
    yield from check(host, name, append_only)


def check(host: str, name: str, append_only: Path) -> Iterator[Cause]:
    """Let Redis' own tool look into the files."""
    manifests = list(append_only.glob("*.manifest"))
    if not manifests:
        return
    if manifests[0].lstat().st_size > MANIFEST_SIZE:
        what = f"{host}: {str(manifests[0])!a} is longer than {MANIFEST_SIZE >> 20} MB, and no manifest of Redis"
        yield Cause("strange", what, name, 0)
        return
    checked = process.run(*AS_REDIS, "redis-check-aof", str(manifests[0]), timeout=TIMEOUT, merge=True)
    if checked.ok:
        return
    if checked.code == process.TIMED_OUT:
        sys.exit(checked.errors)
    analysed = re.findall(r"filename=(\S+), size=(\d+), ok_up_to=(\d+).*diff=(\d+)", checked.output)
    last = next(((file, int(size), int(lost)) for file, size, _, lost in analysed if int(lost)), None)
    if last is None or ".incr." not in last[0]:
        reason = masking.last_line(checked.output or checked.errors) or "nothing"
        yield Cause("lost", f"{host}: no tool repairs Redis {name}'s files; redis-check-aof says: {reason}", name, 3)
        return
    file, size, lost = last
    need, free = sum(f.lstat().st_size for f in append_only.glob("*")), shutil.disk_usage(append_only).free
    if need + ENOUGH > free:
        what = f"{host}: {append_only}/{file} is broken, and there is no room for a copy ({need >> 20} MB)"
        yield Cause("full", what, name, 1)
        return
    what = f"{host}: {append_only}/{file} is broken; a repair cuts off its last {lost} of {size} bytes"
    yield Cause("broken", what, name, 3)


def own(directory: Path) -> None:
    """Give an instance's files to redis.

    Raises:
        SystemExit: there is something that is not Redis', which would be given away with them.
    """
    user = pwd.getpwnam("redis")
    # Only the last name can be the redis user's doing.
    top = directory.parent.resolve() / directory.name
    if top == DATA.parent.resolve() / DATA.name:
        top = top.resolve()
    if not top.exists():
        sys.exit(f"{directory} is not there.")
    if top.is_symlink():
        sys.exit(f"{directory} is a link, and its files are not given to redis: mount the disk there instead.")
    for place, _, names, handle in os.fwalk(top, follow_symlinks=False):
        os.fchown(handle, user.pw_uid, user.pw_gid)
        for name in names:
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
            except OSError as error:
                sys.exit(f"{f'{place}/{name}'!a} is not given to redis ({error.strerror}): remove it.")
            try:
                if strange(os.fstat(file)):
                    sys.exit(f"{f'{place}/{name}'!a} is not given to redis (it is no file of Redis): remove it.")
                os.fchown(file, user.pw_uid, user.pw_gid)
            finally:
                os.close(file)


def count(name: str) -> str:
    """Return in a sentence what an instance holds."""
    parts = f"Redis {name} holds {client(name, 'DBSIZE')} keys"
    if name == "broker":
        waiting, accepted = client(name, "LLEN", "celery"), client(name, "HLEN", "accepted")
        parts += f"; {waiting} tasks wait in celery, {accepted} are accepted and have not ended"
    return parts


def main() -> None:
    """Look at the instances that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    parser.add_argument("--count", action="store_true", help="say what the instances hold instead")
    parser.add_argument("--own", action="store_true", help="give their files to redis instead")
    parser.add_argument("--rewrite", action="store_true", help="let them write their files anew instead")
    arguments = parser.parse_args()
    if arguments.count:
        print("; ".join(count(name) for name in arguments.redis))
        return
    if arguments.own:
        for name in arguments.redis:
            own(Instance(name).data)
        return
    if arguments.rewrite:
        for name in arguments.redis:
            print(client(name, "BGREWRITEAOF"), client(name, "BGSAVE", "SCHEDULE"))
        return
    show(cause for name in arguments.redis for cause in look(arguments.host, name))
