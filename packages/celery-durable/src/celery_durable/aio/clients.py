"""The API's clients of Redis: they fail fast and never repeat a command. A repeated push would run a task twice."""

from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from celery_durable.address import RedisAddress
from celery_durable.connection import REJECTIONS, sentinel_options, tls_options
from celery_durable.options import Options

# Seconds; together with the wait for a free connection below the one second in which a client gets its answer.
CONNECT_TIMEOUT = 0.3
SOCKET_TIMEOUT = 0.5
POOL_TIMEOUT = 0.3
MAX_CONNECTIONS = 16


def broker_client(options: Options) -> Redis:
    """Return a client of the broker."""
    return _client(options.broker_url, options.broker_primary, options.sentinel_password)


def results_client(options: Options) -> Redis:
    """Return a client of the Redis that has the results."""
    return _client(options.result_url, options.results_primary, options.sentinel_password)


class _PrimaryIsQueried:
    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one answer; after a rejection the sentinels are queried again: another server may be the primary now.

        Raises:
            redis.ConnectionError: Redis rejects the command, besides what the base class raises.
        """
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if str(error).startswith(REJECTIONS):
                await self.disconnect()  # type: ignore[attr-defined]
                raise redis.ConnectionError(f"Redis rejects the command: {error}") from error
            raise


class _Connection(_PrimaryIsQueried, SentinelManagedConnection):
    """A connection to the server that sentinels call the primary."""


class _SslConnection(_PrimaryIsQueried, SentinelManagedConnection, SSLConnection):
    """The same over TLS."""


class _Pool(SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a free connection."""


def _client(url: str, primary: str, sentinel_password: str | None) -> Redis:
    address = RedisAddress.parse(url)
    options: dict[str, Any] = {
        "max_connections": MAX_CONNECTIONS,
        "timeout": POOL_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": SOCKET_TIMEOUT,
        "protocol": 2,  # under 3 redis-py 8 does not look whether a pooled connection was closed meanwhile
    }
    if not address.sentinel:
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(url, **options)
        return Redis.from_pool(pool)
    asynchronous = {"retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(address.servers, sentinel_kwargs=sentinel_options(address, sentinel_password) | asynchronous)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(
        primary,
        connection_pool_class=_Pool,
        connection_class=_SslConnection if address.tls else _Connection,
        username=address.username,
        password=address.password,
        db=address.database,
        **{name: value for name, value in tls_options(address).items() if name != "ssl"},
        **options,
    )
    return client
