"""What a worker of one application has, and what it does beside running tasks.

Each application has its own, so that several in one process do not meet. The jobs are in three threads, by what may
delay what (docs/decisions/0044-jobs-of-a-worker.md).
"""

import logging
import os
from contextlib import suppress
from typing import Any

import redis
from celery import Celery, bootsteps, signals
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from celery_durable.connection import broker_client
from celery_durable.metrics import WorkerMetrics
from celery_durable.options import options_of
from celery_durable.revocations import Revocations
from celery_durable.worker.delivery import Deliveries
from celery_durable.worker.idle import NOTE_INTERVAL
from celery_durable.worker.leases import RENEW_INTERVAL, Leases
from celery_durable.worker.redelivery import Redelivery
from celery_durable.worker.scheduler import Job, Scheduler
from celery_durable.worker.sweep import SWEEP_INTERVAL, Sweep

logger = logging.getLogger(__name__)

# Seconds until an unanswered command counts as failed; the main loop waits that long when it reclaims.
REDIS_TIMEOUT = 2
# Seconds between two flushes of acknowledgements, which also start one, and between two reports.
FLUSH_INTERVAL = 1.0
REPORT_INTERVAL = 1.0


class Runtime:
    """Of one worker, as the attribute ``durable_worker`` of its application."""

    def __init__(self, app: Celery, node: str) -> None:
        """Connect to nothing yet; ``node`` must be the worker's own name and stay the same after a restart."""
        options = options_of(app)
        self._node, self._process = node, os.getpid()
        self._client = client = broker_client(
            options,
            socket_timeout=REDIS_TIMEOUT,
            socket_connect_timeout=REDIS_TIMEOUT,
            # The second try goes through a new connection.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self.metrics = WorkerMetrics(app)
        self.revocations = Revocations()
        self.leases = Leases(client, node)
        redelivery = Redelivery(app, client)
        self.deliveries = Deliveries(options, client, self.leases, redelivery)
        sweep = Sweep(client, redelivery, self.leases.lists)
        acknowledgements = self.deliveries.acknowledgements
        flush = Job("acknowledgements", FLUSH_INTERVAL, acknowledgements.flush)
        self._renewals = Scheduler(
            "leases",
            Job("name", RENEW_INTERVAL, self.leases.keep_name),
            Job("leases", RENEW_INTERVAL, self.leases.renew),
        )
        reports = Scheduler(
            "reports",
            flush,
            Job("idle", NOTE_INTERVAL, self.deliveries.idle.note_when_due),
            Job("revocations", REPORT_INTERVAL, lambda: self.revocations.save(client)),
            Job("metrics", REPORT_INTERVAL, self._report),
            Job("rejected", SWEEP_INTERVAL, acknowledgements.retry_rejected),
        )
        sweeps = [Job("sweep", SWEEP_INTERVAL, sweep.sweep)]
        if not options.signing_keys:
            sweeps.append(Job("priorities", SWEEP_INTERVAL, sweep.take_in_priorities))
        self._schedulers = (self._renewals, reports, Scheduler("sweep", *sweeps))
        acknowledgements.on_add = lambda: reports.wake(flush)

    @property
    def is_here(self) -> bool:
        """Tell whether this process is the worker, and not a child of it."""
        return self._process == os.getpid()

    def begin(self) -> None:
        """Take our name and learn what was revoked; called with every new connection, before anything is taken.

        Raises:
            NameTakenError: a worker that lives has our name.
            redis.exceptions.RedisError: the broker does not answer.
        """
        self.leases.claim_name()
        self.revocations.load(self._client)

    def followed(self, method: str, arguments: dict[str, Any]) -> None:
        """Take note of a command that this worker has followed, one of Celery's, before its answer is sent.

        Raises:
            redis.exceptions.RedisError: Redis does not know yet what was revoked; it will, once it takes it.
        """
        if self.revocations.followed(method, arguments):
            self.revocations.save(self._client)

    def unacked_list(self, queue: str) -> str:
        """Return the list for messages of ``queue``; with the first one the jobs begin."""
        unacked = self.deliveries.unacked_list(queue)
        for scheduler in self._schedulers:
            scheduler.start()
        return unacked

    def announce(self, pool: Any) -> None:
        """Report the start before the first task runs: that may be the worker's last. Its tasks run in ``pool``."""
        self.metrics.started_worker(self._node, pool)
        with suppress(RedisError):  # the next report has it, too
            self.metrics.report(self._client, self._node, None)

    def end(self) -> None:
        """Requeue what has not run, report for the last time, and leave the name; nothing runs any more."""
        try:
            self.deliveries.requeue_all()
            self.revocations.save(self._client)
            if self.leases.lists:
                self._report()
            # A renewal that runs would take the name again.
            self._renewals.stop(REDIS_TIMEOUT)
            self.leases.release_name()
        except RedisError as error:
            logger.warning("Messages will be requeued when this worker is back: %s", error)
        for scheduler in self._schedulers:
            scheduler.stop(0)

    def _report(self) -> None:
        self.metrics.report(self._client, self._node, self.deliveries.oldest())


def runtime_of(app: Any) -> Runtime | None:
    """Return that of the worker of ``app`` in this process; nothing where there is none."""
    runtime: Runtime | None = getattr(app, "durable_worker", None)
    return runtime if runtime and runtime.is_here else None


def install(app: Celery) -> None:
    """Give each worker of ``app`` its own."""
    # Also sent where Celery's testing tools start a worker.
    signals.worker_init.connect(_serve)
    signals.worker_ready.connect(_announce)
    app.steps["consumer"].add(Requeue)


def _serve(sender: Any, **_: Any) -> None:
    # There may be several applications in this process, also without the library.
    if hasattr(sender.app, "durable_options"):
        sender.app.durable_worker = Runtime(sender.app, sender.hostname)


def _announce(sender: Any, **_: Any) -> None:
    if runtime := runtime_of(sender.app):
        runtime.announce(sender.pool)


class Requeue(bootsteps.StartStopStep):
    """At the end of a worker, requeues what has not run."""

    def shutdown(self, parent: Any) -> None:
        """Called when the pool is gone already: nothing can run twice."""
        if runtime := runtime_of(parent.app):
            runtime.end()
