"""When a message is taken from a worker, and how often it comes back."""

from typing import Any

# Seconds on top of a task's hard limit before another worker takes it from a worker that is silent: its clock may have
# started a little later than the last heartbeat, and killing takes time. With SWEEP_INTERVAL below 30 in all.
LEASE_MARGIN = 15
# Seconds that a task may run which has no hard limit, when its worker is silent: what kombu takes for every message.
NO_LIMIT = 3600
# A message that was in flight at that many workers when they died is what kills them.
MAX_REDELIVERIES = 10
# The header that counts them.
REDELIVERIES = "redeliveries"


def deaths_of(headers: dict[str, Any]) -> int:
    """Return how many workers have died while they ran a task, or had just taken it."""
    deaths = headers.get(REDELIVERIES)
    return deaths if isinstance(deaths, int) else 0
