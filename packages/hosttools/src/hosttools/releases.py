"""Whether this host runs the release that it should: prints causes as JSON, and a "source" that tells releases apart.

Runs on the host as root, and changes nothing. A release's directory has another name for each Python, so hosts are
compared by the checksum of what was deployed; of a "source", ``what`` is that checksum.
"""

import argparse
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from hosttools import files, masking, process, systemd
from hosttools.findings import Cause, show

TIMEOUT = 60
# Restarts without anybody's doing since the last start by hand: more is a loop.
RESTARTS = 3


def checksum(release: Path) -> str:
    """Return what is the same on all hosts for one source."""
    digest = hashlib.sha256()
    for file in sorted(
        release / name for name in [*files.of_release(release), "requirements.txt"] if (release / name).is_file()
    ):
        digest.update(f"{file.relative_to(release)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def starts(release: Path, prefix: str) -> str:
    """Return nothing when a release's programs can be loaded, else the last line of the reason."""
    command = [f"/usr/local/sbin/{prefix}-admin", f"--release={release}", "--check"]
    tried = process.run(*command, timeout=TIMEOUT, merge=True, cwd="/")
    return "" if tried.ok else masking.last_line(tried.output or tried.errors) or "no reason"


def previous(root: Path, prefix: str, live: Path) -> str:
    """Return the release before, or an older one, that is complete and starts; nothing when there is none."""
    return next((str(release) for release in files.kept_releases(root, live) if not starts(release, prefix)), "")


def look(host: str, prefix: str, units: list[str], programs: list[str]) -> Iterator[Cause]:
    """Compare the link, the release behind it, and what runs."""
    root = Path(f"/opt/{prefix}")
    link = root / "backend"
    live = link.resolve()
    if not (live / ".complete").exists():
        yield Cause("half", f"{host}: the release {live.name} is not complete", host, 0)
    reason = starts(live, prefix)
    if reason:
        yield Cause("broken", f"{host}: the release {live.name} does not start: {reason}", host, 1)
    yield Cause("source", checksum(live), host, 9, previous(root, prefix, live) if reason else "")
    file = Path(f"/etc/{prefix}/backend.env")
    if not file.exists():
        yield Cause("settings", f"{host}: /etc/{prefix}/backend.env is missing", host, 3)
    settings = file.stat().st_mtime if file.exists() else 0.0
    for unit in units:
        shown = systemd.properties(unit, "ActiveState", "NRestarts", "MainPID", timeout=TIMEOUT)
        state, restarts = shown.get("ActiveState", ""), shown.get("NRestarts", "")
        if state != "active" or int(restarts or 0) > RESTARTS:
            yield Cause("unit", f"{host}: {unit} is {state}, restarted {restarts} times", host, 2)
        else:
            yield from running(host, unit, shown.get("MainPID", ""), live, settings)
    for name in programs:
        pid = process.run("supervisorctl", "pid", name, timeout=TIMEOUT).output
        if re.fullmatch(r"[1-9]\d*", pid):
            yield from running(host, name, pid, live, settings)
        else:
            yield Cause("unit", f"{host}: {name} does not run", host, 2)


def running(host: str, name: str, pid: str, live: Path, settings: float) -> Iterator[Cause]:
    """Compare a service's process with the release and the settings that it should have."""
    directory = Path(f"/proc/{pid}")
    where = str((directory / "cwd").readlink())
    if where != str(live):
        what = f"{host}: {name} runs {Path(where).name}, the link says {live.name}"
        yield Cause("old", what, host, 3)
    elif directory.stat().st_mtime < settings:
        yield Cause("settings", f"{host}: {name} has started before its settings were changed", host, 3)


def main() -> None:
    """Look at the units and programs that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--unit", action="append", default=[])
    parser.add_argument("--program", action="append", default=[], help="of supervisor")
    arguments = parser.parse_args()
    causes = look(arguments.host, arguments.prefix, arguments.unit, arguments.program)
    show(causes if Path(f"/opt/{arguments.prefix}").exists() else [])
