#!/usr/bin/env python3
"""What fills a Redis, and whether it may throw it away: prints causes as JSON, each with what is known of the memory.

Runs on the host as root, with the system's Python alone. With --mend it changes the running server: limit, policy, and
the expiry of results that have none; then it prints what it has done, one sentence a line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Of the limit, as the alert RedisMemoryHigh has it.
HIGH = 0.7
# Of what the data takes; below this size a ratio says nothing.
FRAGMENTED, FRAGMENTED_FROM = 1.5, 64 * 1024**2
# Keys that are looked at: enough to see what fills it, little enough to disturb nobody.
SCANNED = 20_000
BATCH = 500
RESULT = "celery-task-meta-"
PATIENCE = 60  # seconds for each command
# Of the host's memory: what all instances may take together.
SHARE_OF_HOST = 0.75


@dataclass
class Cause:
    """What is wrong with an instance's memory."""

    cause: str
    what: str
    subject: str  # the instance
    rank: int


class Redis:
    """One instance, asked through redis-cli as its administrator."""

    def __init__(self, name: str, *, broker: bool) -> None:
        """Read its password."""
        self.is_broker = broker
        suffix = "" if name == "main" else f"-{name}"
        config = Path(f"/etc/redis/redis{suffix}.conf").read_text()
        password = re.search(r"^requirepass (\S+)", config, re.MULTILINE)
        self._environment = {**os.environ, "REDISCLI_AUTH": password[1] if password else ""}
        # -e: an error is an error, not an answer.
        self._client = ["redis-cli", "-e", "-s", f"/run/redis{suffix}/redis-server.sock"]
        self.name = name
        policy = re.search(r"^maxmemory-policy (\S+)", config, re.MULTILINE)
        self.wanted_policy = policy[1] if policy else "noeviction"

    def call(self, *words: str, lines: str = "") -> list[str]:
        """Return the lines of an answer; of several, when ``lines`` holds a command each.

        Raises:
            SystemExit: Redis refused it or did not answer.
        """
        try:
            run = subprocess.run(
                [*self._client, *words],
                input=lines or None,
                stdin=None if lines else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
                env=self._environment,
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"Redis {self.name} does not answer {' '.join(words)} within {PATIENCE} s")
        if run.returncode:
            sys.exit(f"Redis {self.name} answers {' '.join(words)}: {(run.stderr or run.stdout).strip()}")
        return run.stdout.splitlines()

    def info(self) -> dict[str, str]:
        """Return what INFO says."""
        return dict(line.split(":", 1) for line in self.call("INFO", "everything") if ":" in line)

    def databases(self) -> list[str]:
        """Return the numbers of the databases that hold keys."""
        return [name.removeprefix("db") for name in self.info() if re.fullmatch(r"db\d+", name)]

    def keys(self, database: str, *words: str) -> Iterator[list[str]]:
        """Yield batches of keys, SCANNED at most."""
        cursor, seen = "0", 0
        while seen < SCANNED:
            cursor, *keys = self.call("-n", database, "SCAN", cursor, *words, "COUNT", str(BATCH))
            yield keys
            seen += BATCH
            if cursor == "0":
                return


def words(commands: Iterator[str]) -> str:
    """Return commands as redis-cli reads them."""
    return "".join(f"{command}\n" for command in commands)


def quoted(key: str) -> str:
    """Return a key as redis-cli reads it."""
    return json.dumps(key, ensure_ascii=False)


def prefix(key: str) -> str:
    """Return what keys of one kind have in common."""
    for kind in (RESULT, "idempotency:", "unacked:", "_kombu.binding", "app:"):
        if key.startswith(kind):
            return kind + "*"
    return "*.reply.celery.pidbox" if key.endswith(".reply.celery.pidbox") else key


