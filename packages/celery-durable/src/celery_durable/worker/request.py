"""A task in the worker's hands: its result is stored before its message is done with."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.states import READY_STATES
from celery.worker import request
from celery.worker.request import create_request_cls
from celery.worker.state import task_ready

from celery_durable.connection import is_outage
from celery_durable.masking import mask, mask_all
from celery_durable.metrics import DIED, FAILED, RETRIED, SUCCEEDED, TIMED_OUT, waited
from celery_durable.redelivery import MAX_REDELIVERIES, PROCESS_DEATHS, process_deaths_of
from celery_durable.worker.redelivery import suspicions
from celery_durable.worker.runtime import Runtime, runtime_of
from celery_durable.worker.trace import one_line, trace

logger = logging.getLogger(__name__)

# What Celery uses in its main loop, where a value of another type would end the worker.
TEXT, NUMBER = (str, type(None)), (int, float, type(None))
HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "task": (str,),
    "retries": NUMBER,
    "timelimit": (list, tuple, type(None)),
    "group_index": NUMBER,
    "stamped_headers": (list, type(None)),
    "stamps": (dict, type(None)),
    **dict.fromkeys(("root_id", "parent_id", "group", "shadow", "eta", "expires", "argsrepr", "kwargsrepr"), TEXT),
}
# Seconds until a task runs again whose process died: memory that ran short may be free by then.
DEATH_RETRY_DELAY = 2
# Outcomes after which a task does not run again.
FINAL_FAILURES = (FAILED, TIMED_OUT, DIED)


class NeighbourLostError(WorkerLostError):
    """A run's process has ended, for the sake of another run or for no reason that is known."""

    def __init__(self, reason: str = "", suspected: bool = False) -> None:
        """Say why; ``suspected`` where this run, like each other in the process, may have ended it."""
        super().__init__(reason)
        self.suspected = suspected


