"""Which names a queue may have: a queue is a key of Redis beside others, and a word of rules, units and commands.

``plugins/filter/inventory.py`` holds the same for inventories; a test compares them.
"""

import re

DEFAULT_QUEUE = "celery"
FORM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")
# Keys that something else has in the broker (celery_durable/keys.py, kombu, Celery).
TAKEN = {"accepted", "alerts", "dead_letters", "failures", "figures", "workers", "revoked", "nodes", "queues"}
TAKEN_PREFIXES = (
    *("unacked", "deferred:", "idempotency:", "figures:", "app:", "_kombu.", "celeryev", "celery-task", "__sentinel__"),
    *("revoked:", "node:", "durable:"),
)
TAKEN_SUFFIXES = (".pidbox",)
RULE = "must be up to 100 letters, digits and _ . : -, and no name that the platform or Celery uses"


def is_queue_name(name: object) -> bool:
    """Tell whether a queue may have this name."""
    return (
        isinstance(name, str)
        and FORM.fullmatch(name) is not None
        and name not in TAKEN
        and not name.startswith(TAKEN_PREFIXES)
        and not name.endswith(TAKEN_SUFFIXES)
    )


def route_queue(route: object) -> object:
    """Return the queue of a route: a name, or Celery's other form ``{"queue": name}``."""
    return route["queue"] if isinstance(route, dict) and set(route) == {"queue"} else route
