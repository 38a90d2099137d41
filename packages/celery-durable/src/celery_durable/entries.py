"""What the broker's keys hold, parsed entry by entry: whoever may write one of them must not blind those who read.

An entry that has not the expected form is left out and counted, a key of another type counts as one such entry. The
functions that end with a number of bad entries return what is good first.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from celery_durable.keys import UNACKED
from celery_durable.metrics import BUCKETS, OUTCOMES, OVER, SEPARATOR

T = TypeVar("T")

WRONG_TYPE = "WRONGTYPE"
# Largest time that is believed, in seconds since 1970: the year 9999, the last one that datetime knows.
LAST_TIME = 253_402_300_799
# Counts without a task's name, of a minute.
OF_A_MINUTE = {*OUTCOMES, "wait", "wait_sum"}
# Field of the time when Alertmanager was heard; the others are groups of alerts, by the digest of their key.
HEARD = b"heard"
ALERT_TEXTS = ("name", "host", "severity", "summary", "runbook")


def printable(value: object) -> str:
    """Return a text with everything escaped that a terminal could take for a command, or that hides what it is."""
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(raw: bytes, longest: int = 100) -> str:
    """Return the beginning of a bad entry for a person."""
    text = printable(raw[:longest].decode("utf-8", "backslashreplace"))
    return f"{text}... ({len(raw)} bytes)" if len(raw) > longest else text


def expected(reply: Any, empty: T) -> tuple[T, int]:
    """Return an answer of Redis, or ``empty`` and 1 where the key has another type.

    Raises:
        redis.exceptions.RedisError: any other error.
    """
    if isinstance(reply, ResponseError) and str(reply).startswith(WRONG_TYPE):
        return empty, 1
    if isinstance(reply, Exception):
        raise reply
    return reply, 0


def asked(question: Callable[[], Any], empty: T) -> tuple[T, int]:
    """Do the same for a client that raises."""
    try:
        return question(), 0
    except ResponseError as error:
        return expected(error, empty)


class Reading:
    """Parses the answers of a pipeline that does not raise, and counts what is bad in them."""

    def __init__(self) -> None:
        """Count from zero."""
        self.bad: dict[str, int] = {}

    def __call__(self, key: str, parse: Callable[[Any], tuple[T, int]], reply: Any, empty: Any) -> T:
        """Return what is good in the answer about ``key``.

        Raises:
            redis.exceptions.RedisError: the answer is an error, and not because the key has another type.
        """
        stored, wrong = expected(reply, empty)
        good, bad = parse(stored)
        self.bad[key] = self.bad.get(key, 0) + wrong + bad
        return good

    def number(self, key: str, reply: Any) -> int:
        """Return a length; it counts as bad where the key has another type."""
        number, wrong = expected(reply, 0)
        if wrong:
            self.bad[key] = self.bad.get(key, 0) + wrong
        return int(number)


def workers(stored: Mapping[bytes, bytes]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Return for each node when it has reported, in seconds since 1970, and its state."""
    return _each(stored.items(), _worker)


def counters(stored: Mapping[bytes, bytes]) -> tuple[dict[tuple[str, ...], float], int]:
    """Return each count by its name and labels."""
    return _each(stored.items(), _counter)


def minute(stored: Mapping[bytes, bytes]) -> tuple[dict[str, float], int]:
    """Return the counts of one minute."""
    return _each(stored.items(), _count)


def alerts(stored: Mapping[bytes, bytes]) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the groups of alerts, each with the time ``told`` and its ``alerts``; HEARD has the time alone."""
    return _each(stored.items(), _group)


def failures(stored: Iterable[bytes]) -> tuple[list[dict[str, Any]], int]:
    """Return the last runs that failed."""
    good, bad = _each(enumerate(stored), lambda number, raw: (number, _failure(raw)))
    return list(good.values()), bad


def leases(stored: Iterable[bytes]) -> tuple[list[str], int]:
    """Return the names of workers' lists."""
    good, bad = _each(((raw, raw) for raw in stored), lambda _, raw: (lease(raw), None))
    return list(good), bad


