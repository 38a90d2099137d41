"""How a host differs from its recorded state, in sentences."""

import grp
import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from hosttools.findings import FILES, HOST, LATER, NETWORK, NOTE, REDIS, RIGHTS, WARNING, Finding
from hosttools.state import contents, services, system
from hosttools.state.values import State

NAMED = 10  # so many of one part are named one by one
# Parts in which only what both have is compared: the rest comes and goes.
BOTH = ("processes",)


def compare(before: dict[str, Any], now: dict[str, State | str], app: str) -> Iterator[Finding]:
    """Return what is not as it was recorded, as findings."""
    for part, state in now.items():
        _, severity, layer = PARTS[part]
        told = []
        for name, was, is_now in different(part, before, state):
            at = _layer(part, name, layer, app)
            told += [(at, what)] if (what := sentence(part, name, was, is_now)) else []
        more = [(LATER, f"{len(told) - NAMED} more of the {part} differ from the healthy state")]
        for at, what in sorted(told, key=lambda pair: pair[0])[:NAMED] + (more if len(told) > NAMED else []):
            yield Finding(severity, what, "drift", at, suspect=True, difference=True)


def different(part: str, before: dict[str, Any], state: State | str) -> Iterator[tuple[str, str | None, str | None]]:
    """Return the names of a part whose values differ, with what was recorded and what is there now."""
    # A part that cannot be seen is a consequence, which the doctor reports.
    if part not in before or isinstance(state, str):
        return
    was = before[part]
    # Of what is not there now, like an instance that is down, the doctor reports.
    there = {name.partition(":")[0] for name in state}
    both = {name for name in was if name in state or (part == "redis" and name.partition(":")[0] in there)}
    wanted = both if part in BOTH else both | state.keys() if part == "redis" else was.keys() | state.keys()
    if part == "units":
        away = {name.partition(" ")[0] for name in state if name.endswith(" LoadState") and state[name] != "loaded"}
        wanted = {name for name in wanted if name.partition(" ")[0] not in away or name.endswith(" LoadState")}
        # A record may be of a version that has kept more.
        wanted = {name for name in wanted if not system.CHANGES.search(name.partition(" ")[2]) or "LoadState" in name}
    roots: list[str] = []
    for name in sorted(wanted):
        old, new = was.get(name), state.get(name)
        # What lies below a directory that is gone, or a link that leads elsewhere, follows from it.
        if old == new or name.startswith(tuple(roots)):
            continue
        below = old and (new is None or "leads to" in old) if part in ("files", "release") else "gone:" in (new or "")
        if below:
            roots.append(f"{name.rstrip('/')}/")
        yield name, old, new


def _layer(part: str, name: str, layer: int, app: str) -> int:
    if part == "files":
        return layer_of(name, app)
    if part == "attributes":
        return layer_of(name.partition(" of ")[2], app)
    if part == "debian files":
        return FILES if "/python3" in name else HOST
    # A kind of key stops who uses it, not the server.
    if part == "redis" and re.search(": the (?:key|user) ", name):
        return RIGHTS
    return REDIS if part in ("units", "processes") and re.search(r"redis(?:-|\\x2d)se", name) else layer


def layer_of(name: str, app: str) -> int:
    """Return what a file can explain when something fails."""
    for layer, patterns in contents.CONTENT.items():
        for pattern in patterns.format(app=app).split():
            if name.startswith(re.split(r"[*?\[]", pattern)[0]):
                return layer
    # Of others owner and mode alone are known.
    places = {REDIS: ("/var/lib/redis", "/run/redis", "/var/log/redis"), FILES: (f"/opt/{app}/", f"/var/log/{app}")}
    return next((layer for layer, begin in places.items() if name.startswith(begin)), HOST)


