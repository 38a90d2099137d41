"""The guarantees for an application that does not know of them: ``CELERY_LOADER=celery_durable.loader:load``."""

from importlib import import_module
from typing import Any


def load(app: Any) -> Any:
    """Return Celery's own loader for ``app``, and have the library installed when its configuration is loaded."""
    from celery.loaders.app import AppLoader  # noqa: PLC0415 - gevent must have patched before anything is imported
    from celery.loaders.default import Loader  # noqa: PLC0415

    def install() -> dict[str, Any]:
        from celery_durable.installer import finish  # noqa: PLC0415

        return finish(app, None)

    app.control_cls = "celery_durable.control:Control"
    app.Beat = lambda **kwargs: import_module("celery_durable.beat").program(app, **kwargs)
    app._pending_defaults.append(install)  # noqa: SLF001 - runs inside Django's fixup, too, before any signal exists
    # The default application reads celeryconfig.py, others do not.
    return (Loader if vars(app)["main"] == "default" else AppLoader)(app=app)
