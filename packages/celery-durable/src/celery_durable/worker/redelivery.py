"""The way back for messages whose worker died, or lost them with its connection."""

import logging
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import redis
from celery import Celery
from celery.app.task import Context
from celery.exceptions import WorkerLostError
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from celery_durable import dead_letter, keys, scripts, signing
from celery_durable.connection import is_outage
from celery_durable.dead_letter import digest_of, log_fields, shown
from celery_durable.options import Options, options_of
from celery_durable.redelivery import MAX_REDELIVERIES, NO_LIMIT, REDELIVERIES, deaths_of
from celery_durable.scripts import run
from celery_durable.task_ids import task_of
from celery_durable.worker.leases import Death, death_of, forget

logger = logging.getLogger(__name__)

# The property of a message that counts the processes which died with its run beside others, none of which is to blame.
SUSPECTED = "suspected"


class Redelivery:
    """Puts messages of workers' lists back into their queues."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        """Know the tasks of ``app``, whose broker is ``client``."""
        self._app, self._client, self._options = app, client, options_of(app)

    def messages(self, unacked: str) -> list[bytes]:
        """Return what lies in a list."""
        messages: list[bytes] = self._client.lrange(unacked, 0, -1)  # type: ignore[assignment]
        return messages

    def take_over(self, unacked: str) -> int:
        """Requeue what lies in the list of a worker that is gone, for an operator who knows that; return how many."""
        messages, death = self.messages(unacked), death_of(self._client, unacked)
        for raw in messages:
            self.requeue(unacked, raw, death)
        forget(self._client, unacked)
        return len(messages)

    def requeue(self, unacked: str, raw: bytes, death: Death | None) -> None:
        """Requeue a message that its worker does not run any more, unless it is what kills them.

        Args:
            unacked: the list that it lies in.
            raw: the message.
            death: how its worker ended; None when none did.
        """
        queue = keys.queue_of(unacked)
        reason = signing.rejection(self._options, queue, raw)
        message = None if reason else signing.parse(raw)
        if message is None:
            self._dead_letter(unacked, raw, reason or signing.MALFORMED)
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
            run(self._client, scripts.REQUEUE, 2, unacked, queue, raw, redelivered(self._options, queue, message))
            return
        reason = f"{deaths} workers died while they held it."
        try:
            # With its request: a chord, and whoever is to be called after an error, wait for it.
            self._app.backend.mark_as_failure(task_id, WorkerLostError(reason), request=self._request(message))
        except Exception as error:
            if is_outage(error):
                raise
            logger.exception("The end of task %s cannot be stored", task_id, extra=log_fields(headers, queue))
            reason += f" That cannot be stored: {type(error).__name__}: {error}"
        self._dead_letter(unacked, raw, reason)

    def _request(self, message: dict[str, Any]) -> Context | None:
        """Return what Celery knows of a task that it runs; nothing for one that cannot be decoded."""
        headers, properties = message["headers"], message["properties"]
        try:
            body = Message(
                body=b64decode(message["body"]),  # type: ignore[arg-type]
                content_type=message["content-type"],
                content_encoding=message["content-encoding"],
                headers=headers,
                accept=prepare_accept_content(self._app.conf.accept_content),
            ).decode()
            args, kwargs, embedded = body
        except Exception:  # noqa: BLE001 - whatever the decoder raises
            return None
        known = {"args": args, "kwargs": kwargs, "properties": properties, "delivery_info": properties["delivery_info"]}
        return Context({**headers, **(embedded or {}), **known})

    def _dead_letter(self, unacked: str, raw: bytes, reason: str) -> None:
        names = (unacked, keys.DEAD_LETTERS, keys.ACCEPTED)
        letter = dead_letter.arguments(self._options, keys.queue_of(unacked), raw, reason)
        run(self._client, scripts.DEAD_LETTER, len(names), *names, *letter)

    def time_limit(self, queue: str, raw: bytes) -> float:
        """Return the seconds after which the process of a message's task is killed; 0 for what no process gets."""
        if signing.rejection(self._options, queue, raw):
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


def redelivered(options: Options, queue: str, message: dict[str, Any]) -> str:
    """Return the entry of a message that goes back, different from all that it had: Redis may get it twice."""
    properties = message["properties"]
    properties["delivery_info"]["redelivered"] = True
    returns = properties.get("returns")
    properties["returns"] = returns + 1 if isinstance(returns, int) else 1
    return signing.changed(options, queue, message)


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
