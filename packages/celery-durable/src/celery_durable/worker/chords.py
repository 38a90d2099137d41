"""How a part of a chord is counted: however long Redis is away, and once.

Celery makes a failure of the part, which has succeeded, and of its chord, when one of these commands fails.
"""

import time
from typing import Any

import redis
from celery.backends.redis import CHORD_PART_RETURN_LUA  # type: ignore[attr-defined]
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from celery_durable.scripts import digest, is_named

# Seconds between two attempts: the first, and the longest.
FIRST_RETRY, LONGEST_RETRY = 0.1, 1.0
ENDLESS = -1

COUNT_PART = digest(CHORD_PART_RETURN_LUA)


def patience() -> Retry:
    """Return how a connection of this client tries again: without end, the task's hard limit comes before."""
    return Retry(ExponentialBackoff(cap=LONGEST_RETRY, base=FIRST_RETRY), ENDLESS)


class ChordClient(redis.Redis):
    """Of connections that try again (``patience``); each of Celery's commands for chords may be executed twice."""

    def evalsha(self, sha: str, numkeys: int, *words: Any) -> Any:
        """Run one of Celery's scripts, as soon as Redis has it.

        A part that completes its chord claims it. Where the answer to that was lost, it has the claim already.
        """
        while True:
            try:
                reply = super().evalsha(sha, numkeys, *words)
                break
            except redis.exceptions.NoScriptError:
                if not is_named(self.connection_pool.connection_kwargs.get("username")):
                    raise  # redis-py loads it
                time.sleep(FIRST_RETRY)
        if sha == COUNT_PART and not reply[3]:
            claim, token = words[numkeys - 1], words[-1]
            reply[3] = int(self.get(claim) == token.encode())
        return reply
