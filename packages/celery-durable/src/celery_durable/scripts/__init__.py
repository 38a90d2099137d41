"""Our Lua in Redis, a file for each script, which tells its KEYS and ARGV.

A script runs as a whole or not at all, and its writes reach the append-only file together. Those of the workers also
run when Redis has no memory left (``allow-oom``): without them it could never get any back.

They run by their digest: clients run what an administrator has loaded, and no Lua of their own.

Redis loads it after each start, and whoever installs a release does (docs/decisions/0028-known-scripts.md). A client
that logs in without a name, as on a laptop, loads what is missing itself.
"""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import redis

MISSING = "Redis lacks a Lua script of this release: it has them some seconds after its start, else run site.yml."


# Every script of ours.
_texts: list[str] = []


def _read(name: str) -> str:
    text = files(__package__).joinpath(f"{name}.lua").read_text()
    _texts.append(text)
    return text


ENQUEUE = _read("enqueue")
ENQUEUE_ONCE = _read("enqueue_once")
ENQUEUE_BATCH = _read("enqueue_batch")
ENQUEUE_AGAIN = _read("enqueue_again")
TAKE = _read("take")
ACKNOWLEDGE = _read("acknowledge")
REQUEUE = _read("requeue")
DEAD_LETTER = _read("dead_letter")
MOVE = _read("move")
MOVE_ANEW = _read("move_anew")
RENEW = _read("renew")
OWN = _read("own")
FORGET = _read("forget")
NOTE_IDLE = _read("note_idle")
REPORT = _read("report")
REVOKE = _read("revoke")
BEAT_LEASE = _read("beat_lease")
BEAT_CLAIM = _read("beat_claim")


@cache
def digest(text: str) -> str:
    """Return what Redis calls a script: its SHA-1, 40 hexadecimal digits."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def run(client: Any, text: str, number_of_keys: int, *words: Any) -> Any:
    """Run a script.

    Raises:
        redis.ConnectionError: Redis does not have it, besides what redis-py raises.
    """
    try:
        return client.evalsha(digest(text), number_of_keys, *words)
    except redis.exceptions.NoScriptError:
        load(client)
        return client.evalsha(digest(text), number_of_keys, *words)


def is_named(username: str | None) -> bool:
    """Tell whether a user's rules come from the platform: nobody of those loads scripts, and a try raises an alert."""
    return username not in (None, "", "default")


def load(client: Any) -> None:
    """Load all scripts of ours.

    Raises:
        redis.ConnectionError: the client's user has a name (connection.py).
    """
    for text in _texts:
        client.script_load(text)


async def load_async(client: Any) -> None:
    """Do the same with an asyncio client.

    Raises:
        redis.ConnectionError: the client's user has a name.
    """
    if is_named(client.connection_pool.connection_kwargs.get("username")):
        raise redis.ConnectionError(MISSING)
    for text in _texts:
        await client.script_load(text)