class Request(request.Request):
    """Celery's request, used through ``Task.Request``.

    Celery acknowledges a task whose process died before it stores the failure, and forgets a message when the main
    process cannot store a result.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take over a message; the arguments are the base class's.

        Raises:
            InvalidTaskError: it has not the form of a task.
        """
        super().__init__(*args, **kwargs)
        app: Any = self.app
        self._worker: Runtime = app.durable_worker
        self._check_form()
        if self.eta:
            self._worker.deliveries.postpone(self.message.delivery_tag, self.eta.timestamp() - time.time())
        if chord := (self._payload[2] or {}).get("chord"):
            self._request_dict["chord"] = chord  # for `trace`, which does not look into the body
        self._storing = False
        self._acknowledge_later = False
        self._outcome: str | None = SUCCEEDED  # unless we are told otherwise
        self._error = ""
        self._counted = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Celery makes a subclass for each task, with an ``on_success`` of its own."""
        super().__init_subclass__(**kwargs)
        handle = cls.on_success

        def on_success(self: Request, ended: Any, **options: Any) -> None:
            handle(self, ended, **options)
            if not ended[0]:
                self._count()

        cls.on_success = on_success  # type: ignore[method-assign,assignment]

    def _check_form(self) -> None:
        headers = self._request_dict
        for name, kinds in HEADER_TYPES.items():
            if name in headers and not isinstance(headers[name], kinds):
                raise InvalidTaskError(f"its header {name} is of a wrong type")
        limits = headers.get("timelimit") or (None, None)
        if len(limits) != 2 or not all(isinstance(limit, NUMBER) for limit in limits):
            raise InvalidTaskError("its header timelimit must hold two numbers")
        task_args, task_kwargs, embed = self._payload
        if not (
            isinstance(task_args, list | tuple) and isinstance(task_kwargs, dict) and isinstance(embed or {}, dict)
        ):
            raise InvalidTaskError("its body must hold arguments, keyword arguments and options")

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - the base class's name
        """Tell Flower and whoever else listens; an error must not tell a secret."""
        super().send_event(type, **(mask_all(fields) if "exception" in fields else fields))

    def on_accepted(self, pid: Any, time_accepted: Any) -> None:
        """The pool has begun to run it."""
        super().on_accepted(pid, time_accepted)
        due = self.eta.timestamp() if self.eta else None
        # A message that comes back has waited since it was lost: nobody knows for how long.
        came_back = self.delivery_info["redelivered"]
        self._worker.deliveries.started(self.message.delivery_tag, in_this_process=pid == os.getpid())
        self._worker.metrics.started(self.name, None if came_back else waited(self._request_dict, due))

    def acknowledge(self) -> None:
        """Acknowledge the message, but not before the result is stored."""
        if self._storing:
            self._acknowledge_later = True
            return
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Give the message back, or put it among the dead letters."""
        if requeue and self._outcome == TIMED_OUT and self.message.properties.get("returns", 0) >= MAX_REDELIVERIES:
            # Celery requeues what was over its limit where acks_on_timeout is off: it would run for ever.
            self._dead_letter(f"It hit its hard time limit in each of {MAX_REDELIVERIES + 1} runs")
            requeue = False
        if requeue:
            self._outcome = None
        super().reject(requeue)

    def _count(self) -> None:
        if self._counted or not self.time_start or not self._outcome:
            return
        self._counted = True
        self._worker.metrics.ended(self.name, self._outcome, time.time() - self.time_start)
        if self._outcome in FINAL_FAILURES:
            self._worker.metrics.failed(self.name, self.id, self._outcome, self._error)

    def _dead_letter(self, reason: str) -> None:
        # Whoever acknowledges early keeps nothing to be dead-lettered.
        if not self.acknowledged:
            self._worker.deliveries.dead_letter(self.message.delivery_tag, reason)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The task failed, or its process died."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps it with its traceback
        if isinstance(error, NeighbourLostError) and self.task.acks_late and self._runs_again(error):
            return
        self._outcome, self._error = self._outcome_of(error), one_line(error)
        if isinstance(error, Reject) and not error.requeue:
            self._dead_letter(f"The task rejected it: {mask(str(error.reason))}")
        if self._stored(super().on_failure, exc_info, send_failed_event, return_ok):
            if self._outcome == DIED:
                times = suspicions(self.message.properties) or process_deaths_of(self._request_dict)
                self._dead_letter(f"Its process died in each of {times + 1} runs: {error}")
            self.acknowledge()
        self._count()

    def _runs_again(self, error: NeighbourLostError) -> bool:
        """Requeue a run that is not to blame for its process's end; what was in too many of them fails instead."""
        if error.suspected:
            if suspicions(self.message.properties) >= MAX_REDELIVERIES:
                return False
            self._worker.deliveries.suspect(self.message.delivery_tag)
        logger.warning("Task %s goes back to its queue: %s", self.id, error, extra=self._log_fields())
        task_ready(self)
        self.reject(requeue=True)
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """It is not run, or was terminated."""
        self._outcome = None
        if self._stored(super()._announce_revoked, reason, terminated, signum, expired):
            self.acknowledge()
            if not expired:
                self._worker.revocations.heeded(self.id)

    def _retry_worker_lost(self, exc: BaseException, exc_info: Any) -> bool:
        """Tell whether it runs again, for which a message was sent. Whoever acknowledges early wants none."""
        # A task may be retried without end (max_retries=None), but not to kill one process after the other.
        deaths = process_deaths_of(self._request_dict) + 1
        if deaths > MAX_REDELIVERIES:
            return False
        retry = self._context.retries + 1
        self._context.headers = {**(self._context.headers or {}), PROCESS_DEATHS: [deaths, retry]}
        # Celery waits as long as after an error of the task itself, by default 3 minutes, which it asks the task for.
        task, delay = self.task, self.task.default_retry_delay
        task.default_retry_delay = min(delay, DEATH_RETRY_DELAY)
        try:
            runs_again = (
                bool(task.acks_late)
                and not isinstance(exc, NeighbourLostError)
                and super()._retry_worker_lost(exc, exc_info)
            )
        finally:
            task.default_retry_delay = delay
        if runs_again:
            self._outcome = RETRIED
        return runs_again

    def _success_was_stored(self) -> Any:
        """Return what is stored of a success, after which the task's process died."""
        if success := super()._success_was_stored():
            self._outcome = SUCCEEDED
            if self.chord and self.message.properties.get("returns", 0) < MAX_REDELIVERIES:
                # Nobody knows whether its chord was told: whoever takes the message again tells it (`trace`).
                self.reject(requeue=True)
        return success

    def _outcome_of(self, error: BaseException) -> str | None:
        if isinstance(error, WorkerLostError):
            return DIED  # unless it runs again
        if isinstance(error, Ignore | Reject | Terminated):
            return None
        if isinstance(error, Retry):
            return RETRIED
        return TIMED_OUT if isinstance(error, SoftTimeLimitExceeded | TimeLimitExceeded) else FAILED

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit is over."""
        if not soft:
            self._outcome = TIMED_OUT
        if self._stored(super().on_timeout, soft, timeout):
            self.acknowledge()
        if not soft:
            self._count()

    def _log_fields(self) -> dict[str, Any]:
        return {"task_id": self.id, "task_name": self.name, "request_id": self._request_dict.get("request_id")}

    def _stored(self, store: Any, *args: Any) -> bool:
        """Run a handler of Celery's and tell whether it wanted the message acknowledged."""
        self._storing, self._acknowledge_later = True, False
        try:
            store(*args)
        except MemoryError:
            # Celery raises it anew in the main process; the task's own process has stored the failure.
            logger.warning("Task %s ran out of memory", self.id, extra=self._log_fields())
            self._acknowledge_later = True
        except Exception as error:
            extra = self._log_fields()
            if self._end_is_stored():
                # A handler of the application's, which runs in the main process when the task's process is gone.
                logger.exception("The end of task %s is stored, but a handler of it failed", self.id, extra=extra)
                return True
            if not is_outage(error):
                # It would fail as often as the task runs.
                logger.exception("The end of task %s cannot be stored", self.id, extra=extra)
                self._dead_letter(f"Its end cannot be stored: {one_line(error)}")
                return True
            logger.exception("The end of task %s cannot be stored; it will run again", self.id, extra=extra)
            self._storing = False
            self.reject(requeue=True)
            return False
        finally:
            self._storing = False
        return self._acknowledge_later

    def _end_is_stored(self) -> bool:
        task_id, state = getattr(self.task.backend, "last_stored", None) or ("", "")
        # A part of a chord is counted after it is stored.
        return task_id == self.id and state in READY_STATES and not self.chord


def request_class(base: type[request.Request], *args: Any, **options: Any) -> type[request.Request]:
    """Do what Celery's strategy does, with our Request in front of one that a task brings, and with our ``trace``."""
    make: Callable[..., type[request.Request]] = create_request_cls
    if not runtime_of(options["app"]):
        return make(base, *args, **options)
    # Requeued, what kills its process would do so for ever: it is retried (https://github.com/celery/celery/issues/9082).
    args[0].reject_on_worker_lost = False
    return make(type(base.__name__, (Request, base), {}), *args, trace=trace, **options)
