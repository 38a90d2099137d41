"""A host's part of the maintenance lists: prints points as JSON, each OK or LOOK. It changes nothing.

Runs on the host as root.
"""

import argparse
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hosttools import certificates as validity
from hosttools import files, process, systemd
from hosttools.findings import tell
from hosttools.redis_client import Instance, RedisError

TIMEOUT = 60
RECURRING = 10  # times a week
DISK, MEMORY = 0.4, 0.7  # left of a disk, used of Redis' limit
CERTIFICATE_DAYS = 30
AOF_GROWTH = 4  # times the size after its last rewrite
Point = tuple[bool, str]  # whether it is good, and a sentence


def errors(prefix: str) -> Iterator[Point]:
    """Count what the services' logs repeat: numbers and ids left out, so that the same message is one."""
    journal = systemd.journal(f"--unit={prefix}-*", "--since=-7 days", timeout=TIMEOUT)
    logs = [journal, *(files.read(file) for file in Path(f"/var/log/{prefix}").glob("*.log"))]
    counts: Counter[str] = Counter()
    for line in "\n".join(logs).splitlines():
        if re.search(r'"level": "(ERROR|CRITICAL)"', line):
            counts[re.sub(r"[0-9a-f]{8}[0-9a-f-]*|\d+", "N", message(line))[:100]] += 1
    often = [f"{count} times: {message}" for message, count in counts.most_common(3) if count >= RECURRING]
    yield not often, "errors that recur: " + (" | ".join(often) or "none")


def message(line: str) -> str:
    """Return what a log line says; all of one that rotation has cut in two."""
    try:
        return str(json.loads(line).get("message", ""))
    except ValueError:
        return line


def redis(name: str) -> dict[str, str]:
    """Return what an instance says of itself, nothing when it does not answer."""
    try:
        with Instance(name).connect(TIMEOUT) as connection:
            return connection.info()
    except (OSError, RedisError):
        return {}


def memory(name: str) -> Iterator[Point]:
    """Look at an instance's memory and policy."""
    info = redis(name)
    used, limit, policy = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0)), info.get("maxmemory_policy")
    evicted = info.get("evicted_keys", "?")
    # What holds results alone may throw old ones away; full is what it is made for.
    good = policy == "noeviction" and evicted == "0" and used <= MEMORY * limit if name == "broker" else bool(policy)
    yield good, f"Redis {name}: {used >> 20} of {limit >> 20} MB, {policy}, {evicted} keys thrown away"


def persistence(name: str) -> Iterator[Point]:
    """Look at an instance's append-only file and snapshot."""
    info = redis(name)
    failed = [key for key, value in info.items() if key.endswith("_status") and value == "err"]
    size, base = int(info.get("aof_current_size", 0)), int(info.get("aof_base_size", 0))
    grown = size > AOF_GROWTH * max(base, 64 << 20)
    what = f"Redis {name}: append-only file {size >> 10} KB, {base >> 10} KB after its last rewrite"
    good = not failed and not grown and info.get("aof_enabled") == "1"
    yield good, f"{what}; failed: {', '.join(failed) or 'nothing'}"


def updates() -> Iterator[Point]:
    """Look for updates that wait."""
    told = process.run("apt-get", "--simulate", "--quiet", "dist-upgrade", timeout=TIMEOUT).output
    waiting = re.findall(r"^Inst (\S+) .*?\((\S+) ([^\s]*)", told, re.MULTILINE)
    security = [package for package, _, source in waiting if "ecurity" in source]
    what = f"{len(waiting)} updates wait, {len(security)} of them for security"
    yield not security, f"{what}: {', '.join(security[:5]) or 'none'}"
    wanted = Path("/run/reboot-required").exists()
    yield not wanted, f"reboot: {'wanted' if wanted else 'not needed'}"


def disks() -> Iterator[Point]:
    """Look how much is left."""
    usage = shutil.disk_usage("/")
    yield usage.free > DISK * usage.total, f"disk: {usage.free / usage.total:.0%} of {usage.total >> 30} GB left"


def certificates() -> Iterator[Point]:
    """Look when certificates end."""
    for file in Path("/etc/redis/tls").glob("*.pem"):
        good = validity.is_valid_for(str(file), CERTIFICATE_DAYS * validity.DAY)
        end = process.run("openssl", "x509", "-in", str(file), "-noout", "-enddate").output
        yield good, f"Redis' certificate ends {end.strip().removeprefix('notAfter=')}"


def package(name: str) -> Iterator[Point]:
    """Look whether the distribution has a newer version of a package."""
    told = process.run("apt-cache", "policy", name, timeout=TIMEOUT).output
    versions = dict(re.findall(r"^  (Installed|Candidate): (\S+)", told, re.MULTILINE))
    if versions.get("Installed", "(none)") != "(none)":
        newest = versions["Installed"] == versions["Candidate"]
        yield newest, f"{name} {versions['Installed']}, the distribution has {versions['Candidate']}"


def main() -> None:
    """Go through one list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", choices=["weekly", "monthly", "quarterly"])
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    arguments = parser.parse_args()
    points: list[Point] = []
    if arguments.list == "weekly":
        points += errors(arguments.prefix)
        points += [point for name in arguments.redis for point in memory(name)]
        points += updates()
    elif arguments.list == "monthly":
        points += [point for name in arguments.redis for point in persistence(name)]
        points += certificates()
        points += disks()
    else:
        points += package("redis-server")
        points += package("supervisor")
    tell([{"state": "OK" if good else "LOOK", "what": what} for good, what in points])
