"""Connections to Redis for worker processes: a Redis that rejects commands is waited for like one that is unreachable.

Redis rejects commands while its disk or memory is full, while it has too few replicas, when it is no primary, and while
a script runs for longer than 5 s. Neither Celery nor kombu knows these answers: a worker would exit, and a result would
be dropped.
"""

from typing import Any

import redis
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from celery_durable.address import RedisAddress
from celery_durable.options import Options
from celery_durable.scripts import MISSING, is_named

# A demoted primary answers UNBLOCKED to commands that wait. The space: BUSYKEY and BUSYGROUP are errors of the caller.
REJECTIONS = ("MISCONF", "NOREPLICAS", "BUSY ", "UNBLOCKED")
# Seconds that a sentinel has to answer; then the next one is asked. One that lives does it within milliseconds, and a
# new connection may have to wait so long for each one that is dead.
SENTINEL_TIMEOUT = 0.3


# For web processes, which must answer a client within a second: seconds for each step, and no step is tried again. To
# enqueue a task takes four of them at most while Redis hangs: a ping and a new login, on the broker and for results.
WEB_TIMEOUT = 0.2


def is_outage(error: BaseException) -> bool:
    """Tell whether an error passes by itself: Redis or the network is away. A missing right does not."""
    if isinstance(error, BackendError | OperationalError):
        return error.__cause__ is None or is_outage(error.__cause__)
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)


class _RejectionIsOutage:
    def send_command(self, *words: Any, **kwargs: Any) -> None:
        """Send a command.

        Raises:
            redis.ConnectionError: redis-py wants to load a script that Redis lacks, which is not a service's right.
        """
        if words[0] == "SCRIPT LOAD" and is_named(self.username):  # type: ignore[attr-defined]
            raise redis.ConnectionError(MISSING)
        super().send_command(*words, **kwargs)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one answer.

        Raises:
            redis.ConnectionError: Redis rejects commands, besides what the base class raises.
        """
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if isinstance(error, OutOfMemoryError | ReadOnlyError) or str(error).startswith(REJECTIONS):
                raise redis.ConnectionError(f"Redis rejects the command: {error}") from error
            raise


class Connection(_RejectionIsOutage, redis.Connection):
    """A plain connection."""


class SslConnection(_RejectionIsOutage, redis.SSLConnection):
    """A connection over TLS."""


class _PrimaryIsQueried(_RejectionIsOutage):
    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one answer; after a rejection the sentinels are queried again: another server may be the primary now.

        Raises:
            redis.ConnectionError: as the base class.
        """
        try:
            return super().read_response(*args, **kwargs)
        except redis.ConnectionError:
            self.disconnect()  # type: ignore[attr-defined]
            raise


class SentinelConnection(_PrimaryIsQueried, SentinelManagedConnection):
    """A connection to the server that sentinels call the primary."""


class SentinelSslConnection(_PrimaryIsQueried, SentinelManagedConnection, redis.SSLConnection):
    """The same over TLS."""


def sentinel_options(address: RedisAddress, password: str | None) -> dict[str, Any]:
    """Return how sentinels themselves are reached: redis-py's options of a connection to one."""
    options: dict[str, Any] = {
        "socket_timeout": SENTINEL_TIMEOUT,
        "socket_connect_timeout": SENTINEL_TIMEOUT,
        # redis-py would try a dead one four times, with pauses of seconds, before it asks the next.
        "retry": Retry(NoBackoff(), 0),
    }
    if password:
        options["password"] = password
    return options | tls_options(address)


def tls_options(address: RedisAddress) -> dict[str, Any]:
    """Return redis-py's options that make it speak TLS and verify; none where the address wants no TLS."""
    return {"ssl": True, "ssl_cert_reqs": "required", "ssl_ca_certs": address.ca_file} if address.tls else {}


def limits(options: Options) -> dict[str, Any]:
    """Return redis-py's options that bound a connection of a web process; none for a worker, which waits."""
    if options.client_profile != "web":
        return {}
    timeouts = {"socket_timeout": WEB_TIMEOUT, "socket_connect_timeout": WEB_TIMEOUT, "retry_on_timeout": False}
    return {**timeouts, "retry": Retry(NoBackoff(), 0)}


def broker_client(options: Options, **settings: Any) -> redis.Redis:
    """Return a client of the broker; ``settings`` are redis-py's of a connection."""
    return _client(options.broker_url, options.broker_primary, options.sentinel_password, settings | limits(options))


def results_client(options: Options, **settings: Any) -> redis.Redis:
    """Return a client of the Redis that has the results; ``settings`` are redis-py's of a connection."""
    return _client(options.result_url, options.results_primary, options.sentinel_password, settings | limits(options))


def _client(url: str, primary: str, sentinel_password: str | None, settings: dict[str, Any]) -> redis.Redis:
    address = RedisAddress.parse(url)
    if not address.sentinel:
        kind = SslConnection if address.tls else Connection
        return redis.Redis.from_url(url, connection_class=kind, **settings)
    sentinel_kwargs = sentinel_options(address, sentinel_password)
    sentinel = Sentinel(address.servers, sentinel_kwargs=sentinel_kwargs)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        primary,
        connection_class=SentinelSslConnection if address.tls else SentinelConnection,
        username=address.username,
        password=address.password,
        db=address.database,
        **{name: value for name, value in tls_options(address).items() if name != "ssl"},
        **settings,
    )
    return client
