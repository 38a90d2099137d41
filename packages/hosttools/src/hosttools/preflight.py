"""What the preflight must know of a host, as JSON: packages, accounts, others with the application's names."""

import argparse
import contextlib
import grp
import json
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosttools import process
from hosttools.redis_client import Instance

UNITS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"), Path("/etc/systemd/system"))
# Numbers below are in every Debian (base-passwd).
FIRST_ALLOCATED = 100
# What the roles and operators call units of the application.
PARTS = ("api", "beat", "celery", "console", "flower")


def packages() -> list[str]:
    """Return the names of the installed packages."""
    listed = process.run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", timeout=60)
    if not listed.ok:
        sys.exit(f"The installed packages cannot be listed: {listed.errors}.")
    lines = listed.output.splitlines()
    return [name for status, _, name in (line.partition(" ") for line in lines) if status == "installed"]


def clashes(name: str, root: str) -> Iterator[str]:
    """Say what has the application's names and is somebody else's: accounts, units, a directory below /etc."""
    for account in (name, *(f"{name}-{part}" for part in ("api", "console", "flower", "operator"))):
        try:
            known = pwd.getpwnam(account)
        except KeyError:
            # A group alone may be what an earlier run has left, unless it is one of Debian's own.
            with contextlib.suppress(KeyError):
                if grp.getgrnam(account).gr_gid < FIRST_ALLOCATED:
                    yield f"a group {account}"
            continue
        if known.pw_dir != root:
            yield f"a user {account} with the home {known.pw_dir}"
    ours = tuple(f"{name}-{part}" for part in PARTS)
    units = {file.name for folder in UNITS for file in folder.glob(f"{name}-*.service")}
    if others := sorted(unit for unit in units if not unit.startswith(ours)):
        yield f"a unit {others[0]}, which would get the application's sandbox"
    if (folder := Path("/etc") / name).exists() and not (folder / "secrets").is_dir():
        yield f"a directory {folder}"


def accounts(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the application's users, each with its groups, home and shell, and the names of its groups."""
    groups = grp.getgrall()
    users = [
        {
            "name": user.pw_name,
            "group": next((group.gr_name for group in groups if group.gr_gid == user.pw_gid), ""),
            "groups": sorted(group.gr_name for group in groups if user.pw_name in group.gr_mem),
            "home": user.pw_dir,
            "shell": user.pw_shell,
        }
        for user in pwd.getpwall()
        if f"{user.pw_name}-".startswith(f"{name}-")
    ]
    return users, [group.gr_name for group in groups if f"{group.gr_name}-".startswith(f"{name}-")]


def old_data(directory: Path) -> str:
    """Say what Redis could not decide about the data of one before version 7 in its directory, if there is any.

    Redis 7 takes such an appendonly.aof over, and then never reads dump.rdb again.
    """
    append_only, snapshot = directory / "appendonly.aof", directory / "dump.rdb"
    if (directory / "appendonlydir").exists() or not (append_only.exists() and snapshot.exists()):
        return ""
    if append_only.stat().st_mtime >= snapshot.stat().st_mtime:
        return ""
    return f"{append_only} of a Redis before 7 and a {snapshot.name} that is newer"


def main() -> None:
    """Print it; this changes nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the application's (app_name)")
    parser.add_argument("root", help="where its releases are")
    parser.add_argument("instances", nargs="*", help="names of Redis instances")
    given = parser.parse_args()
    data = [problem for name in given.instances if (problem := old_data(Instance(name).data))]
    users, groups = accounts(given.name)
    found = {"packages": packages(), "users": users, "groups": groups}
    print(json.dumps(found | {"clashes": list(clashes(given.name, given.root)), "data": data}))
