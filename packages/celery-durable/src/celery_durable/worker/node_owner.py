"""Who a node name belongs to: a token that tells whether its process still lives."""

import os
import socket
import uuid
from pathlib import Path

SEPARATOR = "|"
# What tells a machine from others. The first is new with each boot, but a unit with ProcSubset=pid does not see it.
MACHINE_FILES = ("/proc/sys/kernel/random/boot_id", "/etc/machine-id")


class NameTakenError(Exception):
    """Another worker that lives has this worker's name."""


def token() -> str:
    """Return a token of this process: host name, machine since its start, process namespace, process, its start."""
    pid = os.getpid()
    return SEPARATOR.join([socket.gethostname(), *_place(), str(pid), _started(pid) or "", str(uuid.uuid4())])


def lives(owner: str) -> bool | None:
    """Tell whether the process of a token lives; nobody knows that of another machine or container."""
    *place, pid, started, _ = owner.split(SEPARATOR)[1:]
    if place != list(_place()) or "" in place:
        return None
    if (found := _started(int(pid))) is None:
        # Units may hide the processes of other users (ProtectProc=): that is no proof.
        return None if _is_there(int(pid)) else False
    # A process that has executed itself anew is another worker.
    return int(pid) != os.getpid() and found == started


def described(owner: str) -> str:
    """Return what an operator wants to know of an owner."""
    host, _, _, pid, *_ = owner.split(SEPARATOR)
    return f"process {pid} on host {host}"


def _place() -> tuple[str, str]:
    try:
        return next(filter(None, map(_content, MACHINE_FILES)), ""), str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """Return when a process was started, in the kernel's ticks; nothing for one that has ended (proc(5), stat).

    None is returned for one that cannot be seen.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]
