"""What a worker does on a channel: it takes messages by moving them to its own list."""

import logging
import time
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from celery_durable import scripts, signing
from celery_durable.scripts import digest, load
from celery_durable.task_ids import task_of
from celery_durable.worker.delivery import Deliveries
from celery_durable.worker.runtime import Runtime, runtime_of
from celery_durable.worker.transport.publishing import PublishingChannel

logger = logging.getLogger(__name__)

# Seconds that a worker of several queues waits for the first of them before it looks into all again.
LOOK_INTERVAL = 0.2
# Seconds between two looks for messages that got lost between Redis and this worker.
RECLAIM_INTERVAL = 5.0

# Seconds after a connection was made in which a message may be one that was done already: Redis may have been killed
# with the end of its append-only file unwritten.
DOUBT = 60.0
# Messages that are taken in one round trip, at most: each may be as large as MAX_MESSAGE_BYTES.
TAKEN_AT_ONCE = 16
# A list that is always empty: waiting for it is waiting without a write.
NOTHING = "unacked_nothing"


class QoS(kombu_redis.QoS):
    """Counts what is in flight for the prefetch limit; everything else is done by the worker's ``deliveries``."""

    restore_at_shutdown = False

    def append(self, message: Any, delivery_tag: str) -> None:
        """The message lies in our list already."""
        super(kombu_redis.QoS, self).append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Works for tasks that began on an earlier connection, too."""
        self.channel.deliveries.acknowledge(delivery_tag)
        self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put the message back, or among the dead letters."""
        if requeue:
            self.channel.deliveries.requeue(delivery_tag)
        else:
            self.channel.deliveries.dead_letter(delivery_tag, "A worker rejected it; its log says why.")
        self._quick_ack(delivery_tag)

    def tags(self) -> tuple[str, ...]:
        """Return the messages that came through this connection and are not done with."""
        return tuple(self._delivered or ())

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """No message comes back because of its age alone."""


