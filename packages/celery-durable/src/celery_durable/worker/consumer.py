"""The worker's consumer: what it cannot run becomes a dead letter that says why, and it reconnects soon."""

import logging
import math
import time
from functools import partial
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.worker import consumer, heartbeat

from celery_durable.connection import is_outage
from celery_durable.options import options_of
from celery_durable.scripts import MISSING
from celery_durable.worker.delivery import Deliveries
from celery_durable.worker.node_owner import NameTakenError

logger = logging.getLogger(__name__)

# Seconds between two attempts to connect; Celery's own grow to 30.
FIRST_RETRY, NEXT_RETRY, LONGEST_RETRY = 0.5, 0.5, 2


class Heart(heartbeat.Heart):
    """Sends each heartbeat once: repeating it would hold the main loop for as long as Redis hangs."""

    def _send(self, event: str, retry: bool = True) -> Any:  # noqa: ARG002 - the base class's signature
        return super()._send(event, retry=False)


# Celery has no setting for it.
heartbeat.Heart = Heart


class Consumer(consumer.Consumer):
    """Celery's consumer, used through the setting ``worker_consumer``."""

    def __init__(self, *args: Any, worker_options: dict[str, Any], **kwargs: Any) -> None:
        """Leave out what workers ask one another: whoever may speak on their channel could have a task run."""
        options = {**worker_options, "without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)

    def add_task_queue(self, queue: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - the base class's signature
        """Take from a queue of the settings, too; from no other, whoever says so."""
        if queue not in {*self.app.amqp.queues, *options_of(self.app).queues}:
            logger.warning("The worker does not take from the queue %.100r, which no setting names", queue)
            return None
        return super().add_task_queue(queue)

    def connect(self) -> Any:
        """Connect, as the only worker of our name."""
        connection = super().connect()
        try:
            self.app.durable_worker.begin()
        except NameTakenError as error:
            logger.critical("%s", error)
            raise WorkerShutdown(1) from error
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        """Try to connect until it succeeds."""
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=FIRST_RETRY,
            interval_step=NEXT_RETRY,
            interval_max=LONGEST_RETRY,
        )
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Stop consuming before the clean-up, which may take as long as Redis hangs."""
        self.reporter.stop(self)
        logger.warning("The broker is lost: %s", exc)
        if MISSING in str(exc):
            time.sleep(NEXT_RETRY)  # it would connect at once, to no end
        super().on_connection_error_after_connected(exc)

    @property
    def _deliveries(self) -> Deliveries:
        deliveries: Deliveries = self.app.durable_worker.deliveries
        return deliveries

    def _limit_task(self, request: Any, *args: Any) -> Any:
        # What waits for its rate is not stuck.
        self._deliveries.postpone(request.message.delivery_tag, math.inf)
        return super()._limit_task(request, *args)

    def _limit_post_eta(self, request: Any, *args: Any) -> Any:
        self._deliveries.postpone(request.message.delivery_tag, math.inf)
        return super()._limit_post_eta(request, *args)

    def _limit_move_to_pool(self, request: Any) -> None:
        self._deliveries.postpone(request.message.delivery_tag, 0)
        super()._limit_move_to_pool(request)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Return a handler that no message can crash."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_dead_letter(message: Any) -> None:
            try:
                handle(message)
            except Exception as error:
                if is_outage(error):
                    raise
                logger.exception("A message cannot be handled")
                self._deliveries.dead_letter(
                    message.delivery_tag, f"It cannot be handled: {type(error).__name__}: {error}"
                )
                if not message.acknowledged:
                    message.reject()  # or it would count against the prefetch limit for ever

        return handle_or_dead_letter

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """It names no task."""
        self._deliveries.dead_letter(message.delivery_tag, "It names no task.")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """No task of that name is known here."""
        self._deliveries.dead_letter(message.delivery_tag, f"The worker knows no task named {exc}.")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """The message has not the form of a task."""
        self._deliveries.dead_letter(message.delivery_tag, f"It is no valid task: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """The body cannot be decoded, or is of a type that is not accepted."""
        self._deliveries.dead_letter(message.delivery_tag, f"It cannot be decoded: {exc}")
        super().on_decode_error(message, exc)
