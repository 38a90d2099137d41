"""What systemd and its journal say."""

from hosttools import process


def properties(unit: str, *names: str, timeout: float | None = None) -> dict[str, str]:
    """Return properties of a unit."""
    shown = process.run("systemctl", "show", f"--property={','.join(names)}", unit, timeout=timeout).output
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def active(unit: str, timeout: float | None = None) -> str:
    """Return a unit's state: active, failed, inactive ..."""
    return process.run("systemctl", "is-active", unit, timeout=timeout).output


def journal(*options: str, timeout: float | None = None) -> str:
    """Return the messages of the journal that the options choose."""
    return process.run("journalctl", "--no-pager", "--quiet", "--output=cat", *options, timeout=timeout).output
