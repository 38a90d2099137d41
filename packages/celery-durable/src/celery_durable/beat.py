"""Beat on several hosts, of which exactly one sends: with ``DURABLE_BEAT=<name>``.

One of them holds a lease in Redis; the others stand by and take over LEASE_SECONDS after its last heartbeat. When
each entry ran last is kept in Redis, too, so that whoever takes over repeats nothing, and sends at once, once, what was
missed. Every run is claimed before it is sent: one that has hung, and lost the lease meanwhile, sends nothing when it
wakes up.
"""

import logging
import uuid
from datetime import datetime
from typing import Any

from celery.beat import PersistentScheduler, Scheduler
from celery.utils.imports import load_extension_class_names, symbol_by_name
from redis.exceptions import RedisError

from celery_durable.connection import broker_client
from celery_durable.defaults import LEASED
from celery_durable.keys import BEAT, BEAT_RUNS
from celery_durable.options import options_of
from celery_durable.scripts import BEAT_CLAIM, BEAT_LEASE, run

logger = logging.getLogger(__name__)

# Seconds that a lease holds, and between two renewals or two tries to get it.
LEASE_SECONDS = 10
RENEW_SECONDS = 2.0
REDIS_TIMEOUT = 2


class Leased:
    """Goes before one of Celery's schedulers."""

    schedule: Any

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        """Stand by; the arguments are the scheduler's."""
        options = options_of(app)
        name = options.beat
        self._lease, self._runs = f"{BEAT}{name}", f"{BEAT_RUNS}{name}"
        self._token = str(uuid.uuid4())
        self._held = self._claimed = False
        self._heartbeat = options.heartbeat_file
        self._client = broker_client(options, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT)
        super().__init__(app, *args, **kwargs)  # type: ignore[call-arg]

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due if the lease is ours; return the seconds until the next call."""
        if self._heartbeat:
            self._heartbeat.touch()
        if not self._hold():
            return RENEW_SECONDS
        interval: float = super().tick(*args, **kwargs)  # type: ignore[misc]
        return min(interval, RENEW_SECONDS)

    def reserve(self, entry: Any) -> Any:
        """Claim a run in Redis before it is sent."""
        following = super().reserve(entry)  # type: ignore[misc]
        words = self._token, entry.name, _text(entry.last_run_at), _text(following.last_run_at)
        try:
            self._claimed = bool(run(self._client, BEAT_CLAIM, 2, self._lease, self._runs, *words))
        except (RedisError, OSError) as error:
            logger.warning("The run of %s is left out, for Redis does not answer: %s", entry.name, error)
            self._claimed = self._held = False
        return following

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a run that was claimed."""
        if self._claimed:
            super().apply_entry(entry, producer)  # type: ignore[misc]

    def close(self) -> None:
        """End, and leave the lease to another one."""
        super().close()  # type: ignore[misc]
        try:
            run(self._client, BEAT_LEASE, 1, self._lease, self._token, 0)
        except (RedisError, OSError) as error:
            logger.warning("Another beat takes over in %d s: %s", LEASE_SECONDS, error)

    def _hold(self) -> bool:
        before = self._held
        try:
            self._held = bool(run(self._client, BEAT_LEASE, 1, self._lease, self._token, LEASE_SECONDS * 1000))
            if self._held and not before:
                self._learn()
                logger.info("beat: this one sends from now on")
        except (RedisError, OSError) as error:
            self._held = False
            if before:
                logger.warning("beat: nothing is sent, for Redis does not answer: %s", error)
        else:
            if before and not self._held:
                logger.warning("beat: another one sends from now on")
        return self._held

    def _learn(self) -> None:
        stored: dict[bytes, bytes] = self._client.hgetall(self._runs)  # type: ignore[assignment]
        for name, stamp in stored.items():
            if entry := self.schedule.get(name.decode()):
                entry.last_run_at = datetime.fromisoformat(stamp.decode())
        self._heap = None  # made anew by the scheduler


def program(app: Any, scheduler: Any = None, **kwargs: Any) -> Any:
    """Return Celery's program, whose scheduler gets the lease also when the command line names it."""
    if options_of(app).beat:
        if scheduler not in (None, LEASED):
            app.durable_beat_scheduler = scheduler
        scheduler = LEASED
    return app.subclass_with_self("celery.apps.beat:Beat")(scheduler=scheduler, **kwargs)


def leased(app: Any, **kwargs: Any) -> Any:
    """Return the application's scheduler behind a lease; Celery's own without its file."""
    # As Celery finds them: django-celery-beat's is also called django.
    named: Any = load_extension_class_names("celery.beat_schedulers")
    chosen = symbol_by_name(app.durable_beat_scheduler, aliases=dict(named))
    base = Scheduler if chosen is PersistentScheduler else chosen
    return type("LeasedScheduler", (Leased, base), {})(app=app, **kwargs)


def _text(moment: datetime | None) -> str:
    return moment.isoformat() if moment else ""
