#!/usr/bin/env python3
"""Whether this host runs the release that it should: prints causes as JSON, and a "source" that tells releases apart.

Runs on the host as root, with the system's Python alone, and changes nothing. A release's directory has another name
for each Python, so hosts are compared by the checksum of what was deployed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE = 60
# Restarts without anybody's doing since the last start by hand: more is a loop.
RESTARTS = 3
NEVER_LIVE = 1e9


@dataclass
class Cause:
    """Something wrong; of a "source", ``what`` is its checksum and ``previous`` what the host can go back to."""

    cause: str
    what: str
    subject: str
    rank: int
    previous: str = ""


def say(*command: str) -> tuple[bool, str]:
    """Return whether a command succeeds, and what it says."""
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return run.returncode == 0, run.stdout.strip()


def checksum(release: Path) -> str:
    """Return what is the same on all hosts for one source."""
    digest = hashlib.sha256()
    listed = release / ".files"
    names = listed.read_text().splitlines() if listed.exists() else []
    for file in sorted(release / name for name in [*names, "requirements.txt"] if (release / name).is_file()):
        digest.update(f"{file.relative_to(release)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def starts(release: Path, prefix: str) -> str:
    """Return nothing when a release's programs can be loaded, else the last line of the reason."""
    good, answer = say(f"/usr/local/sbin/{prefix}-admin", f"--release={release}", "--check")
    return "" if good else (answer.splitlines() or ["no reason"])[-1]


def previous(root: Path, prefix: str, live: Path) -> str:
    """Return the release before, or an older one, that is complete and starts; nothing when there is none."""
    # A directory's time is when the release was last live (roles/app_release/tasks/switch.yml), 1980 of one that has
    # failed its gates. Somebody has gone back from one that is marked so (playbooks/tasks/roll_host.yml).
    others = [marker.parent for marker in root.glob("releases/*/.complete") if marker.parent != live]
    others = [one for one in others if not (one / ".rolled-back").exists() and one.stat().st_mtime > NEVER_LIVE]
    last_live = sorted(others, key=lambda release: release.stat().st_mtime, reverse=True)
    return next((str(release) for release in last_live if not starts(release, prefix)), "")


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
        state = say("systemctl", "is-active", unit)[1]
        restarts = say("systemctl", "show", "--property=NRestarts", "--value", unit)[1]
        if state != "active" or int(restarts or 0) > RESTARTS:
            yield Cause("unit", f"{host}: {unit} is {state}, restarted {restarts} times", host, 2)
        else:
            pid = say("systemctl", "show", "--property=MainPID", "--value", unit)[1]
            yield from process(host, unit, pid, live, settings)
    for name in programs:
        _, pid = say("supervisorctl", "pid", name)
        if re.fullmatch(r"[1-9]\d*", pid):
            yield from process(host, name, pid, live, settings)
        else:
            yield Cause("unit", f"{host}: {name} does not run", host, 2)


def process(host: str, name: str, pid: str, live: Path, settings: float) -> Iterator[Cause]:
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
    print(json.dumps([asdict(cause) for cause in causes] if Path(f"/opt/{arguments.prefix}").exists() else []))


if __name__ == "__main__":
    main()
