#!/usr/bin/env python3
"""How this host's Redis servers and sentinel stand to the others: prints findings as JSON, and changes nothing.

Runs on the host as root, with the system's Python and redis-cli. A finding is one of playbooks/files/doctor.py, which
says what its fields mean, and a cause for playbooks/runbooks/replication.yml besides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

CRITICAL, WARNING = 1, 2
# Of doctor.py's layers: what is wrong in a server, between servers, and with what clients may do.
REDIS, REACH, RIGHTS = 3, 4, 5
PATIENCE = 3  # seconds for each answer
SENTINEL_SOCKET = "/run/sentinel/redis-sentinel.sock"
LONGEST_QUOTE = 160
# Why a replica does not reach its primary, by what its log says, and what helps.
REASONS = {
    "password": (r"AUTH|WRONGPASS|NOPERM", "its password is not the primary's: run site.yml"),
    "version": (r"RDB format version|load the MASTER synchronization", "run playbooks/ops/upgrade_redis.yml"),
    "disk": (r"No space left|Read-only file system|short write", "give its disk room"),
    "tls": (r"certificate|SSL|TLS", "run site.yml"),
}


@dataclass
class Finding:
    """Something that is wrong, in the words of doctor.py and of the runbook."""

    severity: int
    what: str
    runbook: str
    layer: int
    cause: str
    subject: str  # the instance
    suspect: bool = False
    certain: bool = False
    primary: str = ""  # HOST:PORT of the one that the server should follow

    @property
    def rank(self) -> int:
        """What others follow from comes first."""
        return 10 * self.layer + self.severity


@dataclass
class Installation:
    """What the inventory says."""

    address: str  # this host's, as the others know it
    servers: list[str]  # the addresses of all that have Redis
    sentinels: list[str]  # HOST:PORT
    min_replicas: int
    max_lag: int
    ca_file: str


def say(*command: str, password: str = "") -> str:
    """Return what a command says; nothing when it takes too long."""
    environment = {**os.environ, "REDISCLI_AUTH": password}
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def setting(file: str, pattern: str) -> str:
    """Return a value of a configuration file, nothing if there is none."""
    try:
        found = re.search(rf"^{pattern} \"?([^\s\"]+)", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def sentinels_password() -> str:
    """Return the password of all sentinels, which servers and sentinels have in a file each."""
    return setting("/etc/redis/sentinel.conf", "sentinel sentinel-pass") or say("cat", "/etc/redis/sentinel-password")


def named(given: Installation, name: str) -> dict[str, str]:
    """Return whom each sentinel names as the primary, "HOST:PORT"; nothing for those that do not answer."""
    password = sentinels_password()
    tls = ["--tls", "--cacert", given.ca_file] if given.ca_file else []

    def ask(sentinel: str) -> str:
        host, _, port = sentinel.rpartition(":")
        question = ["--raw", "sentinel", "get-master-addr-by-name", name]
        return say("redis-cli", "-h", host, "-p", port, *tls, *question, password=password)

    with ThreadPoolExecutor(len(given.sentinels)) as pool:
        answers = dict(zip(given.sentinels, pool.map(ask, given.sentinels), strict=True))
    return {
        sentinel: ":".join(lines)
        for sentinel, answer in answers.items()
        if len(lines := answer.splitlines()) == 2 and lines[1].isdigit()
    }


def majority(answers: dict[str, str], given: Installation) -> str:
    """Return whom more than half of the sentinels name, nothing if there is no such server."""
    best = Counter(answers.values()).most_common(1)
    return best[0][0] if best and best[0][1] > len(given.sentinels) / 2 else ""


def server(given: Installation, name: str, port: str, answers: dict[str, str]) -> Iterator[Finding]:
    """Look at one server of this host; that it does not run at all is told by doctor.py."""
    suffix = "" if name == "main" else f"-{name}"
    client = ["redis-cli", "-s", f"/run/redis{suffix}/redis-server.sock"]
    told = say(*client, "info", "replication", password=setting(f"/etc/redis/redis{suffix}.conf", "requirepass"))
    info = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    wanted = majority(answers, given)
    if not wanted:
        silent = ", ".join(sorted(set(given.sentinels) - answers.keys())) or "none is silent, they disagree"
        what = f"most sentinels name no primary of Redis {name} to this host (silent: {silent})"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REACH, "sentinels", name)
    if info.get("role") == "master":
        yield from primary(given, name, info, wanted, f"{given.address}:{port}")
    elif info.get("role") == "slave":
        yield from replica(name, info, wanted, f"{given.address}:{port}")


def primary(given: Installation, name: str, info: dict[str, str], wanted: str, own: str) -> Iterator[Finding]:
    """Look at a server that takes itself for the primary."""
    if wanted and wanted != own:
        what = f"Redis {name} takes itself for the primary, the sentinels name {wanted}: two primaries"
        yield Finding(CRITICAL, what, "RedisTwoPrimaries", REACH, "follow", name, primary=wanted)
    states = [dict(pair.split("=") for pair in value.split(",")) for key, value in info.items() if _is_replica(key)]
    good = [state for state in states if state["state"] == "online" and int(state["lag"]) <= given.max_lag]
    missing = sorted(set(given.servers) - {given.address} - {state["ip"] for state in good})
    if len(good) < given.min_replicas:
        what = f"Redis {name} refuses writes (NOREPLICAS): it has {len(good)} replicas that are up to date"
        yield Finding(CRITICAL, f"{what}, not {', '.join(missing)}", "RedisRefusesWrites", RIGHTS, "refuses", name)
    elif missing:
        late = {state["ip"] for state in states} & set(missing)
        page, state = ("RedisReplicaLags", "are behind") if late else ("RedisReplicaMissing", "do not follow it")
        what = f"Redis {name} has {len(good)} replicas that are up to date; {', '.join(missing)} {state}"
        yield Finding(WARNING, what, page, REACH, "missing", name)


def _is_replica(key: str) -> bool:
    return re.fullmatch(r"slave\d+", key) is not None


def replica(name: str, info: dict[str, str], wanted: str, own: str) -> Iterator[Finding]:
    """Look at a server that follows another one."""
    follows = f"{info['master_host']}:{info['master_port']}"
    if wanted == own:
        what = f"Redis {name} follows {follows}, the sentinels take it for the primary: nobody takes writes"
        yield Finding(CRITICAL, what, "RedisNoPrimary", REDIS, "promote", name)
    elif wanted and follows != wanted:
        what = f"Redis {name} follows {follows}, the sentinels name {wanted}"
        yield Finding(CRITICAL, what, "RedisReplicaMissing", REDIS, "follow", name, primary=wanted)
    elif info.get("master_sync_in_progress") == "1":
        what = f"Redis {name} copies the data of {follows}; it is no replica before it has"
        yield Finding(WARNING, what, "RedisReplicaMissing", REACH, "copies", name)
    elif info.get("master_link_status") != "up":
        cause, why = reason(name)
        what = f"the replica Redis {name} does not reach its primary {follows}{why}"
        layer = REACH if cause == "link" else REDIS
        yield Finding(CRITICAL, what, "RedisReplicaMissing", layer, cause, name)


def reason(name: str) -> tuple[str, str]:
    """Return why a replica does not reach its primary, as its log says: a word, and the rest of the sentence."""
    unit = "redis-server" if name == "main" else f"redis-server@{name}"
    log = say("journalctl", "--no-pager", "--output=cat", "--lines=40", "--since=-5min", f"--unit={unit}")
    # A server's configuration is read-only for it: that Sentinel's CONFIG REWRITE is refused is meant so.
    for line in (line for line in reversed(log.splitlines()) if "CONFIG REWRITE" not in line):
        said = re.sub(r"^\d+:[A-Z] .*? [*#.-] ", "", line)[:LONGEST_QUOTE]
        for cause, (pattern, help_) in REASONS.items():
            if re.search(pattern, said):
                return cause, f": {said} ({help_})"
        if re.search(r"refused|No route|[Tt]ime(d )?out|unreachable", said):
            return "link", f": {said}"
    return "link", ""


def entries(answer: str, first: str = "name") -> list[dict[str, str]]:
    """Return the entries of a list that Sentinel answers: fields and values, line by line."""
    lines, found = answer.splitlines(), list[dict[str, str]]()
    for field, value in zip(lines[::2], lines[1::2], strict=False):
        if field == first:
            found.append({})
        if found:
            found[-1][field] = value
    return found


def sentinel(given: Installation, name: str, answers: dict[str, str]) -> Iterator[Finding]:
    """Look at this host's sentinel; that it does not run is told by doctor.py."""
    password = sentinels_password()
    ask = ["redis-cli", "-s", SENTINEL_SOCKET, "--raw", "sentinel"]
    quorum = say(*ask, "ckquorum", name, password=password)
    if not quorum:
        what = "the sentinel does not answer on its socket, or refuses its own password"
        yield Finding(CRITICAL, what, "SentinelsMissing", REDIS, "sentinel", name)
        return
    if not quorum.startswith("OK"):
        what = f"the sentinel could not replace the primary of Redis {name}: {quorum[:LONGEST_QUOTE]}"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REACH, "quorum", name)
    own = next((answer for peer, answer in answers.items() if peer.startswith(f"{given.address}:")), "")
    wanted = majority(answers, given)
    if own and wanted and own != wanted:
        what = f"the sentinel names {own} as the primary of Redis {name}, most others {wanted}"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REDIS, "reset", name)
    for verb, ours in (("sentinels", given.sentinels), ("replicas", given.servers)):
        known = entries(say(*ask, verb, name, password=password))
        # A server is known by its host, a sentinel by its port too.
        dead = sorted(
            f"{entry['ip']}:{entry['port']}"
            for entry in known
            if entry["ip"] not in ours and f"{entry['ip']}:{entry['port']}" not in ours
        )
        if dead:
            what = f"the sentinel counts {verb} of Redis {name} that the inventory has not: {', '.join(dead)}"
            yield Finding(WARNING, what, "SentinelsNoQuorum", REDIS, "reset", name, suspect=True)


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="this host's, as the others know it")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE=PORT", help="that this host has")
    parser.add_argument("--watched", action="append", default=[], metavar="INSTANCE", help="by this host's sentinel")
    parser.add_argument("--server", action="append", default=[], metavar="HOST", help="that has Redis")
    parser.add_argument("--sentinel", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-lag", type=int, default=5, metavar="SECONDS")
    parser.add_argument("--ca-file", default="")
    given = parser.parse_args()
    installation = Installation(
        given.address, given.server, given.sentinel, given.min_replicas, given.max_lag, given.ca_file
    )
    instances = dict(pair.split("=", 1) for pair in given.redis)
    answers = {name: named(installation, name) for name in {*instances, *given.watched}}
    findings: list[Finding] = []
    for name, port in instances.items():
        findings += server(installation, name, port, answers[name])
    for name in given.watched:
        findings += sentinel(installation, name, answers[name])
    print(json.dumps([{**asdict(finding), "rank": finding.rank} for finding in findings]))


if __name__ == "__main__":
    main()
