"""What lies in the broker.

========================  ======  ===========================================================================
``<queue>``               list    messages that wait; pushed on the left, taken from the right
``unacked:<node>:<queue>`` list   messages that a worker holds: taken from ``<queue>`` in one step, never in
                                  its memory alone
``unacked_idle:<node>:<queue>`` set  digests of those among them that no process runs (worker/idle.py)
``unacked_owner:<node>``  zset    the worker that has this name, by the time of its last heartbeat
``unacked_revoked``       zset    tasks and stamps that were revoked, by the time (revocations.py)
``unacked_leases``        zset    the lists above, by the time of their worker's last heartbeat
``accepted``              hash    task id -> number of its messages in the broker; the answer to "is it still
                                  on its way?"
``dead_letters``          list    messages that no worker will run, each with the reason
``deferred:<queue>``      list    messages that an operator has taken out of ``<queue>`` for a while; still accepted
``idempotency:<digest>``  string  the task that a client's Idempotency-Key has made
``figures``               hash    what workers count, for ever (metrics.py)
``figures:minute:<n>``    hash    the same of one minute since 1970, summed over all tasks; kept for two hours
``failures``              list    the last runs that failed, newest first
``workers``               hash    node -> time of its last report, and its state
``alerts``                hash    what Alertmanager says
``durable:beat:<name>``    string  the beat that sends, for as long as it sends a heartbeat
``durable:beat_runs:<name>`` hash  when each entry of the schedule ran last
========================  ======  ===========================================================================
"""

ACCEPTED = "accepted"
DEAD_LETTERS = "dead_letters"
LEASES = "unacked_leases"
UNACKED = "unacked:"
IDLE = "unacked_idle:"
OWNER = "unacked_owner:"
DEFERRED = "deferred:"
IDEMPOTENCY = "idempotency:"
ALERTS = "alerts"
BEAT = "durable:beat:"
BEAT_RUNS = "durable:beat_runs:"


def unacked_list(node: str, queue: str) -> str:
    """Return the name of the list of messages that ``node`` has taken from ``queue``."""
    return f"{UNACKED}{node}:{queue}"


def idle_set(unacked: str) -> str:
    """Return the name of the set that tells which messages of an unacked list no process runs."""
    return f"{IDLE}{unacked.removeprefix(UNACKED)}"


def node_of(unacked: str) -> str:
    """Return the worker whose unacked list this is."""
    return unacked.removeprefix(UNACKED).partition(":")[0]


def queue_of(unacked: str) -> str:
    """Return the queue that the messages of an unacked list came from."""
    return unacked.removeprefix(UNACKED).partition(":")[2]


def deferred_list(queue: str) -> str:
    """Return the name of the list of messages that were taken out of ``queue`` for a while."""
    return f"{DEFERRED}{queue}"
