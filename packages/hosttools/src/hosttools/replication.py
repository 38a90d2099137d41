"""How this host's Redis servers and sentinel stand to the others: prints findings as JSON, and changes nothing.

Runs on the host as root. A finding is one of the doctor's, and a cause for playbooks/runbooks/replication.yml besides.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hosttools import files, systemd
from hosttools.findings import CRITICAL, REACH, REDIS, RIGHTS, WARNING, Finding, tell
from hosttools.redis_client import Instance, Redis, RedisError, local, opened, setting

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
class Installation:
    """What the inventory says."""

    address: str  # this host's, as the others know it
    servers: list[str]  # the addresses of all that have Redis
    sentinels: list[str]  # HOST:PORT
    min_replicas: int
    max_lag: int
    ca_file: str


def sentinels_password() -> str:
    """Return the password of all sentinels, which servers and sentinels have in a file each."""
    own = setting(files.read("/etc/redis/sentinel.conf"), "sentinel sentinel-pass")
    return own or files.read("/etc/redis/sentinel-password").strip()


def ask(redis: Redis, *words: str) -> Any:
    """Return what a sentinel answers, also where that is an error; nothing when it refuses its password."""
    try:
        if password := sentinels_password():
            redis.call("AUTH", password)
    except RedisError:
        return None
    try:
        return redis.call("SENTINEL", *words)
    except RedisError as error:
        return str(error)


def there(sentinel: str, ca_file: str, *words: str) -> Any:
    """Ask one of the sentinels, HOST:PORT; return nothing when it does not answer."""
    scheme, options = ("rediss", f"?ssl_ca_certs={ca_file}") if ca_file else ("redis", "")
    try:
        with opened(urlsplit(f"{scheme}://{sentinel}/{options}")) as connected:
            return ask(Redis(connected), *words)
    except OSError:
        return None


def here(*words: str) -> Any:
    """Ask this host's sentinel; return nothing when it does not answer."""
    try:
        with local(SENTINEL_SOCKET) as redis:
            return ask(redis, *words)
    except OSError:
        return None


def replication(name: str) -> dict[str, str]:
    """Return how an instance of this host is replicated; nothing when it does not answer."""
    try:
        with Instance(name).connect() as redis:
            return redis.info("replication")
    except (OSError, RedisError):
        return {}


def named(given: Installation, name: str) -> dict[str, str]:
    """Return whom each sentinel names as the primary, "HOST:PORT"; nothing for those that do not answer."""
    if not given.sentinels:
        return {}
    with ThreadPoolExecutor(len(given.sentinels)) as pool:
        answers = pool.map(lambda one: there(one, given.ca_file, "GET-MASTER-ADDR-BY-NAME", name), given.sentinels)
        pairs = zip(given.sentinels, answers, strict=True)
        return {sentinel: ":".join(answer) for sentinel, answer in pairs if isinstance(answer, list)}


def majority(answers: dict[str, str], given: Installation) -> str:
    """Return whom more than half of the sentinels name, nothing if there is no such server."""
    best = Counter(answers.values()).most_common(1)
    return best[0][0] if best and best[0][1] > len(given.sentinels) / 2 else ""


def server(given: Installation, name: str, port: str, answers: dict[str, str]) -> Iterator[Finding]:
    """Look at one server of this host; that it does not run at all is told by the doctor."""
    info = replication(name)
    wanted = majority(answers, given)
    if not wanted:
        silent = ", ".join(sorted(set(given.sentinels) - answers.keys())) or "none is silent, they disagree"
        what = f"most sentinels name no primary of Redis {name} to this host (silent: {silent})"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REACH, cause="sentinels", subject=name)
    if info.get("role") == "master":
        yield from primary(given, name, info, wanted, f"{given.address}:{port}")
    elif info.get("role") == "slave":
        yield from replica(name, info, wanted, f"{given.address}:{port}")


def primary(given: Installation, name: str, info: dict[str, str], wanted: str, own: str) -> Iterator[Finding]:
    """Look at a server that is a primary by its own account."""
    if wanted and wanted != own:
        what = f"Redis {name} is a primary, but the sentinels name {wanted}: split brain"
        yield Finding(CRITICAL, what, "RedisSplitBrain", REACH, cause="follow", subject=name, primary=wanted)
    states = [dict(pair.split("=") for pair in value.split(",")) for key, value in info.items() if _is_replica(key)]
    good = [state for state in states if state["state"] == "online" and int(state["lag"]) <= given.max_lag]
    missing = sorted(set(given.servers) - {given.address} - {state["ip"] for state in good})
    if len(good) < given.min_replicas:
        what = f"Redis {name} is read-only (NOREPLICAS): it has {len(good)} replicas that are up to date"
        what += f", not {', '.join(missing)}"
        yield Finding(CRITICAL, what, "RedisReadOnly", RIGHTS, cause="read_only", subject=name)
    elif missing:
        late = {state["ip"] for state in states} & set(missing)
        page, state = ("RedisReplicaLags", "are behind") if late else ("RedisReplicaMissing", "do not follow it")
        what = f"Redis {name} has {len(good)} replicas that are up to date; {', '.join(missing)} {state}"
        yield Finding(WARNING, what, page, REACH, cause="missing", subject=name)


