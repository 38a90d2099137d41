#!/usr/bin/env python3
"""Why a Redis cannot read or write its append-only file: prints causes as JSON, and what it holds with --count.

Runs on the host as root, with the system's Python alone. Only --rewrite changes something: it ends a former failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ENOUGH = 32 * 1024**2  # bytes that must be free for Redis to write
PATIENCE = 300  # seconds: gigabytes are read
ANSWER = 10  # seconds in which a Redis that runs answers


@dataclass
class Cause:
    """What is wrong with an instance's data."""

    cause: str
    what: str
    subject: str  # the instance
    rank: int


def say(*command: str, patience: int = PATIENCE, **environment: str) -> tuple[int, str]:
    """Return how a command ends and what it says.

    Raises:
        SystemExit: it takes too long.
    """
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience,
            check=False,
            errors="replace",
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{command[0]} does not answer within {patience} s: {shlex.join(command)}")
    return run.returncode, run.stdout.strip()


def data(name: str) -> Path:
    """Return the directory of an instance's data."""
    return Path("/var/lib/redis") if name == "main" else Path("/var/lib/redis") / name


def client(name: str, *words: str) -> str:
    """Ask an instance as its administrator."""
    suffix = "" if name == "main" else f"-{name}"
    password = re.search(r"^requirepass (\S+)", Path(f"/etc/redis/redis{suffix}.conf").read_text(), re.MULTILINE)
    socket = f"/run/redis{suffix}/redis-server.sock"
    login = password[1] if password else ""
    return say("redis-cli", "-s", socket, *words, patience=ANSWER, REDISCLI_AUTH=login)[1]


def owner(file: Path) -> str:
    """Return who has a file: a copy from elsewhere may have an owner that has no name here."""
    try:
        return file.owner()
    except KeyError:
        return f"the user number {file.stat().st_uid}"


def look(host: str, name: str) -> Iterator[Cause]:
    """Look at one instance: at its file system, its files' rights, and, where it does not run, into its files."""
    directory = data(name)
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
    append_only = directory / "appendonlydir"
    files = [directory, append_only, *append_only.glob("*"), *directory.glob("dump*.rdb")]
    foreign = [file for file in files if file.exists() and owner(file) != "redis"]
    if foreign:
        yield Cause("rights", f"{host}: {foreign[0]} belongs to {owner(foreign[0])}, not to redis", name, 2)
    unit = "redis-server" if name == "main" else f"redis-server@{name}"
    if say("systemctl", "is-active", unit)[1] == "active":
        status = re.findall(r"^(\w+_status):err", client(name, "INFO", "persistence"), re.MULTILINE)
        if status and not foreign:
            yield Cause(
                "status", f"{host}: Redis {name} could not write ({', '.join(status)}); its disk can now", name, 4
            )
        return
    yield from check(host, name, append_only)


def check(host: str, name: str, append_only: Path) -> Iterator[Cause]:
    """Let Redis' own tool look into the files."""
    manifests = list(append_only.glob("*.manifest"))
    if not manifests:
        return
    code, answer = say("redis-check-aof", str(manifests[0]))
    if code == 0:
        return
    analysed = re.findall(r"filename=(\S+), size=(\d+), ok_up_to=(\d+).*diff=(\d+)", answer)
    last = next(((file, int(size), int(lost)) for file, size, _, lost in analysed if int(lost)), None)
    if last is None or ".incr." not in last[0]:
        reason = answer.splitlines()[-1] if answer else "nothing"
        yield Cause("lost", f"{host}: no tool mends Redis {name}'s files; redis-check-aof says: {reason}", name, 3)
        return
    file, size, lost = last
    need, free = sum(f.stat().st_size for f in append_only.glob("*")), shutil.disk_usage(append_only).free
    if need + ENOUGH > free:
        what = f"{host}: {append_only}/{file} is broken, and there is no room for a copy ({need >> 20} MB)"
        yield Cause("full", what, name, 1)
        return
    what = f"{host}: {append_only}/{file} is broken; a repair cuts off its last {lost} of {size} bytes"
    yield Cause("broken", what, name, 3)


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
    parser.add_argument("--rewrite", action="store_true", help="let them write their files anew instead")
    arguments = parser.parse_args()
    if arguments.count:
        print("; ".join(count(name) for name in arguments.redis))
        return
    if arguments.rewrite:
        print(
            "; ".join(
                f"{client(name, 'BGREWRITEAOF')} {client(name, 'BGSAVE', 'SCHEDULE')}" for name in arguments.redis
            )
        )
        return
    print(json.dumps([asdict(cause) for name in arguments.redis for cause in look(arguments.host, name)]))


if __name__ == "__main__":
    main()
