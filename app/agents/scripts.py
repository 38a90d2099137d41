"""Our Lua in Redis, run by its digest: clients run what an administrator has loaded, and no Lua of their own.

Redis loads it after each start, and whoever installs a release does (docs/decisions/0028-known-scripts.md). A client
that logs in without a name, as on a laptop, loads what is missing itself.
"""

import hashlib
from functools import cache
from typing import Any

import redis

# Every script of ours that this process knows.
_texts: list[str] = []

MISSING = "Redis lacks a Lua script of this release: it has them some seconds after its start, else run site.yml."


def register_script(text: str) -> str:
    """Return ``text``, which `python -m app.known_scripts` finds by this call."""
    _texts.append(text)
    return text


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
        redis.ConnectionError: the client's user has a name (by app/agents/redis_connection.py).
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
