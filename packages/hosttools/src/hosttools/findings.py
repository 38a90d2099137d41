"""What is found on a host, as the playbooks read it.

A finding has a layer: what lies lower causes what lies higher, so the filter doctor_findings sorts by it. A suspect is
harmless by itself, but explains what fails above it, unless something that is certain by itself explains that.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# A note is reported only beside something critical; facts are for the comparison between hosts.
FACTS, CRITICAL, WARNING, NOTE = 0, 1, 2, 3
HOST, NETWORK, REDIS, REACH, RIGHTS, FILES, UNITS, WORKERS, QUEUES, LATER = range(1, 11)


@dataclass
class Finding:
    """Something that is wrong, for the doctor."""

    severity: int
    what: str
    runbook: str
    layer: int = LATER
    suspect: bool = False
    certain: bool = False
    difference: bool = False
    # For the runbooks of replication and balancer.
    cause: str = ""
    subject: str = ""  # the instance
    primary: str = ""  # HOST:PORT of the one that the server should follow

    def report(self) -> dict[str, object]:
        """Return it as a runbook reads it: what others follow from has the lowest rank."""
        return {**asdict(self), "rank": 10 * self.layer + self.severity}


@dataclass
class Cause:
    """Something that is wrong, for one runbook: what others follow from has the lowest rank."""

    cause: str
    what: str
    subject: str  # the instance, the service or the host
    rank: int
    previous: str = ""  # of a release's source: what the host can go back to


def printable(value: Any) -> Any:
    """Return a value whose texts have everything escaped that a terminal could obey: logs quote tasks and clients."""
    if isinstance(value, dict):
        return {printable(name): printable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [printable(part) for part in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in value
    )


def tell(value: Any) -> None:
    """Print a report as the playbooks read it."""
    print(json.dumps(printable(value)), flush=True)


def show(causes: Iterable[Cause]) -> None:
    """Print causes as the playbooks read them."""
    tell([asdict(cause) for cause in causes])
