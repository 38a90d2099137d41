"""What an instance holds, and in what two differ."""

import re
from typing import Any

from hosttools.redis_client import Redis, printable

# Tasks and routes keep there what they like.
OF_THE_APPLICATION = "app:"


def figures(redis: Redis) -> dict[str, Any]:
    """Count what a restored instance must hold again.

    Keys that expire become fewer; the others and the lists stay while nobody writes.
    """
    keyspace = [re.findall(r"(?:keys|expires)=(\d+)", value) for value in redis.info("keyspace").values()]
    redis.call("SELECT", "0")  # where the broker's keys are
    lists, cursor = {}, "0"
    while True:
        cursor, names = redis.call("SCAN", cursor, "COUNT", "1000", "TYPE", "list")
        for name in names:
            if not name.startswith(OF_THE_APPLICATION) and redis.call("PTTL", name) == -1:
                lists[printable(name)] = redis.call("LLEN", name)
        if cursor == "0":
            break
    return {
        "keys": sum(int(keys) for keys, _ in keyspace),
        "lasting_keys": sum(int(keys) - int(expires) for keys, expires in keyspace),
        "accepted": redis.call("HLEN", "accepted"),
        "lists": dict(sorted(lists.items())),
    }


def described(figures: dict[str, Any]) -> str:
    """Say in a few words what an instance holds."""
    lists = [f"{name} {length}" for name, length in figures["lists"].items()]
    parts = [f"{figures['keys']} keys"]
    if figures["accepted"] or lists:
        parts += [f"{figures['accepted']} accepted tasks", f"entries: {', '.join(lists) or 'none'}"]
    return ", ".join(parts)


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """Say in what an instance differs from what it must hold; keys that expire may be fewer."""
    told = [
        f"{found[name]} {what} instead of {wanted[name]}"
        for name, what in (("lasting_keys", "keys that do not expire"), ("accepted", "accepted tasks"))
        if found[name] != wanted[name]
    ]
    if found["keys"] > wanted["keys"]:
        told.append(f"{found['keys']} keys instead of {wanted['keys']} or fewer")
    told += [
        f"{found['lists'].get(name, 0)} entries in {name} instead of {wanted['lists'].get(name, 0)}"
        for name in sorted({*wanted["lists"], *found["lists"]})
        if found["lists"].get(name) != wanted["lists"].get(name)
    ]
    return ", ".join(told)
