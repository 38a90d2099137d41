#!/usr/bin/env python3
"""Remember what an installation's files are, and tell later what somebody has changed by hand.

With ``--write PART PATTERN ...`` it remembers the files that match, after a successful run; without it prints findings
as playbooks/files/doctor.py does. Runs on the host as root, with the system's Python alone.
"""

from __future__ import annotations

import argparse
import glob
import grp
import hashlib
import json
import pwd
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WARNING = 2
# Of doctor.py: what a file can explain when something fails.
LAYERS = {"firewall": 2, "redis": 3, "app": 6}
LATER = 10
# So many are named one by one.
NAMED = 10


def look(patterns: list[str]) -> dict[str, dict[str, str]]:
    """Return digest, owner and mode of all files that match."""
    found = {}
    for pattern in patterns:
        for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - the patterns are absolute
            file = Path(name)
            if name.endswith("~debug-mode.conf"):
                continue  # a runbook's, for a while
            if file.is_symlink():
                found[name] = {"link": str(file.readlink())}
            elif file.is_file() and file.suffix != ".pyc":
                found[name] = {
                    # A secret's digest is safe: secrets are long and random, and only root reads this file.
                    "content": hashlib.sha256(file.read_bytes()).hexdigest(),
                    "owner and mode": _rights(file.stat().st_uid, file.stat().st_gid, file.stat().st_mode),
                }
    return found


def _rights(user: int, group: int, mode: int) -> str:
    try:
        return f"{pwd.getpwuid(user).pw_name}:{grp.getgrgid(group).gr_name} {stat.S_IMODE(mode):04o}"
    except KeyError:
        return f"{user}:{group} {stat.S_IMODE(mode):04o}"


def write(place: Path, part: str, patterns: list[str]) -> bool:
    """Remember the files of one part; return whether that is news."""
    manifest = place / f"{part}.json"
    content = json.dumps({"patterns": patterns, "files": look(patterns)}, indent=1)
    if manifest.exists() and manifest.read_text() == content:
        return False
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = manifest.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(content)
    fresh.replace(manifest)
    return True


def compare(place: Path) -> Iterator[dict[str, Any]]:
    """Return what is not as it was remembered."""
    for manifest in sorted(place.glob("*.json")):
        remembered = json.loads(manifest.read_text())
        before, now = remembered["files"], look(remembered["patterns"])
        changes = [
            f"{name} {_change(name, before.get(name), now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        more = [f"{len(changes) - NAMED} more files of {manifest.stem} were changed"] if len(changes) > NAMED else []
        for what in changes[:NAMED] + more:
            yield {
                "severity": WARNING,
                "what": what,
                "runbook": "drift",
                "layer": LAYERS.get(manifest.stem, LATER),
                "suspect": True,
            }


def _change(name: str, before: dict[str, str] | None, now: dict[str, str] | None) -> str:
    if now is None:
        return "was removed by hand"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(Path(name).lstat().st_mtime))
    if before is None:
        return f"was added by hand ({when} UTC)"
    if before.get("link") != now.get("link"):
        return f"leads to {now.get('link', 'a file of its own')} instead of {before.get('link', 'itself')}"
    if before.get("content") != now.get("content"):
        return f"was changed by hand ({when} UTC)"
    return f"is {now['owner and mode']} instead of {before['owner and mode']}"


def main() -> None:
    """Remember or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="directory of what is remembered")
    parser.add_argument("--write", nargs="+", metavar=("PART", "PATTERN"))
    given = parser.parse_args()
    if given.write:
        print("changed" if write(given.place, given.write[0], given.write[1:]) else "as before")
    else:
        print(json.dumps(list(compare(given.place))))


if __name__ == "__main__":
    main()
