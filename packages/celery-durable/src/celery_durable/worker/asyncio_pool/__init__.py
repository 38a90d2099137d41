"""The worker pool ``asyncio``: many runs that wait, in a few processes, with every limit that prefork keeps.

``pool`` is Celery's side: it hands out runs, watches their limits and replaces processes. A ``job`` is a run and a
``member`` a process as the main process sees them; ``child`` and ``runs`` are what they are in the process itself
(docs/decisions/0040-asyncio-pool.md).
"""

from celery_durable.worker.asyncio_pool.pool import TaskPool

__all__ = ["TaskPool"]

# What Celery's banner, `inspect stats` and the metrics of workers call it.
TaskPool.__module__ = __name__
