"""Kombu's Redis transport with an atomic delivery.

Kombu pops a message from its queue and then writes down that it is unacknowledged; a worker that dies in between takes
it along. It also puts back what runs when a connection breaks, and what has been unacknowledged for a fixed time. Here
one command moves a message from its queue to the worker's own list, where the worker keeps it
(docs/decisions/0010-atomic-delivery.md).
"""

from typing import Any

from kombu.transport import redis as kombu_redis

from celery_durable.address import RedisAddress
from celery_durable.connection import SentinelConnection, SentinelSslConnection, sentinel_options
from celery_durable.worker.transport.consuming import Channel


class Transport(kombu_redis.Transport):
    """The transport that ``install`` puts in the place of kombu's."""

    Channel = Channel


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same channel to the server that sentinels call the primary."""

    connection_class = SentinelConnection
    connection_class_ssl = SentinelSslConnection
    # Flower wants them among the options, too; they are not to be set from there.
    from_transport_options = tuple(
        name for name in kombu_redis.SentinelChannel.from_transport_options if name != "sentinel_kwargs"
    )

    @property
    def sentinel_kwargs(self) -> dict[str, Any]:
        """How sentinels are reached. Not among the transport's options: `celery inspect stats` shows those, as JSON."""
        return sentinel_options(RedisAddress.parse(self._options.broker_url), self._options.sentinel_password)


class SentinelTransport(kombu_redis.SentinelTransport):
    """The transport for ``sentinel://``."""

    Channel = SentinelChannel
