"""Files of this host, read so that a missing one is empty."""

import os
import re
from pathlib import Path


def read(file: Path | str) -> str:
    """Return what a file holds, nothing if it cannot be read."""
    try:
        return Path(file).read_text(errors="replace")
    except OSError:
        return ""


def settings(file: Path | str) -> dict[str, str]:
    """Return the application's settings, as they were deployed into its backend.env; no secret is among them."""
    return dict(re.findall(r"^(\w+)='(.*)'$", read(file), re.MULTILINE))


def keys(file: Path | str) -> list[str]:
    """Return the keys of a secret file; the first one signs."""
    return read(file).replace(",", " ").split()


def kept_releases(root: Path, live: Path) -> list[Path]:
    """Return the complete releases that a host can go back to, the one that was live last first."""
    # A directory's time is when the release was last live (roles/app_release/tasks/switch.yml), 1980 of one that has
    # failed its gates. Somebody has gone back from one that is marked so (playbooks/tasks/roll_host.yml).
    never_live = 1e9
    complete = [marker.parent for marker in root.glob("releases/*/.complete") if marker.parent.name != live.name]
    complete = [one for one in complete if not (one / ".rolled-back").exists() and one.stat().st_mtime > never_live]
    return sorted(complete, key=lambda release: release.stat().st_mtime, reverse=True)


def lstat(file: Path) -> os.stat_result | None:
    """Return what a name is, a link as itself; None if there is none."""
    try:
        return file.lstat()
    except OSError:
        return None


def of_release(live: Path) -> list[str]:
    """Return the application's files in a release, as it lists them (roles/app_release/files/build_release.py)."""
    return read(live / ".files").splitlines()
