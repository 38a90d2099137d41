"""What restores each kind of difference, of what is the platform's; the rest is left, and said."""

import functools
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosttools import files, process, systemd
from hosttools.doctor import broker, release, rights, units
from hosttools.redis_client import Instance, RedisError
from hosttools.state import compare, contents, system
from hosttools.state.values import LONGEST, digest

# Names of what the platform writes; what else is restored when it is gone, empty or closed, but never overwritten.
OURS = (
    "/etc/{app} /opt/{app} /var/log/{app} /etc/redis /var/lib/redis /var/log/redis /run/redis /etc/supervisor"
    " /etc/systemd/system/{app}- /etc/systemd/system/redis-se /etc/systemd/system/platform-firewall"
    " /etc/nftables-platform.conf /etc/systemd/system/certificate-end"
)
EMPTY = digest(b"")
REWRITE = 60  # seconds


@dataclass
class Repair:
    """What is to be done on this host: sentences, each with the function that does it; and what is left to others."""

    given: Any
    texts: dict[str, str]
    steps: dict[str, Callable[[], object]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)
    units: set[str] = field(default_factory=set)

    def run(self, *command: str) -> None:
        """Plan a command."""
        self.steps[" ".join(command)] = lambda: process.run(*command, timeout=30)

    def ours(self, name: str) -> bool:
        """Tell whether the platform writes a file of this name."""
        return name.startswith(tuple(OURS.format(app=self.given.app).split()))

    def file(self, name: str, was: str | None, now: str | None) -> None:
        """Plan the repair of a file, a directory or a link."""
        now = compare.named(was, now) if was and now else now
        place, told = Path(name.removesuffix("*")), compare.change(name, was, now)
        old, new = (was or "").split(), (now or "").split()
        if name.endswith("*") and told:
            owner = (was or contents.rights(str(place))).split()[0]
            self.steps[f"{told}: chown {owner}"] = lambda: files.own_all(place, owner)
        elif not told or not was:
            if told and self.ours(name) and name.startswith(("/etc/", "/opt/")):
                self.steps[f"{told}: put aside"] = lambda: self.aside(place)
            elif told:
                self.left.append(told)
        elif now and "leads to" not in was + now and old[2:3] == new[2:3] and old[:2] != new[:2]:
            self.steps[f"{told}: chown and chmod"] = lambda: files.own(place, *old[:2])
        elif now == was or not self.missing(name, told, old, new):
            return
        elif old[:2] == ["leads", "to"] and (place.parent / old[2] / ".rolled-back").exists():
            self.left.append(f"{told}: that release was rolled back")
        elif name in self.texts or old[2:3] in (["directory"], ["device"]) or old[:2] == ["leads", "to"]:
            self.steps[f"{told}: restored as recorded"] = lambda: self.make(place, old)
        else:
            self.role(name, told)

    def missing(self, name: str, told: str, old: list[str], new: list[str]) -> bool:
        """Tell whether a file may be made again: data never, and never over what somebody else has written."""
        if name.startswith("/var/lib/") and old[2:3] == ["directory"]:
            beside = ", ".join(str(each) for each in Path(name).parent.glob(f"{Path(name).name}?*"))
            self.left.append(f"{told}{beside and f'; beside it: {beside}'}")
        elif not self.ours(name) and new[2:3] == ["file"] and new[3:] != [EMPTY]:
            self.left.append(f"{told}{self.kept(name)}")
        else:
            return True
        return False

    def kept(self, name: str) -> str:
        """Write the recorded text of a file of others beside the record, for whoever wants it back; say where."""
        if name not in self.texts:
            return ""
        copy = Path(f"{self.given.place}/recorded{name}")
        if self.given.confirm:
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            copy.write_text(self.texts[name])
        return f" (as it was: {copy})"

    def role(self, name: str, told: str) -> None:
        """Leave to the controller what the record has no text of."""
        places = {f"/etc/{self.given.app}": "secrets", "/etc/redis": "redis", f"/opt/{self.given.app}": "release"}
        role = next((role for place, role in places.items() if name.startswith(place)), "")
        self.roles |= {role} - {""}
        # The server reads its file when it starts.
        servers = [Instance(pair.partition("=")[0]) for pair in self.given.redis]
        self.units |= {server.unit for server in servers if str(server.config) == name}
        self.left += [] if role else [told]

    def aside(self, place: Path, put: Callable[[Path, Path], object] = shutil.move) -> None:
        """Keep what is in the way beside the record."""
        if os.path.lexists(place):
            kept = self.given.place / "replaced" / time.strftime("%Y%m%dT%H%M%S") / str(place).lstrip("/")
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            put(place, kept)

    def make(self, place: Path, old: list[str]) -> None:
        """Make a file, directory, device or link as it is recorded."""
        written = old[2:3] == ["file"] and place.is_file() and not place.is_symlink()
        if written:  # in its place: something else may be mounted there
            self.aside(place, shutil.copy2)
        elif old[2:3] != ["directory"] or not place.is_dir() or place.is_symlink():
            self.aside(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        if old[:2] == ["leads", "to"]:
            place.symlink_to(old[2])
            return
        if old[2] == "directory":
            place.mkdir(exist_ok=True)
        elif old[2] == "device":
            os.mknod(place, 0o020600, os.makedev(*map(int, old[3].split(":"))))
        else:
            with place.open("w" if written else "x") as fresh:
                fresh.write(self.texts[str(place)])
        files.own(place, *old[:2])

    def mount(self, name: str, was: str | None, now: str | None) -> None:
        """Plan the end of a mount over what is ours."""
        if was is None and self.ours(name):
            self.run("umount", name)
            self.first.append(f"umount {name}")  # what it hides is looked at afterwards
        elif was and now and " ro," in f" {now.split()[-1]}," and " ro," not in f" {was.split()[-1]},":
            self.run("mount", "-o", "remount,bind,rw", name)
        else:
            self.left.append(compare.sentence("mounts", name, was, now))

    def network(self, name: str, was: str | None, now: str | None) -> None:
        """Plan links, addresses, routes and our packet filter; rules and queues of others are theirs."""
        kind, _, what = name.removeprefix("the ").partition(" ")
        if kind == "link" and was and now:
            state, _, mtu = was.partition(", mtu ")
            self.run("ip", "link", "set", what, state, "mtu", mtu)
        elif kind == "address" and was:
            self.run("ip", "address", "add", what, "dev", was.removeprefix("on "))
        elif kind == "route" and was:
            self.run("ip", "route", "replace", *what.split())
        elif name.endswith("of the table inet platform"):
            self.run("systemctl", "restart", "platform-firewall")
        else:
            self.left.append(compare.sentence("network", name, was, now))

    def limit(self, name: str, was: str, now: str) -> None:
        """Plan what a control group had: a service that is frozen or starved cannot even end."""
        group, _, limit = name.partition(": ")
        told = compare.sentence("processes", name, was, now)
        self.steps[f"{told}: written"] = lambda: (system.CGROUPS / group.lstrip("/") / limit).write_text(was)
        self.units.add(group.rpartition("/")[2].removesuffix(".service"))

    def attribute(self, name: str, was: str | None, now: str | None) -> None:
        """Plan the end of flags and access lists that a healthy file did not have."""
        what, _, place = name.removeprefix("the ").partition(" of ")
        if was is not None:
            self.left.append(compare.sentence("attributes", name, was, now))
        elif what == "access list":
            self.steps[f"{name} is new: removed"] = lambda: os.removexattr(place, contents.ACCESS_LIST)
        else:
            flag = contents.FLAGS[what.removeprefix("attribute ")]
            self.steps[f"{name} is new: removed"] = lambda: contents.change_flags(place, flag)

    def unit(self, name: str, was: str | None, now: str | None) -> None:
        """Plan what systemd knows of a unit."""
        unit, _, what = name.partition(" ")
        given = {pair.partition("=")[0].removesuffix(".service") for pair in self.given.unit}
        if unit.removesuffix(".service") in given | {*system.UNITS.split()}:
            if now and now.startswith("masked"):
                self.run("systemctl", "unmask", *(["--runtime"] if "runtime" in now else []), unit)
            elif what == "as a unit file" and was == "enabled" and now == "disabled":
                self.run("systemctl", "enable", unit)
            self.units |= given & {unit.removesuffix(".service")}
        elif what == "as a unit file":
            self.left.append(compare.sentence("units", name, was, now))

    def redis(self, name: str, was: str | None, now: str | None) -> None:
        """Plan what a running Redis holds."""
        instance, _, what = name.removeprefix("Redis ").partition(": ")
        if what.startswith("the key "):
            key = what.removeprefix("the key ")
            if was and now and "*" not in key:
                self.ask(instance, "RENAME", key, f"{key}.replaced-{int(time.time())}")
            self.units |= {"workers"} if compare.sentence("redis", name, was, now) else set()
        elif was and not what.startswith("the user ") and len(was) < LONGEST:
            self.ask(instance, "CONFIG", "SET", what, was.replace("empty", ""))
        else:
            self.left.append(compare.sentence("redis", name, was, now))

    def ask(self, instance: str, *words: str) -> None:
        """Plan a command for a Redis; secrets are not among the words that are shown."""
        shown = " ".join(words if words[0] != "ACL" else words[:3])
        self.steps[f"Redis {instance}: {shown}"] = lambda: told(instance, *words)

    def drop_ins(self) -> None:
        """Plan the end of what others have changed about our units."""
        for pair in self.given.unit:
            unit = pair.partition("=")[0]
            for path in units.foreign(systemd.properties(unit, "DropInPaths").get("DropInPaths", "").split()):
                if not path.endswith("/90-debug-mode.conf"):
                    self.steps[f"{path} changes {unit}: put aside"] = functools.partial(self.aside, Path(path))
                    self.units.add(unit)

    def servers(self) -> None:
        """Plan that each running Redis is what its file says."""
        for pair in self.given.redis:
            known = Instance(pair.partition("=")[0])
            try:
                with known.connect() as server:
                    for key, value, _ in rights.differing(known.config, server):
                        self.ask(known.name, "CONFIG", "SET", key, value)
                    for key, *_ in broker.misshapen(server, self.given.queue) if known.name == "broker" else ():
                        self.ask(known.name, "RENAME", key, f"{key}.replaced-{int(time.time())}")
                        self.units.add("workers")
                    if list(rights.rights(known.name, known.config, server)):
                        for user, words in re.findall(r"^user (\S+) (.*)$", known.text, re.MULTILINE):
                            self.ask(known.name, "ACL", "SETUSER", user, "reset", *words.split())
            except (OSError, RedisError):
                if known.data.exists():
                    self.units.add(known.unit)

    def packages(self) -> None:
        """Leave to the controller what is broken in a virtual environment, however complete it calls itself."""
        for name in contents.PLACES:
            place = Path(f"/opt/{self.given.app}/{name}")
            if not (place / "venv/bin/python").exists() or list(release.packages(place)):
                self.roles.add("release" if name == "backend" else "platform")


def told(instance: str, *words: str) -> None:
    """Give a Redis a command."""
    with Instance(instance).connect() as server:
        server.call(*words)
        until = time.monotonic() + REWRITE
        # A restart before it is written would load what the file held when it was switched off.
        while words[2:] == ("appendonly", "yes") and time.monotonic() < until:
            info = server.info("persistence")
            if info["aof_rewrite_scheduled"] == info["aof_rewrite_in_progress"] == "0":
                break
            time.sleep(0.2)
