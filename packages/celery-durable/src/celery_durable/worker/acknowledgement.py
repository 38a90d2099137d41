"""How a message leaves its worker's list: acknowledged, requeued or dead-lettered, many in one round trip.

The main loop waits for no answer, and a Redis that is unreachable gets all of them when it is back. A task whose worker
dies before that has its result already.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import redis
from redis.exceptions import NoScriptError

from celery_durable.scripts import digest, load

logger = logging.getLogger(__name__)

# Scripts in one round trip.
BATCH = 100


@dataclass(frozen=True)
class Command:
    """A script that takes a message out of its worker's list."""

    tag: str
    script: str
    keys: list[str]
    arguments: list[str | bytes]


class Acknowledgements:
    """Commands that Redis has not carried out yet."""

    def __init__(self, client: redis.Redis, carried_out: Callable[[str], None]) -> None:
        """Send to ``client``, and call ``carried_out`` with the tag of each message that has left the list."""
        self._client, self._carried_out = client, carried_out
        self._commands: deque[Command] = deque()
        # What Redis rejects for a reason that does not pass by itself: it is tried again now and then.
        self._rejected: list[Command] = []
        # How often, by tag: the log has a message's first rejection and its end, not one line every few seconds.
        self._rejections: Counter[str] = Counter()
        # Held while commands are sent, and by who drops messages meanwhile.
        self.lock = threading.Lock()
        # Called for each command; starts the flush.
        self.on_add: Callable[[], None] = lambda: None

    def add(self, command: Command) -> None:
        """Have a command sent, soon and in another thread."""
        self._commands.append(command)
        self.on_add()

    def tags(self) -> set[str]:
        """Return the tags of all messages with a command; with the lock held."""
        return {command.tag for command in (*self._commands, *self._rejected)}

    def rejected(self) -> set[str]:
        """Return the tags of messages whose command Redis rejects."""
        return {command.tag for command in self._rejected}

    def flush(self) -> None:
        """Send all commands.

        Raises:
            redis.exceptions.RedisError: Redis does not answer; the rest is kept.
        """
        with self.lock:
            while commands := list(islice(self._commands, BATCH)):
                # Sent twice is sent once: the scripts do nothing for a message that is not there any more.
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.evalsha(digest(command.script), len(command.keys), *command.keys, *command.arguments)
                replies = pipeline.execute(raise_on_error=False)
                if any(isinstance(reply, NoScriptError) for reply in replies):
                    load(self._client)
                    continue
                for command, reply in zip(commands, replies, strict=True):
                    self._commands.popleft()
                    if isinstance(reply, Exception):
                        # The others need not wait for it. It stays in flight, so that it does not run again.
                        self._rejected.append(command)
                        self._rejections[command.tag] += 1
                        if self._rejections[command.tag] == 1:
                            logger.error(
                                "Redis rejects an acknowledgement, which is tried until it succeeds: %s", reply
                            )
                    else:
                        if times := self._rejections.pop(command.tag, 0):
                            logger.warning(
                                "Redis has rejected an acknowledgement %d times and carries it out now", times
                            )
                        self._carried_out(command.tag)

    def retry_rejected(self) -> None:
        """Send what was rejected with the next flush."""
        with self.lock:
            self._commands.extend(self._rejected)
            self._rejected.clear()
