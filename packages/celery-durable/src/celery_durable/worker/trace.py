"""A task's run in its process or thread: a message whose task has succeeded does not run again."""

import logging
import pickle
import time
from typing import Any

import redis
from billiard.einfo import ExceptionWithTraceback
from celery import current_app
from celery.app.amqp import _callback_publish_retry
from celery.app.task import Context
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, Reject
from celery.states import SUCCESS
from celery.utils.serialization import get_pickleable_exception

from celery_durable.masking import mask

logger = logging.getLogger(__name__)

# Seconds between two looks at a claim, which ends within 25 s by Celery's defaults.
CLAIM_INTERVAL = 0.5


def trace(name: str, task_id: str, message: dict[str, Any], *args: Any, **options: Any) -> Any:
    """Run a task in its process or thread, as Celery's functions of that name, unless its message was done before."""
    _wait_for_its_chord(name, message)
    if _is_done(name, task_id, message):
        _count_for_its_chord(name, task_id, message)
        logger.info("Task %s has succeeded already: it does not run again", task_id, extra={"task_id": task_id})
        return 0, "None", 0.0
    run = fast_trace_task if current_app.use_fast_trace_task else trace_task_ret
    sending = _callback_publish_retry.set(True)
    try:
        ended = run(name, task_id, message, *args, **options)
    except Exception as error:
        # A handler of the task's that fails twice comes to this.
        portable = _portable(error)
        if portable is error:
            raise
        raise portable from error
    finally:
        _callback_publish_retry.reset(sending)
    if ended[0] and isinstance(wrapper := ended[1].exception, ExceptionWithTraceback):
        wrapper.exc = _portable(wrapper.exc)
        ended[1].type = type(wrapper.exc)
    return ended


def _portable(error: Exception) -> Exception:
    """Return an error that pickle can restore: one that it cannot ends the worker's main process.

    Celery looks after what fails or is retried, but not after Ignore, Reject, and what a task's handlers raise.
    """
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever the error's class does
        if isinstance(error, Reject):
            reason = error.reason
            return Reject(one_line(reason) if isinstance(reason, Exception) else None, requeue=error.requeue)
        return Ignore(one_line(error)) if isinstance(error, Ignore) else get_pickleable_exception(error)
    return error


def _count_for_its_chord(name: str, task_id: str, message: dict[str, Any]) -> None:
    """Tell a chord of a part that is done, once more: its process may have died before it said so.

    Celery's script counts each part once, and hands in the chord's body once.
    """
    request = Context(message)
    if request.chord:
        backend = current_app.tasks[name].backend
        backend.on_chord_part_return(request, SUCCESS, backend.get_result(task_id))


def _wait_for_its_chord(name: str, message: dict[str, Any]) -> None:
    """Wait until nobody is about to end the chord of a part that came back.

    Its process may have died when it was: for some seconds Celery gives the claim to the chord's body to no other, and
    the part would be counted in vain.
    """
    group = message.get("group")
    if not (message.get("chord") and group and (_came_back(message) or message.get("retries"))):
        return
    backend = current_app.tasks[name].backend
    if not isinstance(backend, RedisBackend):
        return
    try:
        while backend.client.get(backend.get_key_for_group(group, ".c")) not in (None, b"done", "done"):
            time.sleep(CLAIM_INTERVAL)
    except redis.RedisError as error:
        logger.warning("Nobody knows whether the chord of a part is about to end: %s", one_line(error))


def _came_back(message: dict[str, Any]) -> bool:
    """Tell whether a message came back, or may have."""
    return bool(message["properties"].get("doubtful") or message["delivery_info"]["redelivered"])


def _is_done(name: str, task_id: str, message: dict[str, Any]) -> bool:
    """Tell whether a message that came back, or may have, is one whose success is stored."""
    if not _came_back(message):
        return False
    properties = message["properties"]
    try:
        meta = current_app.tasks[name].backend.get_task_meta(task_id, cache=False)
        # Without its message's name it was stored by another version or backend.
        is_same: bool = meta.get("message", properties["message_id"]) == properties["message_id"]
        return is_same and meta["status"] == SUCCESS
    except Exception as error:  # noqa: BLE001 - no backend, or one that has no answer: it runs, at least once
        logger.debug("Nobody knows whether task %s is done: %r", task_id, error)
        return False


def one_line(error: BaseException) -> str:
    """Describe an exception without its secrets."""
    try:
        text = mask(str(error)).strip().partition("\n")[0]
        # redis-py shows the beginning of what was to be stored.
        text = text.rpartition("of pipeline caused error: ")[2]
    except Exception:  # noqa: BLE001 - what makes the text is the task's own code
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
