"""The prefork pool, which forgets no task that a child has been given."""

from typing import Any

from celery.concurrency.asynpool import AsynPool


class Pool(AsynPool):
    """Celery's pool of processes, without what celery/celery#6863 brought."""

    _cache: dict[int, Any]
    _busy_workers: set[int]

    def flush(self) -> None:
        """Forget what no child was given; called when the broker's connection is lost, and before a stop.

        Celery forgets what no child has *accepted*. In the milliseconds between the two a child ran a task whose end
        nobody heard of: before a stop it waited for that for 30 s (billiard's ``_ensure_messages_consumed``), and after
        a lost connection the task could start a second time beside the first.
        """
        given = {number: job for number, job in self._cache.items() if job._write_to and job._write_to._is_alive()}  # noqa: SLF001
        super().flush()
        self._cache.update(given)
        # Nothing more is given to a child that is busy.
        self._busy_workers.update(job._write_to.inqW_fd for job in given.values())  # noqa: SLF001
