"""Tasks that run where they are called, by ``apply`` and ``task_always_eager``: applications test theirs so."""

from functools import wraps
from typing import Any

from celery.app.task import Task

from celery_durable import coroutines


def install() -> None:
    """Have coroutines run to their end there, too."""
    apply: Any = Task.apply
    if hasattr(apply, "__wrapped__"):
        return

    @wraps(apply)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if hasattr(self.app, "durable_options"):
            coroutines.adopt_task(self)
        return apply(self, *args, **kwargs)

    Task.apply = run  # type: ignore[method-assign]
