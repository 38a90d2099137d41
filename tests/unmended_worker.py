"""The faulty worker with kombu as it came: ``celery -A tests.unmended_worker worker``."""

from kombu.transport.redis import Channel

from app.agents import kombu_workaround
from app.agents.worker import celery_app
from tests import faulty_worker

__all__ = ["celery_app", "faulty_worker"]

Channel._connparams = kombu_workaround._connection_parameters  # type: ignore[attr-defined]
