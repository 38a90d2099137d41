"""Health of a container: ``python -I -m celery_durable.probe``, which imports the standard library alone.

worker         the worker's main loop turns, or it waits for its broker, or drains (worker/systemd.py); beat ticks
http PORT PATH the server on this port answers the path with 200
api PORT PATH  the same of an application that redirects HTTP to HTTPS: it is asked as by a balancer that ends TLS

Ends with 0 when it is well, with 1 and a sentence when it is not.
"""

import os
import sys
import time

TIMEOUT = 4
# Seconds between two heartbeats that are too long, unless the watchdog's variable says otherwise.
HEARTBEAT_LIMIT = 10


def worker() -> str | None:
    """Return what is wrong with the worker's heartbeat; nothing when it beats."""
    try:
        age = time.time() - os.stat(os.environ["WORKER_HEARTBEAT_FILE"]).st_mtime  # noqa: PTH116 - pathlib takes as long as all the rest
    except FileNotFoundError:
        return "The worker has not begun to take tasks."
    names = ("DURABLE_WATCHDOG_SECONDS", "WORKER_WATCHDOG_SECONDS")
    limit = float(next(filter(None, map(os.environ.get, names)), HEARTBEAT_LIMIT))
    return None if age < limit else f"No heartbeat for {age:.0f} s."


def http(port: str, path: str, header: str = "") -> str | None:
    """Return what is wrong with the server's answer; nothing when it is 200."""
    import socket  # noqa: PLC0415 - the worker's probe does without

    try:
        with socket.create_connection(("127.0.0.1", int(port)), TIMEOUT) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n{header}\r\n".encode())
            status = connection.recv(64).decode("latin-1").split("\r\n")[0]
    except OSError as error:
        return f"Port {port} does not answer: {error}."
    return None if status.split(" ")[1:2] == ["200"] else f"The answer is {status!r}."


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        sys.exit(worker())
    kind, port, path = sys.argv[1:4]
    sys.exit(http(port, path, "X-Forwarded-Proto: https\r\n" if kind == "api" else ""))
