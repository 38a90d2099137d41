"""Processes of this host, as the kernel shows them."""

from pathlib import Path

from hosttools import files


def stat(pid: int | str) -> list[str]:
    """Return the fields of a process after its name, which may hold blanks; nothing when it has ended."""
    return files.read(f"/proc/{pid}/stat").rpartition(") ")[2].split()


def is_halted(pid: int | str) -> bool:
    """Tell whether a signal has stopped a process."""
    return stat(pid)[:1] in (["T"], ["t"])


def group(pid: int | str) -> str:
    """Return the control group of a process: its unit."""
    return files.read(f"/proc/{pid}/cgroup").strip().rpartition("/")[2]


def ticks() -> dict[str, int]:
    """Return how long each process has run, in ticks of the clock."""
    found = {place.name: stat(place.name) for place in Path("/proc").glob("[0-9]*")}
    return {pid: int(fields[11]) + int(fields[12]) for pid, fields in found.items() if len(fields) > 12}
