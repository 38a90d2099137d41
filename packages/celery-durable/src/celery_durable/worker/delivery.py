"""The messages that this worker holds.

A message lies in its worker's unacked list from the moment it leaves the queue until its result is stored. Each worker
renews the lease of its lists every second (leases.py). When it comes back after its death, it requeues what its lists
hold; when it does not, any other worker does (sweep.py).
"""

import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import redis
from redis.exceptions import RedisError

from celery_durable import dead_letter, keys, scripts, signing
from celery_durable.dead_letter import digest_of
from celery_durable.options import Options
from celery_durable.worker.acknowledgement import Acknowledgements, Command
from celery_durable.worker.idle import IdleNotes, running
from celery_durable.worker.leases import Death, Leases
from celery_durable.worker.redelivery import SUSPECTED, Redelivery, redelivered, suspicions

# Seconds in which a message may be on its way to the process that runs it, or end the worker by itself.
JUST_CAME = 0.5
# Seconds in which a task that was given to the pool is known to run.
START_ALLOWANCE = 2.0


@dataclass
class Delivery:
    """A message in flight."""

    unacked: str
    raw: bytes
    task_id: str
    since: float = field(default_factory=time.monotonic)
    countdown: float = 0.0  # seconds from then until it may run
    requeued: bool = False
    dead_lettered: bool = False
    suspected: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        """Name the text once: it is needed often."""
        self.digest = digest_of(self.raw)