def contents(redis: Redis) -> tuple[str, int]:
    """Return in a sentence what the most memory is for, and how many results never expire."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    endless = 0
    for database in redis.databases():
        for keys in redis.keys(database):
            if not keys:
                continue
            usage = redis.call("-n", database, lines=words(f"MEMORY USAGE {quoted(key)} SAMPLES 5" for key in keys))
            for key, size in zip(keys, usage, strict=True):
                counts[prefix(key)] += 1
                sizes[prefix(key)] += int(size or 0)
            endless += len(without_end(redis, database, keys))
    most = [f"{kind}: {counts[kind]} keys, {size >> 10} KB" for kind, size in sizes.most_common(3)]
    return "; ".join(most) or "no key", endless


def without_end(redis: Redis, database: str, keys: list[str]) -> list[str]:
    """Return the results among these keys that never expire."""
    results = [key for key in keys if key.startswith(RESULT)]
    if not results:
        return []
    times = redis.call("-n", database, lines=words(f"TTL {quoted(key)}" for key in results))
    return [key for key, left in zip(results, times, strict=True) if left == "-1"]


def look(host: str, redis: Redis) -> Iterator[Cause]:
    """Look at one instance."""
    info = redis.info()
    used, limit, name = int(info["used_memory"]), int(info["maxmemory"]), redis.name
    full, endless = contents(redis)
    state = f"{used >> 20} of {limit >> 20} MB used, {info['maxmemory_policy']}; it holds {full}"
    if info["maxmemory_policy"] != redis.wanted_policy:
        what = f"{host}: Redis {name} runs with {info['maxmemory_policy']} instead of {redis.wanted_policy} ({state})"
        yield Cause("policy", what, name, 0)
    if name == "broker" and int(info.get("evicted_keys", 0)):
        what = f"{host}: the broker has thrown away {info['evicted_keys']} keys, tasks among them ({state})"
        yield Cause("evicted", what, name, 1)
    if name == "broker" and limit and used > HIGH * limit:
        yield Cause("high", f"{host}: the broker is filled to {used / limit:.0%} ({state})", name, 2)
    if endless and info.get("role") != "slave":
        yield Cause("endless", f"{host}: {endless} results of Redis {name} never expire", name, 3)
    resident = int(info["used_memory_rss"])
    if resident > FRAGMENTED * used and resident > FRAGMENTED_FROM:
        what = f"{host}: Redis {name} takes {resident >> 20} MB for {used >> 20} MB of data (fragmentation)"
        yield Cause("fragmented", what, name, 4)


def mend(redis: Redis, maxmemory: int, expires: str) -> Iterator[str]:
    """Put right what can be put right while it runs; yield what was done."""
    info, name = redis.info(), redis.name
    if info["maxmemory_policy"] != redis.wanted_policy:
        redis.call("CONFIG", "SET", "maxmemory-policy", redis.wanted_policy)
        yield f"Redis {name}: the policy is {redis.wanted_policy} again"
    if maxmemory and redis.is_broker:
        redis.call("CONFIG", "SET", "maxmemory", str(maxmemory))
        yield f"Redis {name}: the limit is {maxmemory >> 20} MB"
    # Of the broker alone: that results were evicted is what result_not_found.yml tells their clients.
    if name == "broker" and int(info.get("evicted_keys", 0)):
        # What has been lost is in the evidence; from here on a new one shall be seen.
        redis.call("CONFIG", "RESETSTAT")
        yield f"Redis {name}: its statistics begin anew"
    # A replica has what its primary has, and takes no writes.
    for database in redis.databases() if info.get("role") != "slave" else ():
        for keys in redis.keys(database, "MATCH", f"{RESULT}*"):
            if endless := without_end(redis, database, keys):
                redis.call("-n", database, lines=words(f"EXPIRE {quoted(key)} {expires}" for key in endless))
                yield f"Redis {name}: {len(endless)} results expire in {expires} s"
    redis.call("MEMORY", "PURGE")


def size(text: str) -> int:
    """Return the bytes of a size like 512mb.

    Raises:
        SystemExit: it is none, or more than the host has.
    """
    match = re.fullmatch(r"(\d+)(mb|gb)", text.lower())
    if match is None:
        sys.exit(f"maxmemory is {text}: write a size like 512mb or 2gb.")
    wanted = int(match[1]) << {"mb": 20, "gb": 30}[match[2]]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > SHARE_OF_HOST * total:
        sys.exit(
            f"maxmemory is {text}: the host has {total >> 20} MB, the broker may take {SHARE_OF_HOST:.0%} of them."
        )
    return wanted


def main() -> None:
    """Look at the instances that the arguments name, or mend them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    parser.add_argument("--maxmemory", metavar="SIZE", help="the broker's new limit, like 512mb")
    parser.add_argument("--result-expires", default="3600", metavar="SECONDS")
    parser.add_argument("--mend", action="store_true")
    arguments = parser.parse_args()
    # Where there is no Redis, the size of the host does not matter.
    maxmemory = size(arguments.maxmemory) if arguments.maxmemory and arguments.redis else 0
    # redis_topology: shared has one instance, which holds the queue too.
    instances = [Redis(name, broker=name == "broker" or len(arguments.redis) == 1) for name in arguments.redis]
    if arguments.mend:
        for redis in instances:
            print("\n".join(mend(redis, maxmemory, arguments.result_expires)))
        return
    print(json.dumps([asdict(cause) for redis in instances for cause in look(arguments.host, redis)]))


if __name__ == "__main__":
    main()
