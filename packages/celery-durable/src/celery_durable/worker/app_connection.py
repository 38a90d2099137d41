"""The broker's connections of an application: they know whose they are, and use our transport.

Kombu finds a transport by the URL alone, for all of a process. Here only connections that the application itself makes
are ours: another application of the process, without the library, keeps Celery's own.
"""

from typing import Any

import kombu
from kombu.connection import ConnectionPool, PooledConnection
from kombu.utils.collections import HashedSeq

from celery_durable.worker.transport import SentinelTransport, Transport


def install(app: Any) -> None:
    """Make the broker's connections of ``app`` use this transport, and no others of this process."""
    # An application that installs the library may be loaded by its loader, too.
    if not issubclass(app.amqp.Connection, _OfApp):
        app.amqp.Connection = type("Connection", (_OfApp, app.amqp.Connection), {"app": app})


class _OfApp(kombu.Connection):
    """A connection that knows its application; copies of it, like those of a pool, do too."""

    app: Any

    def get_transport_cls(self) -> Any:
        """Return ours for Redis, kombu's for whatever else."""
        ours = {"redis": Transport, "rediss": Transport, "sentinel": SentinelTransport}
        return ours.get(self.transport_cls) or super().get_transport_cls()

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:  # noqa: N802 - kombu's name
        """Return a pool of connections of the same application."""
        return _Pool(self, limit, **kwargs)

    def __eqhash__(self) -> Any:
        """Tell connections apart by their application, too: kombu shares pools between those that are equal."""
        return HashedSeq(super().__eqhash__(), id(self.app))


class _Pool(ConnectionPool):
    def new(self) -> Any:
        kind = type("PooledConnection", (_OfApp, PooledConnection), {"app": self.connection.app})
        return kind(self, **dict(self.connection._info(resolve=False)))  # noqa: SLF001 - as kombu's