def lease(raw: bytes) -> str:
    """Return the name of a worker's list.

    Raises:
        ValueError: it is none.
    """
    name = raw.decode()
    if not name.startswith(UNACKED) or ":" not in name.removeprefix(UNACKED):
        raise ValueError(name)
    return name


def letter(raw: bytes) -> dict[str, Any] | None:
    """Return a dead letter, None for what is none."""
    try:
        parsed = json.loads(raw)
        texts = [
            parsed["id"],
            parsed["time"],
            parsed["queue"],
            parsed["reason"],
            parsed["message"],
            parsed["task"] or "",
        ]
        return parsed if all(isinstance(text, str) and _can_be_written(text) for text in texts) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def time_of(raw: bytes) -> int:
    """Return a time in seconds since 1970.

    Raises:
        ValueError: it is none.
    """
    return int(_number(int(raw), LAST_TIME))


def _each(
    entries: Iterable[tuple[Any, Any]], parse: Callable[[Any, Any], tuple[Any, Any]]
) -> tuple[dict[Any, Any], int]:
    good, bad = {}, 0
    for name, value in entries:
        try:
            key, parsed = parse(name, value)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            bad += 1
        else:
            good[key] = parsed
    return good, bad


def _worker(name: bytes, value: bytes) -> tuple[str, tuple[int, dict[str, Any]]]:
    told, _, text = value.partition(b" ")
    state = json.loads(text)
    # What a worker of another release does not report is 0.
    size, busy = (int(_number(state.get(member, 0), 1e6)) for member in ("size", "busy"))
    held, began = (_number(state.get(member, 0), LAST_TIME) for member in ("held", "began"))
    pool = _text(state.get("pool", "?"))
    return _text(name), (time_of(told), {"pool": pool, "size": size, "busy": busy, "held": held, "began": began})


def _counter(name: bytes, value: bytes) -> tuple[tuple[str, ...], float]:
    what, *labels = parts = _text(name, SEPARATOR).split(SEPARATOR)
    bounds = {*map(str, BUCKETS[what]), OVER} if what in BUCKETS else {*OUTCOMES}
    several = what in BUCKETS or what == "ended"
    known = several or what in {"worker_starts", "started"} or what.removesuffix("_sum") in BUCKETS
    if not known or len(labels) != 1 + several or (several and labels[1] not in bounds):
        raise ValueError(name)
    return tuple(parts), _number(float(value))


def _count(name: bytes, value: bytes) -> tuple[str, float]:
    if name.decode() not in OF_A_MINUTE:
        raise ValueError(name)
    return name.decode(), _number(float(value))


def _group(name: bytes, value: bytes) -> tuple[str, dict[str, Any]]:
    if name == HEARD:
        return HEARD.decode(), {"told": time_of(value), "alerts": []}
    group = json.loads(value)
    firing = [
        {part: _text(alert[part], longest=4096) for part in ALERT_TEXTS} | _since(alert) for alert in group["alerts"]
    ]
    return _text(name), {"told": _number(group["told"], LAST_TIME), "alerts": firing}


def _since(alert: dict[str, Any]) -> dict[str, float | None]:
    since = alert["since"]
    return {"since": since if since is None else _number(since, LAST_TIME)}


def _failure(raw: bytes) -> dict[str, Any]:
    failure = json.loads(raw)
    texts = {part: _text(failure[part], longest=4096) for part in ("task", "id", "outcome", "error")}
    return {"time": int(_number(failure["time"], LAST_TIME)), **texts}


def _text(value: Any, but: str = "", longest: int = 1024) -> str:
    """Return a text that can be shown as it is; ``but`` is the one control character that it may hold."""
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > longest or not _can_be_written(text):
        raise ValueError(value)
    return text if but and but in text else printable(text)


def _number(value: Any, most: float = math.inf) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value <= most
    ):
        raise ValueError(value)
    return value


def _can_be_written(text: str) -> bool:
    """Tell whether UTF-8 has bytes for it: JSON can hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
