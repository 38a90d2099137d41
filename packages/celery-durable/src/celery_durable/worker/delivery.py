"""The messages that this worker holds, and the way back for those of a worker that died.

A message lies in its worker's unacked list from the moment it leaves the queue until its result is stored. Each worker
renews the lease of its lists every second. When it comes back after its death, it requeues what its lists hold; when it
does not, any other worker does, once no process of the dead one can run any more.
"""

import logging
import math
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import redis
from celery import Celery, bootsteps, signals, states
from celery.exceptions import WorkerLostError
from celery.worker import state as worker_state
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from celery_durable import keys, scripts, signing
from celery_durable.connection import broker_client, is_outage
from celery_durable.dead_letter import dead_letter, digest_of, log_fields, shown
from celery_durable.metrics import figures
from celery_durable.options import current, set_current
from celery_durable.redelivery import LEASE_MARGIN, MAX_REDELIVERIES, NO_LIMIT, REDELIVERIES, deaths_of
from celery_durable.revocations import revocations
from celery_durable.scripts import digest, load, run
from celery_durable.task_ids import task_of
from celery_durable.worker import node_owner

logger = logging.getLogger(__name__)

# Seconds between two signs of life, and between two looks for workers that gave none.
RENEW_INTERVAL = 1.0
SWEEP_INTERVAL = 5.0
# Seconds in which a worker on another machine that has our name must give a sign of life, or it is dead.
OWNER_PATIENCE = 5.0
# Seconds in which a message may be on its way to the process that runs it, or end the worker by itself.
JUST_CAME = 0.5
# Seconds between two notes of what no process runs, and how many messages they look at in a second at most: 8,000 take
# 14 ms, and tens of thousands may wait for their time.
NOTE_INTERVAL = 0.1
NOTED_A_SECOND = 10_000
# Seconds until an unanswered command counts as failed; the main loop waits that long when it reclaims.
REDIS_TIMEOUT = 2
# Of kombu's lists for messages with a priority (kombu.transport.redis); 0 has none.
PRIORITY_SEPARATOR, PRIORITY_STEPS = "\x06\x16", (3, 6, 9)
# Seconds in which a task that was given to the pool is known to run.
START_ALLOWANCE = 2.0
# The property of a message that counts the processes which died with its run beside others, none of which is to blame.
SUSPECTED = "suspected"
# Messages whose end Redis is told in one round trip.
FLUSH_AT_ONCE = 100


@dataclass
class Delivery:
    """A message in this worker's hands."""

    unacked: str
    raw: bytes
    task_id: str
    since: float = field(default_factory=time.monotonic)
    countdown: float = 0.0  # seconds from then until it may run
    given_back: bool = False
    buried: bool = False
    suspected: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        """Name the text once: it is asked for often."""
        self.digest = digest_of(self.raw)


@dataclass(frozen=True)
class Death:
    """How a worker ended, as far as Redis knows."""

    idle: Collection[bytes]  # digests of messages that no process of its own ran
    at: float  # its last sign of life, in seconds since 1970


@dataclass(frozen=True)
class Notice:
    """What Redis is to be told of a delivery."""

    tag: str
    script: str
    keys: list[str]
    arguments: list[str | bytes]


