"""Remote control: questions are open, a change needs the operator's signature, and no message ends a worker.

Redis does not tell who published a message. So a command carries its text once more, signed with CONTROL_SIGNING_KEY,
and a worker follows that text alone, once, while it is fresh (docs/decisions/0027-signed-control.md).
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from typing import Any

from celery.app import control
from kombu import pidbox
from kombu.matcher import match
from kombu.utils.json import dumps, loads
from redis.exceptions import RedisError, ResponseError

from celery_durable.options import Options, options_of
from celery_durable.task_ids import as_text

logger = logging.getLogger(__name__)

# Seconds for which a command holds: it arrives within milliseconds, and the clocks of hosts differ by a second or two.
FRESH = 30.0
# What changes nothing. Flower asks for events every five seconds: that only turns on what it listens to.
QUESTIONS = {
    *("ping", "active", "scheduled", "reserved", "revoked", "query_task"),
    *("registered", "active_queues", "stats", "conf", "enable_events", "heartbeat"),
    *("dump_active", "dump_schedule", "dump_reserved", "dump_revoked", "dump_tasks", "dump_conf"),
}
HIDDEN = "(shown to the operator alone)"
FORGED = "Its signature is missing or wrong: only the operator's commands are followed."
# Answers go to lists of this name alone. Whoever may ask may also take from the lists of others.
REPLIES = "reply.celery.pidbox"
_HEAD = re.compile(r"[\w.@:-]{1,200}")
_NONE = type(None)
_FORM = {
    "method": (str,),
    "arguments": (dict, _NONE),
    "destination": (list, _NONE),
    "pattern": (str, _NONE),
    "matcher": (str, _NONE),
    "ticket": (str, _NONE),
    "reply_to": (dict, _NONE),
}


class RejectedError(ValueError):
    """Why a command is not followed, in a sentence."""


class Node(pidbox.Node):
    """The worker's side."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start without a memory; the arguments are the base class's."""
        super().__init__(*args, **kwargs)
        self._started = time.time()
        mailbox: Any = self.mailbox
        self._app = mailbox.app
        self._keys = options_of(self._app).control_keys
        self._followed: dict[str, float] = {}  # id -> when it was made

    def handle_message(self, body: Any, message: Any = None) -> Any:  # noqa: ARG002 - the base class's signature
        """Follow a command or answer a question that is meant for this worker."""
        if not _has_form(body):
            logger.warning("What came on the control channel is no command")
            return
        rejection, is_signed = "", False
        if self._keys:
            try:
                body, is_signed = (self._open(body), True) if "signature" in body else (body, False)
            except RejectedError as error:
                rejection = str(error)
            if not is_signed and body["method"] in QUESTIONS and body.get("pattern") is None:
                rejection = ""
            elif not is_signed:
                rejection = rejection or FORGED
        if not self._is_meant(body, look_at_pattern=not rejection):
            return
        if rejection:
            logger.warning("The command %.100r is not followed. %s", body["method"], rejection)
            answer: Any = {"error": rejection}
        else:
            answer = self._answer(body["method"], body.get("arguments") or {})
            if self._keys and not is_signed:
                answer = without_arguments(answer)
        if reply_to := body.get("reply_to"):
            self._reply(answer, reply_to, body.get("ticket"))

    def _open(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the signed text of a command, and remember that it was followed.

        Raises:
            RejectedError: the signature is wrong, or the command is too old or known.
        """
        text = body.get("signed")
        given = body["signature"]
        if not isinstance(text, str) or not isinstance(given, str):
            raise RejectedError(FORGED)
        known = (_signature(key, text) for key in self._keys)
        if not any(hmac.compare_digest(mine, given.encode()) for mine in known):
            raise RejectedError(FORGED)
        command: dict[str, Any] = loads(text)
        now, made, name = time.time(), command["made"], command["id"]
        if abs(now - made) > FRESH:
            raise RejectedError(
                f"It was made {now - made:.0f} s ago, but holds for {FRESH:.0f} s: compare the hosts' clocks."
            )
        if made < self._started:
            raise RejectedError("It was made before this worker started.")
        self._followed = {name: made for name, made in self._followed.items() if now - made <= FRESH}
        if name in self._followed:
            raise RejectedError("It came before.")
        self._followed[name] = made
        return command

    def _is_meant(self, body: dict[str, Any], *, look_at_pattern: bool) -> bool:
        if destination := body.get("destination"):
            return self.hostname in destination
        if look_at_pattern and body.get("pattern") and body.get("matcher"):
            name: Any = self.hostname  # kombu's types say bytes
            return bool(match(name, body["pattern"], body["matcher"]))
        return True

    def _answer(self, method: str, arguments: dict[str, Any]) -> Any:
        try:
            answer = self.handle(method, arguments)
        except Exception as error:  # noqa: BLE001 - whatever a handler makes of the arguments
            logger.warning("The command %.100r failed: %.200r", method, error)
            return {"error": repr(error)}
        try:
            self._app.durable_worker.followed(method, arguments)
        except RedisError as error:
            logger.warning("Redis does not know yet what %.100r revokes: %s", method, type(error).__name__)
            return {"error": f"This worker follows it, but Redis does not know it yet: {type(error).__name__}"}
        return answer

    def _reply(self, answer: Any, reply_to: dict[str, Any], ticket: str | None) -> None:
        # Not by way of the exchange: what is bound to it would say which list gets the answer.
        head = str(reply_to.get("routing_key", "")).removesuffix(f".{REPLIES}")
        if not _HEAD.fullmatch(head):
            logger.warning("There is no mailbox for an answer to %.100r", head)
            return
        try:
            self.reply({self.hostname: answer}, exchange="", routing_key=f"{head}.{REPLIES}", ticket=ticket)
        except ResponseError as error:
            logger.warning("The answer cannot be put into the mailbox %r: %s", head, error)


