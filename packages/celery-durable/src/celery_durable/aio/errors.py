"""Why a task was not published."""


class BrokerUnavailableError(Exception):
    """The task was not, or not surely, put into its queue."""


class NotReplicatedError(BrokerUnavailableError):
    """The task is in its queue, but fewer replicas than wanted have it: it could be lost with the primary."""


class KeyReusedError(Exception):
    """The idempotency key belongs to a task with other data."""

    def __init__(self, number: int = 0) -> None:
        """Say which task of a batch it is, counted from 0."""
        super().__init__("The Idempotency-Key was used with other data before; take a new one for a new task.")
        self.number = number


class QueueFullError(Exception):
    """The queue is as long as it may get."""


class BrokerFullError(Exception):
    """The broker has little memory left."""


class WorkersAbsentError(Exception):
    """No worker has been there for longer than the inventory allows."""
