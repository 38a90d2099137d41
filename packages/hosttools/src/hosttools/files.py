"""Files of this host, read so that a missing one is empty."""

import grp
import os
import pwd
import re
import stat
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


def own(place: Path, owner: str, mode: str) -> None:
    """Give a file its owner and mode; without a mode its owner may read and write it."""
    user, _, group = owner.partition(":")
    numbers = [
        int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid,
        int(group) if group.isdigit() else grp.getgrnam(group).gr_gid,
    ]
    # A service may have put a link in the place of what it owns: the name must still lead to what was opened.
    opened = os.open(place, os.O_PATH | os.O_NOFOLLOW)
    try:
        real = Path(f"/proc/self/fd/{opened}")
        if real.readlink() != place and not str(place).startswith("/opt/"):
            raise OSError(f"{place} leads to {real.readlink()}")
        os.chown(real, *numbers)
        real.chmod(int(mode, 8) if mode else stat.S_IMODE(real.stat().st_mode) | 0o600)
    finally:
        os.close(opened)


def own_all(place: Path, owner: str) -> None:
    """Give the files of a directory to the user that writes them."""
    for entry in place.iterdir():
        if stat.S_ISREG(entry.lstat().st_mode) and entry.lstat().st_nlink == 1:
            own(entry, owner, "")