class Deliveries:
    """What this worker process has taken and not yet given back; used by its main loop and its pool's threads."""

    _app: Celery

    def __init__(self) -> None:
        """Hold nothing; what is no worker never does."""
        self._client: redis.Redis | None = None
        self._node, self._process = "", 0
        self._unacked: dict[str, str] = {}  # queue -> our list
        self._held: dict[str, Delivery] = {}
        # Digest -> the tag that its message was taken with last: tens of thousands may wait for their time.
        self._tags: dict[str, str] = {}
        # What Redis is still to be told. The keeper does it, many at once: the main loop waits for no answer, and a
        # Redis that is away is told when it is back. A task whose worker dies before that has its result already.
        self._notices: deque[Notice] = deque()
        # What Redis refuses to be told, for a reason that does not pass by itself: it is tried again now and then.
        self._refused: list[Notice] = []
        # Of our lists, how an earlier worker of our name left them; none of those that we have looked through.
        self._deaths: dict[str, Death] = {}
        # What Redis knows of messages that no process runs: list -> digests.
        self._idle: dict[str, set[str]] = {}
        # Of others' leases, where they stood and since when, by our clock.
        self._looks: dict[str, tuple[float, float]] = {}
        # Our right to our name; empty until we have it.
        self._token = ""
        self._flushing = threading.Lock()
        self._wake = threading.Event()
        self._keeper: threading.Thread | None = None

    def serve(self, app: Celery, node: str) -> None:
        """Become a worker of ``app``, whose name must be its own and stay the same after a restart."""
        self._app, self._node, self._process = app, node, os.getpid()

    @property
    def serving(self) -> bool:
        """Tell whether this process is a worker, and not a child of one."""
        return self._process == os.getpid()

    def begin(self) -> None:
        """Take our name and learn what was revoked; called with every new connection, before anything is taken.

        Raises:
            NameTakenError: a worker that lives has our name.
            redis.exceptions.RedisError: the broker does not answer.
        """
        if not self._token:
            self._token = self._claim(node_owner.token())
        revocations.load(self._redis)

    def _claim(self, token: str) -> str:
        found = self._own(token)
        until = time.monotonic() + OWNER_PATIENCE
        while found:
            owner, last = found
            alive = node_owner.lives(owner)
            if alive is None and time.monotonic() < until:
                # On another machine: it lives if it gives a sign of life.
                time.sleep(RENEW_INTERVAL / 2)
                found = self._own(token)
                alive = bool(found and found[0] == owner and found[1] != last)
                if not alive:
                    continue
            if alive:
                raise node_owner.NameTakenError(
                    f"The node name {self._node} belongs to {node_owner.described(owner)}, which is running. "
                    "Give each worker a name of its own, with --hostname."
                )
            found = self._own(token, dead=owner)
        return token

    def _own(self, token: str, dead: str = "") -> tuple[str, float] | None:
        found = run(self._redis, scripts.OWN, 1, f"{keys.OWNER}{self._node}", token, dead)
        return (found[0].decode(), float(found[1])) if found else None

    def _keep_name(self) -> None:
        if self._token and (other := self._own(self._token)):
            owner = node_owner.described(other[0])
            logger.critical("The node name %s has been taken over by %s: this worker ends at once", self._node, owner)
            # What runs here is about to be run there.
            os.kill(os.getpid(), signal.SIGKILL)

    def unacked_list(self, queue: str) -> str:
        """Return the list that a message from ``queue`` must be moved to, and keep its lease from now on."""
        if queue not in self._unacked:
            self._unacked[queue] = keys.unacked_list(self._node, queue)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._keeper.start()
            # An earlier worker of our name: how it ended is asked before its lease is ours.
            self._deaths[self._unacked[queue]] = self._death_of(self._unacked[queue])
            self._renew_leases()
        return self._unacked[queue]

    def take(self, queue: str, raw: bytes, task_id: str) -> str | None:
        """Take charge of a message that was moved to our list; return its delivery tag.

        Nothing is returned for one that is in our hands already: Redis has lost the end of its append-only file.
        """
        delivery = Delivery(self._unacked[queue], raw, task_id)
        earlier = self._held.get(self._tags.get(delivery.digest, ""))
        if earlier and earlier.raw == raw and not earlier.given_back:
            return None
        tag = str(uuid.uuid4())
        self._held[tag] = delivery
        self._tags[delivery.digest] = tag
        return tag

    def postpone(self, tag: str, seconds: float) -> None:
        """The message is a task that runs in ``seconds`` from now; until then it waits for its time and not for us."""
        if delivery := self._held.get(tag):
            delivery.countdown = time.monotonic() - delivery.since + seconds

    def acknowledge(self, tag: str) -> None:
        """The message is done with."""
        if delivery := self._held.get(tag):
            names = [delivery.unacked, keys.ACCEPTED]
            self._tell(Notice(tag, scripts.ACKNOWLEDGE, names, [delivery.raw, delivery.task_id]))

    def requeue(self, tag: str) -> None:
        """Give the message back; it is the next to be taken."""
        if (delivery := self._held.get(tag)) and not delivery.given_back:
            delivery.given_back = True
            queue = keys.queue_of(delivery.unacked)
            again: str | bytes = delivery.raw
            if message := None if signing.refusal(queue, delivery.raw) else signing.parse(delivery.raw):
                if delivery.suspected:
                    message["properties"][SUSPECTED] = suspicions(message["properties"]) + 1
                again = _returned(queue, message)
            self._tell(Notice(tag, scripts.REQUEUE, [delivery.unacked, queue], [delivery.raw, again]))

    def suspect(self, tag: str) -> None:
        """The message's run was in a process that died, and may have been what ended it."""
        if delivery := self._held.get(tag):
            delivery.suspected = True

    def bury(self, tag: str, reason: str) -> None:
        """Put the message where only an operator takes it from; the first reason counts."""
        if (delivery := self._held.get(tag)) and not delivery.buried:
            delivery.buried = True
            names = [delivery.unacked, keys.DEAD_LETTERS, keys.ACCEPTED]
            letter = dead_letter(keys.queue_of(delivery.unacked), delivery.raw, reason)
            self._tell(Notice(tag, scripts.BURY, names, letter))

    def reclaim(self, waiting: Collection[str] = ()) -> None:
        """Requeue what lies in our lists but is not in our hands: of an earlier life, or of a lost connection.

        To be called only while no message can be on its way to us.

        Args:
            waiting: tags of the present connection. Of earlier ones only what runs is kept: Celery dropped the rest.

        Raises:
            redis.exceptions.RedisError: the broker does not answer.
        """
        self._flush()
        self._let_go(waiting)
        held = {delivery.raw: delivery.unacked for delivery in tuple(self._held.values())}
        for unacked in self._unacked.values():
            if self._redis.llen(unacked) != list(held.values()).count(unacked):
                death = self._deaths.get(unacked)
                for raw in self._messages(unacked):
                    if raw not in held:
                        self._return(unacked, raw, death)
                if death:
                    self._redis.delete(keys.idle_set(unacked))
            self._deaths.pop(unacked, None)

    def take_over(self, app: Celery, unacked: str) -> int:
        """Requeue what lies in the list of a worker that is gone, for an operator who knows that; return how many."""
        self._app = app
        messages, death = self._messages(unacked), self._death_of(unacked)
        for raw in messages:
            self._return(unacked, raw, death)
        run(self._redis, scripts.FORGET, 3, keys.LEASES, unacked, keys.idle_set(unacked))
        return len(messages)

    def give_back(self) -> None:
        """Requeue everything; nothing of it runs any more."""
        try:
            refused = {notice.tag for notice in self._refused}
            for tag in tuple(self._held):
                if tag not in refused:
                    self.requeue(tag)
            self.reclaim()
            revocations.tell(self._redis)
            token, self._token = self._token, ""
            if token:
                self._redis.zrem(f"{keys.OWNER}{self._node}", token)
        except RedisError as error:
            logger.warning("Messages will be requeued when this worker is back: %s", error)

    @property
    def _redis(self) -> redis.Redis:
        if self._client is None:
            self._client = broker_client(
                current(),
                socket_timeout=REDIS_TIMEOUT,
                socket_connect_timeout=REDIS_TIMEOUT,
                # The second try goes through a new connection.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        return self._client

    def _messages(self, unacked: str) -> list[bytes]:
        messages: list[bytes] = self._redis.lrange(unacked, 0, -1)  # type: ignore[assignment]
        return messages

    def _leases(self) -> tuple[float, dict[str, float]]:
        """Return Redis's time, and the unacked lists of all workers with the time of their last sign of life."""
        leases: Any = self._redis.zrange(keys.LEASES, 0, -1, withscores=True)
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6, {unacked.decode(): last for unacked, last in leases}

    def _death_of(self, unacked: str) -> Death:
        idle: set[bytes] = self._redis.smembers(keys.idle_set(unacked))  # type: ignore[assignment]
        now, leases = self._leases()
        return Death(idle, leases.get(unacked, now))

    def started(self, tag: str, in_this_process: bool) -> None:
        """A task begins to run. What could end this process itself is written down before."""
        delivery = self._held.get(tag)
        if in_this_process and delivery and delivery.digest in self._idle.get(delivery.unacked, ()):
            with suppress(RedisError):
                self._note_idle(but=tag)

    def _note_idle(self, but: str = "") -> None:
        """Write down which messages no process runs: they have nothing to do with this worker's death."""
        running = {*_running(), but}
        idle: dict[str, set[str]] = {unacked: set() for unacked in self._unacked.values()}
        for tag, delivery in tuple(self._held.items()):
            if tag not in running and time.monotonic() - delivery.since > JUST_CAME:
                idle[delivery.unacked].add(delivery.digest)
        for unacked, digests in idle.items():
            known = self._idle.get(unacked, set())
            new, gone = digests - known, known - digests
            if new or gone:
                run(self._redis, scripts.NOTE_IDLE, 1, keys.idle_set(unacked), len(new), *new, *gone)
                self._idle[unacked] = digests

    def _let_go(self, waiting: Collection[str]) -> None:
        running = _running()
        with self._flushing:
            kept = {*waiting, *running, *(notice.tag for notice in (*self._notices, *self._refused))}
            started = time.monotonic() - START_ALLOWANCE
            self._held = {tag: held for tag, held in self._held.items() if tag in kept or held.since > started}
            self._tags = {held.digest: tag for tag, held in self._held.items()}

    def _tell(self, notice: Notice) -> None:
        self._notices.append(notice)
        self._wake.set()

    def _flush(self) -> None:
        with self._flushing:
            while notices := list(islice(self._notices, FLUSH_AT_ONCE)):
                # Told twice is told once: the scripts do nothing for a message that is not there any more.
                pipeline = self._redis.pipeline(transaction=False)
                for notice in notices:
                    pipeline.evalsha(digest(notice.script), len(notice.keys), *notice.keys, *notice.arguments)
                replies = pipeline.execute(raise_on_error=False)
                if any(isinstance(reply, NoScriptError) for reply in replies):
                    load(self._redis)
                    continue
                for notice, reply in zip(notices, replies, strict=True):
                    self._notices.popleft()
                    if isinstance(reply, Exception):
                        # The others need not wait for it. It stays in our hands, so that it does not run again.
                        self._refused.append(notice)
                        logger.error("Redis cannot be told what became of a message: %s", reply)
                    else:
                        done = self._held.pop(notice.tag, None)
                        if done and self._tags.get(done.digest) == notice.tag:
                            self._tags.pop(done.digest, None)

    def _keep(self) -> None:
        noted = renewed = swept = 0.0
        while True:
            self._wake.wait(NOTE_INTERVAL)
            self._wake.clear()
            duties: list[Callable[[], None]] = [self._flush]
            now = time.monotonic()
            if now - noted > max(NOTE_INTERVAL, len(self._held) / NOTED_A_SECOND):
                noted = now
                duties += [self._note_idle]
            if now - renewed > RENEW_INTERVAL:
                renewed = now
                duties += [self._keep_name, self._renew_leases, self._tell_revocations, self._report]
            if now - swept > SWEEP_INTERVAL:
                swept = now
                duties += [self._try_refused_again, self._sweep, self._take_in_priorities]
            for duty in duties:
                # What Redis refuses for good keeps nobody from the rest.
                try:
                    duty()
                except (RedisError, OSError) as error:
                    logger.warning("Redis will be told later what became of %d messages: %s", len(self._notices), error)
                    time.sleep(RENEW_INTERVAL)
                    if is_outage(error):
                        break
                except Exception:
                    logger.exception("Looking after messages failed; it is tried again")
                    time.sleep(RENEW_INTERVAL)

    def _tell_revocations(self) -> None:
        revocations.tell(self._redis)

    def _report(self) -> None:
        since = [delivery.since + delivery.countdown for delivery in tuple(self._held.values())]
        figures.report(self._redis, self._node, min(since, default=None))

    def _try_refused_again(self) -> None:
        with self._flushing:
            self._notices.extend(self._refused)
            self._refused.clear()

    def report(self) -> None:
        """Tell Redis of a start before the first task runs: that may be the worker's last."""
        with suppress(RedisError):  # the next report tells it, too
            figures.report(self._redis, self._node, None)

    def _renew_leases(self) -> None:
        lists = list(self._unacked.values())
        bindings = [f"_kombu.binding.{exchange}" for exchange in (*self._unacked, "celery.pidbox", "celeryev")]
        names = [keys.LEASES, *lists, *self._unacked, *bindings, keys.ACCEPTED, keys.DEAD_LETTERS]
        run(self._redis, scripts.RENEW, len(names), *names, len(lists))

    def _sweep(self) -> None:
        """Requeue the messages of workers that have been silent for longer than their tasks may run.

        Redis's clock may be set. So a lease must not have moved since an earlier look, by our own clock, which counts
        alone where Redis's says less. A worker of this machine whose process has ended is dead at once.
        """
        now, leases = self._leases()
        mine, earlier, looked = tuple(self._unacked.values()), self._looks, time.monotonic()
        self._looks = {
            unacked: earlier[unacked] if earlier.get(unacked, (0, 0))[0] == last else (last, looked)
            for unacked, last in leases.items()
            if unacked not in mine
        }
        for unacked, (last, since) in self._looks.items():
            still = looked - since
            age = math.inf if self._is_proven_dead(unacked) else max(now - last, still) if still else 0
            if age <= LEASE_MARGIN:
                continue
            queue = keys.queue_of(unacked)
            death = self._death_of(unacked)
            for raw in self._messages(unacked):
                if age > self._time_limit(queue, raw) + LEASE_MARGIN:
                    self._return(unacked, raw, death)
            run(self._redis, scripts.FORGET, 3, keys.LEASES, unacked, keys.idle_set(unacked))

    def _is_proven_dead(self, unacked: str) -> bool:
        owner: list[bytes] = self._redis.zrange(f"{keys.OWNER}{keys.node_of(unacked)}", 0, -1)  # type: ignore[assignment]
        return bool(owner) and node_owner.lives(owner[0].decode()) is False

    def _take_in_priorities(self) -> None:
        """Take in what producers without this library have sent with a priority: kombu has lists of its own for these.

        Where messages are signed there are no such producers, and the worker has no right to the lists.
        """
        if current().signing_keys:
            return
        for queue in tuple(self._unacked):
            for step in PRIORITY_STEPS:
                while self._redis.lmove(f"{queue}{PRIORITY_SEPARATOR}{step}", queue, "RIGHT", "LEFT"):
                    pass

    def _time_limit(self, queue: str, raw: bytes) -> float:
        """Return the seconds after which the task's process is killed; none for what no process gets."""
        if signing.refusal(queue, raw):
            return 0
        message = signing.parse(raw)
        headers: dict[str, Any] = message["headers"] if message else {}
        task = self._app.tasks.get(shown(headers.get("task")))
        default = (task and task.time_limit) or self._app.conf.task_time_limit or NO_LIMIT
        try:
            hard, _soft = headers["timelimit"]
            return float(hard or default)
        except (ValueError, TypeError, KeyError, OverflowError):
            return float(default)

    def _return(self, unacked: str, raw: bytes, death: Death | None) -> None:
        """Requeue a message that its worker does not run any more, unless it is what kills them.

        Args:
            unacked: the list that it lies in.
            raw: the message.
            death: how its worker ended; None when none did.
        """
        queue = keys.queue_of(unacked)
        refusal = signing.refusal(queue, raw)
        message = None if refusal else signing.parse(raw)
        if message is None:
            self._bury(unacked, raw, refusal or signing.MALFORMED)
            return
        headers = message["headers"]
        task_id = task_of(message)
        deaths = deaths_of(headers)
        if death and digest_of(raw).encode() not in death.idle and not _waited(headers, death.at):
            deaths += 1
            headers[REDELIVERIES] = deaths
        if deaths <= MAX_REDELIVERIES:
            extra = log_fields(headers, queue)
            logger.warning("Task %s goes back to its queue: its worker died or lost it", task_id, extra=extra)
            run(self._redis, scripts.REQUEUE, 2, unacked, queue, raw, _returned(queue, message))
            return
        reason = f"{deaths} workers died while they held it."
        try:
            self._app.backend.store_result(task_id, WorkerLostError(reason), states.FAILURE)
        except Exception as error:
            if is_outage(error):
                raise
            logger.exception("The end of task %s cannot be stored", task_id, extra=log_fields(headers, queue))
            reason += f" That cannot be stored: {type(error).__name__}: {error}"
        self._bury(unacked, raw, reason)

    def _bury(self, unacked: str, raw: bytes, reason: str) -> None:
        names = (unacked, keys.DEAD_LETTERS, keys.ACCEPTED)
        run(self._redis, scripts.BURY, len(names), *names, *dead_letter(keys.queue_of(unacked), raw, reason))


deliveries = Deliveries()


def install(app: Celery) -> None:
    """Make workers of ``app`` look after their messages."""
    # Also sent where Celery's testing tools start a worker.
    signals.worker_init.connect(_serve)
    signals.worker_ready.connect(_count_start)
    app.steps["consumer"].add(GiveBack)


def _count_start(sender: Any, **_: Any) -> None:
    figures.started_worker(sender.hostname, sender.pool)
    deliveries.report()


def _serve(sender: Any, **_: Any) -> None:
    # There may be several applications in this process, also without the library.
    if options := getattr(sender.app, "durable_options", None):
        set_current(options)
        deliveries.serve(sender.app, sender.hostname)


class GiveBack(bootsteps.StartStopStep):
    """At the end of a worker, requeues what has not run."""

    def shutdown(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Called when the pool is gone already: nothing can run twice."""
        deliveries.give_back()


def _returned(queue: str, message: dict[str, Any]) -> str:
    """Return the entry of a message that goes back, different from all that it had: Redis may be told so twice."""
    properties = message["properties"]
    properties["delivery_info"]["redelivered"] = True
    returns = properties.get("returns")
    properties["returns"] = returns + 1 if isinstance(returns, int) else 1
    return signing.changed(queue, message)


def suspicions(properties: dict[str, Any]) -> int:
    """Return in how many processes that died a message's run was, when none of their runs was to blame."""
    number = properties.get(SUSPECTED)
    return number if isinstance(number, int) else 0


def _waited(headers: dict[str, Any], at: float) -> bool:
    """Tell whether a task's time had not come at ``at``, in seconds since 1970."""
    try:
        eta = datetime.fromisoformat(headers["eta"])
    except (KeyError, TypeError, ValueError):
        return False
    return (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp() > at


def _running() -> set[str]:
    """Return the delivery tags of what runs."""
    return {request.message.delivery_tag for request in tuple(worker_state.active_requests)}
