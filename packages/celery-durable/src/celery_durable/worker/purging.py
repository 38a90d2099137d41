"""Deletes what waits in a queue."""

from typing import Any

import redis

from celery_durable import keys, scripts, signing
from celery_durable.scripts import digest
from celery_durable.task_ids import task_of

# Messages that are read in one round trip.
PURGED_AT_ONCE = 500


class PurgeError(Exception):
    """A queue cannot be emptied."""


def purge(client: Any, queue: str) -> int:
    """Delete the messages of a queue, also from the ledger; return how many there were.

    Raises:
        PurgeError: Redis rejects it.
    """
    purged = 0
    try:
        # The newest first: that is where a script looks for them.
        while entries := client.lrange(queue, 0, PURGED_AT_ONCE - 1):
            pipeline = client.pipeline(transaction=False)
            for raw in entries:
                message = signing.parse(raw)
                names = queue, keys.ACCEPTED
                pipeline.evalsha(
                    digest(scripts.ACKNOWLEDGE), len(names), *names, raw, task_of(message) if message else ""
                )
            pipeline.execute()
            purged += len(entries)
    except redis.ResponseError as error:
        raise PurgeError(f"The queue {queue} cannot be purged; {purged} messages are deleted. {error}") from error
    return purged
