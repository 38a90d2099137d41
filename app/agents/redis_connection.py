"""Connections to Redis for worker processes: a Redis that refuses to write is waited for like one that is away.

Redis refuses while its disk or memory is full, while it has too few replicas, or when it is no primary. Neither Celery
nor kombu knows these answers: a worker would exit, and a result would be dropped.
"""

from typing import Any

import redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

REFUSALS = ("MISCONF", "NOREPLICAS")


class _RefusalIsOutage:
    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one answer.

        Raises:
            redis.ConnectionError: Redis refuses to write, besides what the base class raises.
        """
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if isinstance(error, OutOfMemoryError | ReadOnlyError) or str(error).startswith(REFUSALS):
                raise redis.ConnectionError(f"Redis refuses: {error}") from error
            raise


class Connection(_RefusalIsOutage, redis.Connection):
    """A plain connection."""


class SslConnection(_RefusalIsOutage, redis.SSLConnection):
    """A connection over TLS."""


def connection_class(url: str) -> type[redis.Connection]:
    """Return the kind of connection that a URL asks for."""
    return SslConnection if url.startswith("rediss:") else Connection