def _is_replica(key: str) -> bool:
    return re.fullmatch(r"slave\d+", key) is not None


def replica(name: str, info: dict[str, str], wanted: str, own: str) -> Iterator[Finding]:
    """Look at a server that follows another one."""
    follows = f"{info['master_host']}:{info['master_port']}"
    if wanted == own:
        what = f"Redis {name} follows {follows}, the sentinels take it for the primary: nobody takes writes"
        yield Finding(CRITICAL, what, "RedisNoPrimary", REDIS, cause="promote", subject=name)
    elif wanted and follows != wanted:
        what = f"Redis {name} follows {follows}, the sentinels name {wanted}"
        yield Finding(CRITICAL, what, "RedisReplicaMissing", REDIS, cause="follow", subject=name, primary=wanted)
    elif info.get("master_sync_in_progress") == "1":
        what = f"Redis {name} copies the data of {follows}; it is no replica before it has"
        yield Finding(WARNING, what, "RedisReplicaMissing", REACH, cause="copies", subject=name)
    elif info.get("master_link_status") != "up":
        cause, why = reason(name)
        what = f"the replica Redis {name} does not reach its primary {follows}{why}"
        layer = REACH if cause == "link" else REDIS
        yield Finding(CRITICAL, what, "RedisReplicaMissing", layer, cause=cause, subject=name)


def reason(name: str) -> tuple[str, str]:
    """Return why a replica does not reach its primary, as its log says: a word, and the rest of the sentence."""
    log = systemd.journal("--lines=40", "--since=-5min", f"--unit={Instance(name).unit}")
    # A server's configuration is read-only for it: that Sentinel's CONFIG REWRITE is refused is meant so.
    for line in (line for line in reversed(log.splitlines()) if "CONFIG REWRITE" not in line):
        said = re.sub(r"^\d+:[A-Z] .*? [*#.-] ", "", line)[:LONGEST_QUOTE]
        for cause, (pattern, help_) in REASONS.items():
            if re.search(pattern, said):
                return cause, f": {said} ({help_})"
        if re.search(r"refused|No route|[Tt]ime(d )?out|unreachable", said):
            return "link", f": {said}"
    return "link", ""


def sentinel(given: Installation, name: str, answers: dict[str, str]) -> Iterator[Finding]:
    """Look at this host's sentinel; that it does not run is told by the doctor."""
    quorum = here("CKQUORUM", name)
    if not quorum:
        what = "the sentinel does not answer on its socket, or refuses its own password"
        yield Finding(CRITICAL, what, "SentinelsMissing", REDIS, cause="sentinel", subject=name)
        return
    if not quorum.startswith("OK"):
        what = f"the sentinel could not replace the primary of Redis {name}: {quorum[:LONGEST_QUOTE]}"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REACH, cause="quorum", subject=name)
    own = next((answer for peer, answer in answers.items() if peer.startswith(f"{given.address}:")), "")
    wanted = majority(answers, given)
    if own and wanted and own != wanted:
        what = f"the sentinel names {own} as the primary of Redis {name}, most others {wanted}"
        yield Finding(CRITICAL, what, "SentinelsNoQuorum", REDIS, cause="reset", subject=name)
    for verb, ours in (("sentinels", given.sentinels), ("replicas", given.servers)):
        known = [dict(zip(entry[::2], entry[1::2], strict=False)) for entry in here(verb.upper(), name) or []]
        # A server is known by its host, a sentinel by its port too.
        peers = sorted((entry["ip"], f"{entry['ip']}:{entry['port']}") for entry in known)
        dead = [peer for host, peer in peers if host not in ours and peer not in ours]
        if dead:
            what = f"the sentinel counts {verb} of Redis {name} that the inventory has not: {', '.join(dead)}"
            yield Finding(WARNING, what, "SentinelsNoQuorum", REDIS, cause="reset", subject=name, suspect=True)


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
    tell([finding.report() for finding in findings])
