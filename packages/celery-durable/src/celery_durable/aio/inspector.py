"""Questions to the running workers, answered within a second whatever state they are in.

Celery's own ``inspect`` waits its full timeout unless it is told how many workers there are, retries for ever when the
broker goes away, and restores unacknowledged messages while it waits. Here PUBLISH itself says how many workers listen.
"""

import asyncio
import base64
import time
import uuid
from typing import Any, Literal

from kombu.utils.json import loads
from redis.asyncio import Redis

from celery_durable.entries import printable
from celery_durable.envelope import envelope
from celery_durable.options import Options

Question = Literal["active", "scheduled"]
Answers = dict[str, list[Any]]

EXCHANGE = "celery.pidbox"
# Seconds to wait for workers that do not answer; the promise to clients is about one second.
TIMEOUT = 0.8
# Seconds that one command may block, below the client's socket timeout.
LONGEST_BLOCK = 0.4


class Inspector:
    """Asks all workers at once; callers who ask the same question at the same time share the answer."""

    def __init__(self, options: Options, broker: Redis) -> None:
        """Talk to the workers through ``broker``."""
        self._broker = broker
        self._channel = f"/{options.broker_database}.{EXCHANGE}"
        self._name = str(uuid.uuid4())
        self._running: dict[Question, asyncio.Task[Answers]] = {}

    async def ask(self, question: Question) -> Answers:
        """Return a list of tasks for each worker that answered in time, by worker name.

        Raises:
            redis.exceptions.RedisError: the broker does not answer.
        """
        running = self._running.get(question)
        if running is None or running.done():
            running = self._running[question] = asyncio.create_task(self._ask(question))
        return await asyncio.shield(running)

    async def _ask(self, question: Question) -> Answers:
        # The default exchange takes an answer straight to the list named by the routing key. The list keeps its name,
        # so that an answer that comes too late is dropped by the next question and never piles up.
        mailbox = f"{self._name}.{question}.reply.{EXCHANGE}"
        ticket = str(uuid.uuid4())
        body = {
            "method": question,
            "arguments": {},
            "destination": None,
            "pattern": None,
            "matcher": None,
            "ticket": ticket,
            "reply_to": {"exchange": "", "routing_key": mailbox},
        }
        message = envelope(
            body,
            exchange=EXCHANGE,
            routing_key="",
            headers={"clock": 0, "expires": time.time() + TIMEOUT},
            properties={"delivery_mode": 1},
        )
        deadline = time.monotonic() + TIMEOUT
        listening = await self._broker.publish(self._channel, message)
        answers: Answers = {}
        while len(answers) < listening and (left := deadline - time.monotonic()) > 0:
            received = await self._broker.brpop([mailbox], timeout=min(left, LONGEST_BLOCK))
            if received:
                answers.update(_answer(received[1], ticket))
        return answers


def _answer(raw: bytes | str, ticket: str) -> Answers:
    """Return what a worker answers to the question with this ticket; nothing for whatever else came."""
    try:
        reply = loads(raw)
        if reply["headers"]["ticket"] != ticket:
            return {}
        told = loads(base64.b64decode(reply["body"]))
        return {printable(node): tasks for node, tasks in told.items() if isinstance(tasks, list)}
    except Exception:  # noqa: BLE001 - whatever somebody makes the decoder raise
        return {}
