"""When a message is taken from a worker, and how often it comes back."""

from typing import Any

# Seconds on top of a task's hard limit before another worker takes it from a worker that is silent: its clock may have
# started a little later than the last heartbeat, and killing takes time. With SWEEP_INTERVAL below 30 in all.
LEASE_MARGIN = 15
# Seconds that a task may run which has no hard limit, when its worker is silent: what kombu takes for every message.
NO_LIMIT = 3600
# A message that was in flight at that many workers when they died is what kills them. So is a task for its processes,
# where no fewer retries are set.
MAX_REDELIVERIES = 10
# The header that counts the workers.
REDELIVERIES = "redeliveries"
# The header that counts the processes: how many, and the number of the retry that followed the last one.
PROCESS_DEATHS = "process_deaths"


def deaths_of(headers: dict[str, Any]) -> int:
    """Return how many workers have died while they ran a task, or had just taken it."""
    deaths = headers.get(REDELIVERIES)
    return deaths if isinstance(deaths, int) else 0


def process_deaths_of(headers: dict[str, Any]) -> int:
    """Return in how many runs one after the other a task's process has died, before this one."""
    match headers.get(PROCESS_DEATHS):
        case [int(deaths), int(retry)] if retry == headers.get("retries"):
            return deaths
    return 0