class Deliveries:
    """What this worker has taken and not yet acknowledged; used by its main loop and its pool's threads."""

    def __init__(self, options: Options, client: redis.Redis, leases: Leases, redelivery: Redelivery) -> None:
        """Hold nothing."""
        self._options, self._client, self._leases, self._redelivery = options, client, leases, redelivery
        self._held: dict[str, Delivery] = {}
        # Digest -> the tag that its message was taken with last: tens of thousands may be scheduled.
        self._tags: dict[str, str] = {}
        # Of our lists, how a previous worker of our name left them; none of those that we have looked through.
        self._deaths: dict[str, Death] = {}
        self.acknowledgements = Acknowledgements(client, self._drop)
        self.idle = IdleNotes(client, leases.lists, self._in_flight)

    def unacked_list(self, queue: str) -> str:
        """Return the list that a message from ``queue`` must be moved to, and keep its lease from now on."""
        if queue not in self._leases.lists:
            death = self._leases.add(queue)
            self._deaths[self._leases.lists[queue]] = death
            self._leases.renew()
        return self._leases.lists[queue]

    def take(self, queue: str, raw: bytes, task_id: str) -> str | None:
        """Take charge of a message that was moved to our list; return its delivery tag.

        Nothing is returned for one that is in flight already: Redis has lost the end of its append-only file.
        """
        delivery = Delivery(self._leases.lists[queue], raw, task_id)
        earlier = self._held.get(self._tags.get(delivery.digest, ""))
        if earlier and earlier.raw == raw and not earlier.requeued:
            return None
        tag = str(uuid.uuid4())
        self._held[tag] = delivery
        self._tags[delivery.digest] = tag
        return tag

    def postpone(self, tag: str, seconds: float) -> None:
        """The message is a task that runs in ``seconds`` from now: until then it is scheduled, and not stuck."""
        if delivery := self._held.get(tag):
            delivery.countdown = time.monotonic() - delivery.since + seconds

    def acknowledge(self, tag: str) -> None:
        """The message's task has ended, and its result is stored."""
        if delivery := self._held.get(tag):
            names = [delivery.unacked, keys.ACCEPTED]
            self.acknowledgements.add(Command(tag, scripts.ACKNOWLEDGE, names, [delivery.raw, delivery.task_id]))

    def requeue(self, tag: str) -> None:
        """Put the message back into its queue; it is the next to be taken."""
        if (delivery := self._held.get(tag)) and not delivery.requeued:
            delivery.requeued = True
            queue = keys.queue_of(delivery.unacked)
            again: str | bytes = delivery.raw
            rejected = signing.rejection(self._options, queue, delivery.raw)
            if message := None if rejected else signing.parse(delivery.raw):
                if delivery.suspected:
                    message["properties"][SUSPECTED] = suspicions(message["properties"]) + 1
                again = redelivered(self._options, queue, message)
            names = [delivery.unacked, queue]
            self.acknowledgements.add(Command(tag, scripts.REQUEUE, names, [delivery.raw, again]))

    def suspect(self, tag: str) -> None:
        """The message's run was in a process that died, and may have been what ended it."""
        if delivery := self._held.get(tag):
            delivery.suspected = True

    def dead_letter(self, tag: str, reason: str) -> None:
        """Put the message where only an operator takes it from; the first reason counts."""
        if (delivery := self._held.get(tag)) and not delivery.dead_lettered:
            delivery.dead_lettered = True
            names = [delivery.unacked, keys.DEAD_LETTERS, keys.ACCEPTED]
            letter = dead_letter.arguments(self._options, keys.queue_of(delivery.unacked), delivery.raw, reason)
            self.acknowledgements.add(Command(tag, scripts.DEAD_LETTER, names, letter))

    def started(self, tag: str, in_this_process: bool) -> None:
        """A task begins to run. What could end this process itself is written down before."""
        delivery = self._held.get(tag)
        if in_this_process and delivery and self.idle.is_known(delivery.unacked, delivery.digest):
            with suppress(RedisError):
                self.idle.note(but=tag)

    def oldest(self) -> float | None:
        """Return when the message that waits for the longest came, or was due, of time.monotonic()."""
        since = [delivery.since + delivery.countdown for delivery in tuple(self._held.values())]
        return min(since, default=None)

    def reclaim(self, waiting: Collection[str] = ()) -> None:
        """Requeue what lies in our lists but is not in flight: of a previous life, or of a lost connection.

        To be called only while no message can be on its way to us.

        Args:
            waiting: tags of the present connection. Of earlier ones only what runs is kept: Celery dropped the rest.

        Raises:
            redis.exceptions.RedisError: the broker does not answer.
        """
        self.acknowledgements.flush()
        self._let_go(waiting)
        held = {delivery.raw: delivery.unacked for delivery in tuple(self._held.values())}
        for unacked in self._leases.lists.values():
            if self._client.llen(unacked) != list(held.values()).count(unacked):
                death = self._deaths.get(unacked)
                for raw in self._redelivery.messages(unacked):
                    if raw not in held:
                        self._redelivery.requeue(unacked, raw, death)
                if death:
                    self._client.delete(keys.idle_set(unacked))
            self._deaths.pop(unacked, None)

    def requeue_all(self) -> None:
        """Requeue everything; nothing of it runs any more.

        Raises:
            redis.exceptions.RedisError: the broker does not answer.
        """
        rejected = self.acknowledgements.rejected()
        for tag in tuple(self._held):
            if tag not in rejected:
                self.requeue(tag)
        self.reclaim()

    def _in_flight(self) -> Iterator[tuple[str, str, str]]:
        just_came = time.monotonic() - JUST_CAME
        for tag, delivery in tuple(self._held.items()):
            if delivery.since < just_came:
                yield tag, delivery.unacked, delivery.digest

    def _let_go(self, waiting: Collection[str]) -> None:
        busy = running()
        with self.acknowledgements.lock:
            kept = {*waiting, *busy, *self.acknowledgements.tags()}
            started = time.monotonic() - START_ALLOWANCE
            self._held = {tag: held for tag, held in self._held.items() if tag in kept or held.since > started}
            self._tags = {held.digest: tag for tag, held in self._held.items()}

    def _drop(self, tag: str) -> None:
        done = self._held.pop(tag, None)
        if done and self._tags.get(done.digest) == tag:
            self._tags.pop(done.digest, None)
