"""Restore what differs from the recorded healthy state and is ours; say what was done, and what is left.

Runs on the host as root. Without --confirm it changes nothing. What it replaces is kept in replaced/ beside the record.
It prints {"done": [...], "left": [...], "roles": [...], "units": [...]}: roles name what only the controller can write
anew (secrets, Redis' files, packages), units what is restarted.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosttools import files, process, procfs, systemd
from hosttools.redis_client import RedisError
from hosttools.restore.verbs import Repair
from hosttools.state import compare, look, recorded
from hosttools.state.values import LONGEST

RESTART = 60  # seconds: what has not ended by then is killed, and its tasks are redelivered


def plan(before: dict[str, Any], given: Any) -> Repair:
    """Return what brings this host back to its recorded state, from the ground."""
    repair = Repair(given, before.get("texts", {}))
    verbs = {"files": repair.file, "release": repair.file, "mounts": repair.mount, "network": repair.network}
    verbs |= {"units": repair.unit, "redis": repair.redis, "attributes": repair.attribute}
    now = look(given.app, given, list(compare.PARTS))
    for part, state in now.items():
        for name, was, is_now in compare.different(part, before, state):
            if part in verbs:
                verbs[part](name, was, is_now)
            elif part == "manager" and name.startswith("systemd's environment variable "):
                repair.run("systemctl", "unset-environment", name.rpartition(" ")[2])
            elif part == "sysctls" and was and len(was) < LONGEST:
                repair.run("sysctl", "--write", f"{name}={was}")
            elif part == "processes" and name.startswith("/") and was and is_now:
                repair.limit(name, was, is_now)
            elif part == "processes":
                repair.units.add(name.partition(":")[0].rpartition("/")[2].removesuffix(".service"))
            elif what := compare.sentence(part, name, was, is_now):
                repair.left += [what] if part != "packages" else []
    repair.drop_ins()
    repair.servers()
    repair.packages()
    return repair


def restart(units: list[str], only: set[str]) -> Iterator[str]:
    """Wake and start all units, and restart those that need it, all at once; what does not end is killed."""
    begin = []
    for unit in [*units, "systemd-journald"]:
        seen = systemd.properties(unit, "LoadState", "FreezerState", "ControlGroup", "ActiveState")
        numbers = files.read(f"/sys/fs/cgroup{seen.get('ControlGroup', '')}/cgroup.procs").split()
        if seen.get("FreezerState", "running") != "running":
            process.run("systemctl", "thaw", unit)
            yield f"{unit} is thawed"
        if halted := [number for number in numbers if seen.get("ControlGroup") and procfs.is_halted(number)]:
            process.run("kill", "-CONT", *halted)
            yield f"{unit} goes on"
        if seen.get("LoadState") == "loaded" and (seen.get("ActiveState") != "active" or unit in only):
            begin.append(unit)
    if begin:
        process.run("systemctl", "reset-failed", *begin)
        yield f"restarted: {', '.join(begin)}"
    if begin and process.run("systemctl", "restart", *begin, timeout=RESTART).code == process.TIMED_OUT:
        hung = [unit for unit in begin if systemd.active(unit) != "active"]
        process.run("systemctl", "kill", "--signal=KILL", *hung)
        process.run("systemctl", "start", *hung, timeout=RESTART)
        yield f"killed first: {', '.join(hung)}"


def converge(before: dict[str, Any], given: Any, done: list[str]) -> tuple[Repair, set[str]]:
    """Do what is planned until nothing is left, where it is confirmed; return the last plan, and what must restart."""
    repair = plan(before, given)
    units, rounds = set(repair.units), 0
    while given.confirm and rounds < 4 and (todo := [what for what in repair.steps if what not in done]):
        for what in [step for step in repair.first if step in todo] or todo:
            try:
                repair.steps[what]()
                done.append(what)
            except (OSError, RedisError, LookupError, ValueError) as error:
                done.append(f"{what} fails: {error}")
        process.run("systemctl", "daemon-reload", timeout=30)
        repair, rounds = plan(before, given), rounds + 1
        units |= repair.units
    return repair, units


def main() -> None:
    """Plan, and with --confirm repair, until nothing is left to be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="directory of the record")
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument(
        "--start", action="store_true", help="then start what does not run, and restart what was changed"
    )
    parser.add_argument("--restart", action="append", default=[], metavar="UNIT", help="what a run before has changed")
    parser.add_argument("--failing", action="store_true", help="restart every service of the application")
    parser.add_argument("--app", required=True, help="the installation's name")
    parser.add_argument("--unit", action="append", default=[])
    parser.add_argument("--redis", action="append", default=[])
    parser.add_argument("--queue", action="append", default=[], help="of the broker")
    parser.add_argument("--monitoring", default="")
    given, _ = parser.parse_known_args()
    before, done = recorded(given.place), list[str]()
    repair, units = converge(before, given, done)
    units |= {*given.restart}
    names = [pair.partition("=")[0] for pair in given.unit]
    if given.start:
        ours = {name for name in names if name.startswith(f"{given.app}-")}
        done += restart(names, units | (ours if given.failing or "workers" in units else set()))
        # A service that ended has written its files as it was told before.
        again = list[str]()
        repair, more = converge(before, given, again)
        done += [*again, *restart(names, more)] if again else []
    told_of = {"done": done or list(repair.steps), "left": sorted(set(repair.left)), "roles": sorted(repair.roles)}
    print(json.dumps({**told_of, "units": sorted(units)}), flush=True)
    os._exit(0)  # without waiting for what hangs