class Mailbox(pidbox.Mailbox):
    """The sender's side: signs what it sends where there is a key."""

    node_cls = Node
    app: Any  # whose commands are sent

    def _publish(  # type: ignore[override]  # by keyword, as the base class calls it
        self,
        type: str,  # noqa: A002 - the base class's name
        arguments: dict[str, Any],
        *,
        destination: list[str] | None = None,
        reply_ticket: str | None = None,
        channel: Any = None,
        timeout: float | None = None,
        serializer: str | None = None,
        producer: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        connection: Any = self.connection
        channel = channel or connection.default_channel
        exchange: Any = self.exchange
        command: dict[str, Any] = {
            "method": type,
            "arguments": {name: as_text(value) if name == "task_id" else value for name, value in arguments.items()},
            "destination": destination,
            "pattern": pattern,
            "matcher": matcher,
        }
        if reply_ticket:
            self.reply_queue(channel).declare()
            command["ticket"] = reply_ticket
            command["reply_to"] = {"exchange": REPLIES, "routing_key": self.oid}
        with self.producer_or_acquire(producer, channel) as sender:
            sender.publish(
                signed(options_of(self.app), command),
                exchange=exchange.name,
                declare=[exchange],
                headers={"clock": 0, "expires": time.time() + timeout if timeout else 0},
                serializer=serializer or self.serializer,
                retry=True,
            )


class Control(control.Control):
    """The application's ``control``."""

    Mailbox = Mailbox
    mailbox: Any

    def __init__(self, app: Any = None) -> None:
        """Let the mailbox know whose it is."""
        super().__init__(app)
        self.mailbox.app = app


def signed(options: Options, command: dict[str, Any]) -> dict[str, Any]:
    """Return a command with its signed text; unchanged where there is no key."""
    keys = options.control_keys
    if not keys:
        return command
    text = dumps({**command, "made": time.time(), "id": str(uuid.uuid4())})
    return {**command, "signed": text, "signature": _signature(keys[0], text).decode()}


def without_arguments(answer: Any) -> Any:
    """Return an answer in which nobody sees what tasks were given."""
    if isinstance(answer, dict):
        return {
            name: HIDDEN if name in ("args", "kwargs") else without_arguments(value) for name, value in answer.items()
        }
    return [without_arguments(item) for item in answer] if isinstance(answer, list | tuple) else answer


def _has_form(body: Any) -> bool:
    return isinstance(body, dict) and all(isinstance(body.get(name), kinds) for name, kinds in _FORM.items())


def _signature(key: bytes, text: str) -> bytes:
    return hmac.new(key, b"control\0" + text.encode(), "sha256").hexdigest().encode()
