"""What every side of the comparison shares: a task notes its end in a file, which costs all of them the same."""

import os

_ended = os.open(os.environ.get("BENCH_ENDED", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note_end() -> None:
    """Add a byte: the file's size is the number of tasks that have ended."""
    os.write(_ended, b".")
