"""Which workers are dead and hold tasks."""

from collections.abc import Collection
from typing import Any

from celery_durable.redelivery import LEASE_MARGIN
from celery_durable.snapshot import Held, age


def gone(entries: list[Held], hosts: Collection[str], running: Collection[str], declared: str) -> dict[str, Any]:
    """Say which workers are dead and hold tasks: silent, and proven not to run.

    Args:
        entries: what all workers hold.
        hosts: names of the hosts that could be asked which workers run there.
        running: names of the workers that run there.
        declared: a worker of which an operator knows that it is dead.
    """
    silent = sorted({entry.node for entry in entries if entry.messages and entry.silent > LEASE_MARGIN})
    dead = [node for node in silent if node == declared or (node.partition("@")[2] in hosts and node not in running)]
    sentences = [f"{node} is dead and holds tasks" for node in dead]
    for node in set(silent) - set(dead):
        why = "its process runs and does not reach Redis" if node in running else "its host could not be asked"
        sentences.append(
            f"{node} is silent and holds tasks, but {why}: look there. If you know that it is dead, say "
            f"-e node={node}; if you are wrong, its tasks run twice"
        )
    return {
        "dead": dead,
        "verdict": "; ".join(sentences) or "No worker that is gone holds a task",
        "lines": [
            f"{entry.node}: {len(entry.messages)} tasks of {entry.queue}, the oldest enqueued "
            f"{age(entry.messages):.0f} s ago, last heartbeat {entry.silent:.0f} s ago"
            for entry in entries
        ],
    }
