"""Trying data: Redis' own tools, and a server of its own that loads it."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosttools import process
from hosttools.backup.figures import figures
from hosttools.backup.host import AOF_MANIFEST, TIMEOUT, open_file, reject, wait
from hosttools.masking import last_line
from hosttools.redis_client import Redis, RedisError, local

ANSWER = 30  # seconds in which a Redis answers one command


def broken(directory: Path) -> str:
    """Return what Redis' own tools say against files; nothing when they are whole."""
    checks = [("redis-check-rdb", "dump.rdb"), ("redis-check-aof", AOF_MANIFEST)]
    for program, name in checks:
        if (directory / name).exists():
            checked = process.run(program, name, cwd=str(directory), timeout=TIMEOUT, merge=True)
            if not checked.ok:
                return f"{program} says: {last_line(checked.output or checked.errors) or 'nothing'}"
    return ""


def read(log: Path) -> str:
    """Return the text of a log, as far as somebody reads it."""
    try:
        with open_file(log) as file:
            return file.read(1 << 20).decode(errors="replace")
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def loaded(directory: Path) -> Iterator[Redis]:
    """Load files into a server of their own, which nobody else reaches, as a restored one would load them."""
    with tempfile.TemporaryDirectory(prefix=".trial.", dir=directory) as place:
        path, log = Path(place) / "socket", Path(place) / "log"
        options = {
            "port": "0",
            "unixsocket": str(path),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes" if (directory / AOF_MANIFEST).exists() else "no",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "0",
            "databases": "1024",
            "logfile": str(log),
        }
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        # Should memory end after all, this one is to be killed and not the server beside it.
        command = ["choom", "-n", "1000", "--", "redis-server", *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait(lambda: server.poll() is not None or ready(path), "A server with the copy")
                if server.poll() is not None:
                    reject(f"Redis cannot load the data: {last_line(read(log)) or 'nothing'}.")
                yield local(path, ANSWER, errors="surrogateescape")
            finally:
                server.terminate()


def ready(path: Path) -> bool:
    """Tell whether a server has loaded its data."""
    try:
        with local(path, ANSWER) as redis:
            return bool(redis.call("PING") == "PONG")
    except (OSError, RedisError):
        return False


def trial(directory: Path) -> dict[str, Any]:
    """Return what files hold once they are loaded."""
    with loaded(directory) as redis:
        return figures(redis)


def settle(directory: Path) -> dict[str, Any]:
    """Return what a copy holds, without the command or transaction in the middle of which it ends."""
    # Redis loads what ends too early, and nothing that is broken elsewhere. It leaves the beginning of a transaction:
    # the tool cuts that off, and has nothing else to cut any more.
    found = trial(directory)
    if (directory / AOF_MANIFEST).exists():
        process.run("redis-check-aof", "--fix", AOF_MANIFEST, cwd=str(directory), stdin="y\n", timeout=TIMEOUT)
    if reason := broken(directory):
        reject(f"The copy is not sound: {reason}.")
    return found
