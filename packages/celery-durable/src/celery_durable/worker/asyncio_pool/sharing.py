"""What the threads of a process share, so that many runs that begin or end at once cost little more than one."""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from redis import Redis

from celery_durable.worker.results import AddTo

# Calls in one round trip.
BATCH = 100


class _Call:
    """Commands of one thread."""

    def __init__(self, add_to: AddTo) -> None:
        self.add_to = add_to
        self.replies: list[Any] | None = None
        self.error: BaseException | None = None


class RoundTrips:
    """Round trips to Redis: what comes while one is under way goes along with the next."""

    def __init__(self, client: Redis) -> None:
        """Execute with ``client``."""
        self._client = client
        self._calls: deque[_Call] = deque()
        self._under_way = threading.Lock()

    def execute(self, add_to: AddTo) -> list[Any]:
        """Execute the commands that ``add_to`` adds to a pipeline and return their replies.

        Raises:
            redis.exceptions.RedisError: Redis does not answer, or rejects one of the commands.
        """
        call = _Call(add_to)
        self._calls.append(call)
        with self._under_way:
            while call.replies is None and call.error is None:
                self._execute([self._calls.popleft() for _ in range(min(len(self._calls), BATCH))])
        if call.error:
            raise call.error
        assert call.replies is not None  # noqa: S101 - it has no error
        for reply in call.replies:
            if isinstance(reply, Exception):
                raise reply
        return call.replies

    def get(self, key: bytes) -> Any:
        """Return the value of a key, for ``RedisBackend.get``."""
        return self.execute(lambda pipeline: pipeline.get(key))[0]

    def _execute(self, calls: list[_Call]) -> None:
        try:
            lengths = []
            with self._client.pipeline(transaction=False) as pipeline:
                for call in calls:
                    before = len(pipeline)
                    call.add_to(pipeline)
                    lengths.append(len(pipeline) - before)
                replies = iter(pipeline.execute(raise_on_error=False))
            for call, length in zip(calls, lengths, strict=True):
                call.replies = [next(replies) for _ in range(length)]
        except BaseException as error:  # noqa: BLE001 - each of them has to hear of it
            for call in calls:
                call.error = error


class Threads:
    """Threads that are kept for the next run: there are as many as have ever run at once."""

    def __init__(self) -> None:
        """Start none yet."""
        self._idle: deque[SimpleQueue[Callable[[], None]]] = deque()

    def run(self, function: Callable[[], None]) -> None:
        """Call ``function``, which raises nothing, in a thread.

        Raises:
            RuntimeError: the system has no more threads.
        """
        try:
            self._idle.pop().put(function)
        except IndexError:
            threading.Thread(target=self._work, args=(function,), daemon=True).start()

    def _work(self, function: Callable[[], None]) -> None:
        inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        while True:
            function()
            del function  # and the run with it
            self._idle.append(inbox)
            function = inbox.get()
