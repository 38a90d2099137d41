"""Delivery guarantees for Celery on Redis: no accepted task is lost.

``install(app)`` gives them to an application. Without a change of its code it gets them by
``CELERY_LOADER=celery_durable.loader:load``, or by the command ``celery-durable``. Importing this package alone
imports nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.options import Options

__version__ = "0.1.0"


def install(app: "Celery[Any]", options: "Options | None" = None) -> None:
    """Give ``app`` the guarantees of docs/reference/delivery-guarantees.md, before ``app.control`` is used.

    Args:
        app: an application, configured or not.
        options: those of the environment unless they are given.
    """
    from celery_durable.installer import install  # noqa: PLC0415 - Celery is not imported before it is needed

    install(app, options)
