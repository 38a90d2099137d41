"""A worker with a running task must survive a shutdown of Redis; under kombu 5.7 it does not.

When the connection is lost, kombu drops it first and puts unacknowledged messages back through it afterwards: an
AttributeError, which Celery takes for unrecoverable. A ConnectionError says the same and makes Celery connect again.
``tests/test_task_safety.py`` fails when a newer kombu no longer needs this.
"""

from importlib.metadata import version
from typing import Any

from kombu.transport.redis import Channel
from redis.exceptions import ConnectionError as RedisConnectionError

AFFECTED_VERSIONS = ("5.7.",)

_connection_parameters = Channel._connparams  # type: ignore[attr-defined]  # noqa: SLF001 - no public place to mend it


def apply() -> None:
    """Mend the affected versions; leave others alone."""
    if version("kombu").startswith(AFFECTED_VERSIONS):
        Channel._connparams = _checked_connection_parameters  # type: ignore[attr-defined]  # noqa: SLF001


def _checked_connection_parameters(channel: Channel, *args: Any, **kwargs: Any) -> Any:
    if channel.connection.client is None:
        raise RedisConnectionError("The connection to the broker is gone.")
    return _connection_parameters(channel, *args, **kwargs)