def sentence(part: str, name: str, before: str | None, now: str | None) -> str:
    """Return how something differs, nothing when it may."""
    if part in ("files", "release"):
        return change(name, before, now)
    if part == "redis" and ": the key " in name:
        persists = "_kombu.binding." in name and "pidbox" not in name and "reply" not in name
        # Other keys come and go.
        told = f"{name} is {'gone' if now is None else f'a {now}'} instead of a {before}: every use of it fails"
        return told if before is not None and (now is not None or persists) else ""
    if part == "debian files":
        return f"{name} is {now}" if now else ""
    if "packages" in part:
        place, _, name = name.rpartition("/")
        venv = f"in the {place or 'release'}'s venv the package"
        whose = "Debian's package" if part.startswith("system") else venv
        versions = [value.partition(" ")[0] if value else "none" for value in (before, now)]
        same = "not the one that was installed" if versions[0] == versions[1] else ""
        return f"{whose} {name} is {same or f'{versions[1]} instead of {versions[0]}'}"
    hidden = re.fullmatch(r"[0-9a-f]{16}|there", now or before or "") is not None
    if before is None or now is None:
        return f"{name} is {'gone' if now is None else 'new'}" + ("" if hidden else f" ({now or before or 'empty'})")
    return f"{name} is not what it was" if hidden else f"{name} is {now or 'empty'} instead of {before or 'empty'}"


def change(name: str, before: str | None, now: str | None) -> str:
    """Return how a file differs, nothing when it may."""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(os.lstat(name).st_mtime)) if os.path.lexists(name) else ""
    if now is None or before is None:
        # A unit that stops takes its directory with it.
        told = f"{name} was removed by hand" if now is None else f"{name} was added by hand ({when} UTC)"
        return "" if name.startswith("/run/") else told
    now = named(before, now)
    old, new = before.split(), now.split()
    if old == new:
        return ""
    if name.endswith("*"):
        # Where there was no file, those that the directory's user has made are no difference.
        owner = contents.rights(name[:-1]).partition(":")[0] if not before and os.path.lexists(name[:-1]) else ""
        usual = rf"{re.escape(owner)}:\S+ readable and writable" if owner else r"(?!)"
        more = {each for each in set(now.split(", ")) - set(before.split(", ")) if not re.fullmatch(usual, each)}
        return f"{name} is {now or 'nothing'} instead of {before or 'nothing'}" if more else ""
    if "leads to" in before + now:
        return f"{name} {now if 'leads to' in now else 'is itself'} instead of {before.removeprefix('leads to ')}"
    if old[:2] != new[:2]:
        return f"{name} is {' '.join(new[:2])} instead of {' '.join(old[:2])}"
    return f"{name} was changed by hand ({when} UTC)" if old[2] == new[2] else f"{name} is a {new[2]}, not a {old[2]}"


def named(before: str, now: str) -> str:
    """Return a value with its owner's name where that name is gone: the files of a lost user are no cause."""
    owner = before.partition(" ")[0]
    user, _, group = owner.partition(":")
    try:
        pwd.getpwnam(user), grp.getgrnam(group)
    except KeyError:
        return re.sub(r"(?<![\w-])(?:\d+:[\w-]+|[\w-]+:\d+)(?= )", owner, now)
    return now


# Severity and layer of what differs in each part; of files the layer is CONTENT's; ground first.
PARTS: dict[str, tuple[Callable[[str, Any], State], int, int]] = {
    "mounts": (system.mounts, WARNING, HOST),
    "sysctls": (system.sysctls, WARNING, HOST),
    "network": (services.network, WARNING, NETWORK),
    "redis": (services.redis, WARNING, REDIS),
    "files": (contents.all_files, WARNING, FILES),
    "release": (contents.release, WARNING, FILES),
    "attributes": (contents.attributes, WARNING, FILES),
    "debian files": (contents.debian_files, WARNING, FILES),
    "packages": (contents.packages, WARNING, FILES),
    "manager": (system.manager, WARNING, REDIS),
    "units": (system.units, WARNING, FILES),
    "processes": (system.processes, WARNING, FILES),
    # What other differences have an effect on goes after them.
    "names": (services.names, WARNING, NETWORK),
    "system packages": (contents.system_packages, NOTE, LATER),
    "prometheus": (services.prometheus, WARNING, LATER),
}
