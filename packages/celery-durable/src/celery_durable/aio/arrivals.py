"""Results as they come: one connection of an API process hears of them, however many clients wait.

Celery publishes each state that it stores, on the channel with the result's own name.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery.states import READY_STATES
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from celery_durable.aio.lookup import RESULT
from celery_durable.stored_results import UNKNOWN, state_of

logger = logging.getLogger(__name__)

# Seconds of silence after which Redis is asked whether it is still there, and in which it must answer.
PING_INTERVAL = 2.0
# Seconds between two tries to connect.
RECONNECT_INTERVAL = 0.5
# States after which nothing more comes; of what cannot be read nothing is known.
FINAL = READY_STATES | {UNKNOWN}
# A channel that nobody publishes on: with it the connection always listens, and says when that has begun.
OWN_CHANNEL = RESULT


class Arrivals:
    """Wakes those who wait for a task's end."""

    def __init__(self, results: Redis, limit: int) -> None:
        """Listen to ``results``; at most ``limit`` may wait."""
        self._results = results
        self._limit = limit
        self._waiting = 0
        self._waiters: dict[str, set[asyncio.Event]] = {}  # by channel
        self._confirmed: set[str] = set()  # channels that Redis has said we hear
        self._connection: Connection | None = None
        self._unsent: list[tuple[str, str]] = []  # command, channel
        self._sender: asyncio.Task[None] | None = None
        self._is_heard = True
        self.has_stopped = False

    @property
    def has_room(self) -> bool:
        """Tell whether one more may wait."""
        return self._waiting < self._limit and not self.has_stopped

    @contextmanager
    def expect(self, task_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the task's state should be read again.

        That is when the task may have ended, or may have done so unheard: once listening has begun, after the
        connection was lost, and when the process ends. Whoever reads clears the event before.
        """
        channel, event = f"{RESULT}{task_id}", asyncio.Event()
        self._waiting += 1
        waiters = self._waiters.setdefault(channel, set())
        waiters.add(event)
        if channel in self._confirmed or self.has_stopped:
            event.set()
        elif len(waiters) == 1:
            self._send("SUBSCRIBE", channel)
        try:
            yield event
        finally:
            self._waiting -= 1
            waiters.discard(event)
            if not waiters:
                del self._waiters[channel]
                self._confirmed.discard(channel)
                self._send("UNSUBSCRIBE", channel)

    def stop(self) -> None:
        """Let everybody answer what is known now: the process ends."""
        self.has_stopped = True
        for channel in self._waiters:
            self._wake(channel)

    async def listen(self) -> None:
        """Listen without end; connect again where that is needed."""
        while True:
            try:
                await self._hear()
            except (RedisError, OSError) as error:
                if self._is_heard:
                    logger.warning("Results are not heard of at the moment: %s: %s", type(error).__name__, error)
                self._is_heard = False
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _hear(self) -> None:
        pool: Any = self._results.connection_pool
        connection: Connection = await pool.get_connection()
        self._connection = connection
        self._unsent.clear()
        self._confirmed.clear()
        try:
            await connection.send_command("SUBSCRIBE", OWN_CHANNEL, *self._waiters)
            is_silent = False
            while True:
                reply = await connection.read_response(timeout=PING_INTERVAL, disconnect_on_error=False)
                if reply is not None:
                    self._take(reply)
                elif is_silent:
                    raise RedisConnectionError("Redis does not answer.")
                else:
                    await connection.send_command("PING")
                is_silent = reply is None
        finally:
            self._connection = None
            await connection.disconnect(nowait=True)
            await pool.release(connection)

    def _take(self, reply: list[bytes]) -> None:
        kind, name, *data = reply
        channel = name.decode()
        if kind == b"subscribe" and channel == OWN_CHANNEL:
            self._is_heard = True
        elif kind == b"subscribe" and channel in self._waiters:
            self._confirmed.add(channel)
            self._wake(channel)
        elif kind == b"message" and state_of(data[0]) in FINAL:
            self._wake(channel)

    def _wake(self, channel: str) -> None:
        for event in self._waiters.get(channel, ()):
            event.set()

    def _send(self, command: str, channel: str) -> None:
        # Without a connection there is nothing to do: the next one begins with everybody who waits.
        if self._connection is not None:
            self._unsent.append((command, channel))
            if self._sender is None or self._sender.done():
                self._sender = asyncio.create_task(self._send_all(self._connection))

    async def _send_all(self, connection: Connection) -> None:
        # Where it fails the connection is closed, which whoever listens notices.
        with suppress(RedisError, OSError):
            while self._unsent and self._connection is connection:
                await connection.send_command(*self._unsent.pop(0))
