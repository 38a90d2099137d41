"""What fills a Redis, and whether it may throw it away: prints causes as JSON, each with what is known of the memory.

Runs on the host as root. With --repair it changes the running server: limit, policy, and the expiry of results that
have none; then it prints what it has done, one sentence a line.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hosttools.findings import Cause, show
from hosttools.redis_client import Instance, RedisError, printable

# Of the limit, as the alert RedisMemoryHigh has it.
HIGH = 0.7
# Of what the data takes; below this size a ratio says nothing.
FRAGMENTED, FRAGMENTED_FROM = 1.5, 64 * 1024**2
# Keys that are looked at: enough to see what fills it, little enough to disturb nobody.
SCANNED = 20_000
BATCH = 500
RESULT = "celery-task-meta-"
TIMEOUT = 60  # seconds for each command
# Of the host's memory: what all instances may take together.
SHARE_OF_HOST = 0.75


class Server:
    """One instance, asked as its administrator."""

    def __init__(self, name: str, *, broker: bool) -> None:
        """Connect.

        Raises:
            SystemExit: it does not answer.
        """
        instance = Instance(name)
        self.name, self.is_broker = name, broker
        self.wanted_policy = instance.setting("maxmemory-policy") or "noeviction"
        try:
            self._redis = instance.connect(TIMEOUT, errors="surrogateescape")
        except (OSError, RedisError) as error:
            sys.exit(f"Redis {name} does not answer: {error}.")

    def call(self, *words: str) -> Any:
        """Return an answer.

        Raises:
            SystemExit: Redis refused it or did not answer.
        """
        try:
            return self._redis.call(*words)
        except (OSError, RedisError) as error:
            sys.exit(f"Redis {self.name} answers {' '.join(words)}: {error}.")

    def info(self) -> dict[str, str]:
        """Return what INFO says."""
        return self._redis.info()

    def databases(self) -> list[str]:
        """Return the numbers of the databases that hold keys."""
        return [name.removeprefix("db") for name in self.info() if re.fullmatch(r"db\d+", name)]

    def keys(self, database: str, *words: str) -> Iterator[list[str]]:
        """Yield batches of keys, SCANNED at most; the connection stays in that database."""
        self.call("SELECT", database)
        cursor, seen = "0", 0
        while seen < SCANNED:
            cursor, keys = self.call("SCAN", cursor, *words, "COUNT", str(BATCH))
            yield keys
            seen += BATCH
            if cursor == "0":
                return


def prefix(key: str) -> str:
    """Return what keys of one kind have in common."""
    for kind in (RESULT, "idempotency:", "unacked:", "_kombu.binding", "app:"):
        if key.startswith(kind):
            return kind + "*"
    return "*.reply.celery.pidbox" if key.endswith(".reply.celery.pidbox") else printable(key)


def contents(redis: Server) -> tuple[str, int]:
    """Return in a sentence what the most memory is for, and how many results never expire."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    endless = 0
    for database in redis.databases():
        for keys in redis.keys(database):
            for key in keys:
                size = redis.call("MEMORY", "USAGE", key, "SAMPLES", "5")
                counts[prefix(key)] += 1
                sizes[prefix(key)] += int(size or 0)
            endless += len(without_end(redis, keys))
    most = [f"{kind}: {counts[kind]} keys, {size >> 10} KB" for kind, size in sizes.most_common(3)]
    return "; ".join(most) or "no key", endless


def without_end(redis: Server, keys: list[str]) -> list[str]:
    """Return the results among these keys that never expire."""
    return [key for key in keys if key.startswith(RESULT) and redis.call("TTL", key) == -1]


def look(host: str, redis: Server) -> Iterator[Cause]:
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


def repair(redis: Server, maxmemory: int, expires: str) -> Iterator[str]:
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
        # What has been lost is in the evidence; from here on a new one is to be seen.
        redis.call("CONFIG", "RESETSTAT")
        yield f"Redis {name}: its statistics begin anew"
    # A replica has what its primary has, and takes no writes.
    for database in redis.databases() if info.get("role") != "slave" else ():
        for keys in redis.keys(database, "MATCH", f"{RESULT}*"):
            if endless := without_end(redis, keys):
                for key in endless:
                    redis.call("EXPIRE", key, expires)
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
    """Look at the instances that the arguments name, or repair them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    parser.add_argument("--maxmemory", metavar="SIZE", help="the broker's new limit, like 512mb")
    parser.add_argument("--result-expires", default="3600", metavar="SECONDS")
    parser.add_argument("--repair", action="store_true")
    arguments = parser.parse_args()
    # Where there is no Redis, the size of the host does not matter.
    maxmemory = size(arguments.maxmemory) if arguments.maxmemory and arguments.redis else 0
    # redis_topology: shared has one instance, which holds the queue too.
    instances = [Server(name, broker=name == "broker" or len(arguments.redis) == 1) for name in arguments.redis]
    if arguments.repair:
        for redis in instances:
            print("\n".join(repair(redis, maxmemory, arguments.result_expires)))
        return
    show(cause for redis in instances for cause in look(arguments.host, redis))
