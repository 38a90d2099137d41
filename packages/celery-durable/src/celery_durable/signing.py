"""Which queue entries are ours: a signature over each, checked before anything is made of it.

A signed entry is the JSON that kombu writes, with the signature as its first member:
``{"signature": "<HMAC-SHA256, hex>", "body": ...}``. What is signed are the queue's name and every byte after the
signature. So there is no canonical form to agree on and nothing is parsed before it is verified, while whoever does
not look at signatures reads the entry as ever (docs/decisions/0013-signed-messages.md).
"""

import hmac
from typing import Any

from kombu.utils.json import dumps, loads

from celery_durable.options import Options
from celery_durable.task_ids import write_out

MEMBER = "signature"
HEAD = '{"signature": "%s", '
HEAD_LENGTH = len(HEAD % ("0" * 64))  # SHA-256's 32 bytes in hexadecimal
FORGED = "Its signature is missing or wrong: it does not come from this installation."
# Bytes that a message may grow by when it comes back: that it does, how often, and how many workers died with it.
GROWTH = 256
MALFORMED = "It is not a message of Celery's."


class MessageTooLargeError(ValueError):
    """A message is larger than any worker takes."""


def sign(options: Options, queue: str, entry: str) -> str:
    """Return ``entry``, a JSON object without a signature, signed for ``queue``; unchanged where there is no key."""
    keys = options.signing_keys
    if not keys:
        return entry
    rest = entry.removeprefix("{").encode()
    return (_head(keys[0], queue, rest) + rest).decode()


def is_ours(options: Options, queue: str, raw: bytes) -> bool:
    """Tell whether an entry of ``queue`` was signed with one of our keys; without a key everything is ours."""
    keys = options.signing_keys
    if not keys:
        return True
    head, rest = raw[:HEAD_LENGTH], raw[HEAD_LENGTH:]
    return any(hmac.compare_digest(_head(key, queue, rest), head) for key in keys)


def rejection(options: Options, queue: str, raw: bytes) -> str | None:
    """Return why nothing may be made of an entry of ``queue``, in one sentence; nothing when it may."""
    limit = options.message_limit
    if len(raw) > limit:
        return f"It is {len(raw)} bytes large, more than the {limit} bytes of MAX_MESSAGE_BYTES."
    return None if is_ours(options, queue, raw) else FORGED


def parse(raw: bytes) -> dict[str, Any] | None:
    """Return an entry's content if it has a message's form and an id that can be written down, else nothing."""
    try:
        message = loads(raw.decode())
        write_out(message)
        message["headers"].get("id", "").encode()
        message["properties"]["delivery_info"].get("redelivered")
    except Exception:  # noqa: BLE001 - whatever an attacker makes the decoder raise
        return None
    return dict(message)


def changed(options: Options, queue: str, message: dict[str, Any]) -> str:
    """Return the entry for a message of ours whose content was changed."""
    return sign(options, queue, dumps({name: value for name, value in message.items() if name != MEMBER}))


def new_entry(options: Options, queue: str, message: dict[str, Any]) -> str:
    """Return the entry for a new message.

    Raises:
        MessageTooLargeError: no worker would take it.
    """
    entry, limit = sign(options, queue, dumps(message)), options.message_limit - GROWTH
    if len(entry) > limit:
        raise MessageTooLargeError(
            f"The message is {len(entry)} bytes large, more than MAX_MESSAGE_BYTES - {GROWTH} = {limit}."
        )
    return entry


def _head(key: bytes, queue: str, rest: bytes) -> bytes:
    digest = hmac.new(key, b"%s\0%s" % (queue.encode(), rest), "sha256").hexdigest()
    return (HEAD % digest).encode()