class Channel(PublishingChannel):
    """Takes messages by moving them."""

    QoS = QoS

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        """Connect; the arguments are the base class's."""
        super().__init__(connection, *args, **kwargs)
        self._connected = time.monotonic()
        self._taken_from: list[str] = []
        self._command = ""  # what waits for its answer
        self._room = 0  # how many messages it may bring
        # Celery looks before each whether a slot is free, and cannot say how many are.
        self._most = 1 if self._app.conf.worker_disable_prefetch else TAKEN_AT_ONCE
        self._looked_in_vain = False
        self._full = False  # Redis has no memory left and rejects BLMOVE
        self._acknowledged_queues: set[str] = set()
        self._reclaimed: dict[str, float] = {}  # list -> time

    def _worker(self, queue: str) -> Runtime:
        if runtime := runtime_of(self._app):
            return runtime
        raise NotImplementedError(
            f"Only a worker takes messages from {queue!r} to acknowledge them later: what another process has taken"
            " would be lost when it ends. Take them with no_ack=True, or write a task."
        )

    @property
    def deliveries(self) -> Deliveries:
        """Return those of the worker that this channel belongs to."""
        deliveries: Deliveries = self._app.durable_worker.deliveries
        return deliveries

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Remember which queues want acknowledgements: answers to questions do not, tasks do.

        Raises:
            NotImplementedError: this process is no worker, so nobody would look after what it takes.
        """
        if not no_ack:
            self._worker(queue)
            self._acknowledged_queues.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Take one message.

        Raises:
            NotImplementedError: with an acknowledgement only a worker may.
        """
        if not no_ack:
            self._worker(queue)
        return super().basic_get(queue, no_ack, **kwargs)

    def _takes(self) -> bool:
        # A worker asks its questions before it consumes tasks: a channel never does both at once.
        return not self._acknowledged_queues.isdisjoint(self.active_queues)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self._takes():
            self._command = ""
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [self._worker(queue).unacked_list(queue) for queue in queues]
        self._reclaim(lists)
        self._room = min(self.qos.can_consume_max_estimate() or self._most, self._most)
        if (len(queues) > 1 or self._room > 1 or self._full) and not self._looked_in_vain:
            pairs = [key for pair in zip(queues, lists, strict=True) for key in pair]
            command: list[Any] = ["EVALSHA", digest(scripts.TAKE), len(pairs), *pairs, self._room]
        elif self._full:
            command = ["BRPOP", NOTHING, LOOK_INTERVAL]
            self._full = False
        else:
            seconds = timeout or self.brpop_timeout if len(queues) == 1 else LOOK_INTERVAL
            command = ["BLMOVE", queues[0], lists[0], "RIGHT", "LEFT", seconds]
        self._taken_from, self._command = list(queues), command[0]
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command(*command)

    def _reclaim(self, lists: list[str]) -> None:
        # Nothing is on its way to us: no command is under way on this connection, and earlier ones are closed.
        now = time.monotonic()
        if any(now - self._reclaimed.get(unacked, -RECLAIM_INTERVAL) >= RECLAIM_INTERVAL for unacked in lists):
            self.deliveries.reclaim(self.qos.tags())
            self._reclaimed = dict.fromkeys(lists, now)

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except (redis.RedisError, OSError):
            raise
        except kombu_redis.Empty:
            # Raised, it would end kombu's loop, and what came with it would wait for the next message.
            return None
        except Exception:
            logger.exception("What came on a channel is ignored")
            return None

    def _deliver_fanout_message(self, message: dict[str, Any], exchange: str) -> Any:
        # Nobody of ours compresses on a channel, and a few bytes could become more than the memory holds.
        message["headers"].pop("compression", None)
        return super()._deliver_fanout_message(message, exchange)

    def _brpop_read(self, **options: Any) -> bool:
        if not self._command:
            try:
                return bool(super()._brpop_read(**options))
            except (redis.RedisError, OSError, kombu_redis.Empty):
                raise
            except Exception:
                logger.exception("What came as an answer is ignored")
                raise kombu_redis.Empty from None
        try:
            reply = self.client.parse_response(self.client.connection, self._command, **options)
        except NoScriptError:
            with self.conn_or_acquire() as client:
                load(client)
            raise kombu_redis.Empty from None
        except self.connection_errors as error:
            if isinstance(error.__cause__, OutOfMemoryError):
                self._full = True
                raise kombu_redis.Empty from error
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if self._command == "EVALSHA":
            self._looked_in_vain = len(reply) < self._room  # nothing is left
        else:
            self._looked_in_vain = self._command == "BLMOVE" and len(self._taken_from) == 1 and not reply
        # What comes while we close stays in our list and is given back with it.
        if not reply or self._closing:
            raise kombu_redis.Empty
        numbered = [(0, reply)] if self._command == "BLMOVE" else reply
        taken = [self._take_charge(self._taken_from[number], raw) for number, raw in numbered]
        # Each is in flight before the first runs, which it may do here and for long.
        for queue, tag, payload in filter(None, taken):
            self._deliver(queue, tag, payload)
        return True

    def _take_charge(self, queue: str, raw: bytes) -> tuple[str, str, dict[str, Any]] | None:
        """Keep a message of ours; return it with its queue and tag, and nothing for one that is not to run."""
        self._queue_cycle.rotate(queue)
        deliveries = self.deliveries
        reason = signing.rejection(self._options, queue, raw)
        payload = None if reason else signing.parse(raw)
        tag = deliveries.take(queue, raw, task_of(payload) if payload else "")
        if tag is None:
            return None
        if payload is None:
            deliveries.dead_letter(tag, reason or signing.MALFORMED)
            return None
        return queue, tag, payload

    def _deliver(self, queue: str, tag: str, payload: dict[str, Any]) -> None:
        try:
            # What its sender called it is the same however often it comes.
            payload["properties"] |= {"message_id": payload["properties"].get("delivery_tag"), "delivery_tag": tag}
            if time.monotonic() - self._connected < DOUBT:
                payload["properties"]["doubtful"] = True
            self.Message(payload, channel=self)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it must not reach the loop
            self.deliveries.dead_letter(tag, signing.MALFORMED)
            return
        self.connection._deliver(payload, queue)  # noqa: SLF001 - kombu's own way
