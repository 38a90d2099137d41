"""What systemd's watchdog does, for a worker that something else supervises: kill it when its heartbeats stop.

Started by the worker itself as a process of its own, ``python -m celery_durable.worker.watchdog``, with the receiving
end of the worker's notification socket as its standard input (worker/systemd.py).
"""

import json
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime

from billiard.util import set_pdeathsig  # type: ignore[attr-defined]


def main(worker: int, limit: float) -> None:
    """Kill process ``worker`` when it has been silent for ``limit`` seconds; begin when it is ready."""
    set_pdeathsig(signal.SIGKILL)
    notifications = socket.socket(fileno=sys.stdin.fileno())
    last_sign = None
    while os.getppid() == worker:
        notifications.settimeout(limit / 10)
        try:
            message = notifications.recv(4096)
        except TimeoutError:
            message = b""
        if message.startswith((b"READY=1", b"WATCHDOG=1")):
            last_sign = time.monotonic()
        elif last_sign and time.monotonic() - last_sign > limit:
            # The service's own formatter would load Celery into this small process.
            line = {"timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": "CRITICAL"}
            line |= {"service": "celery_worker", "message": f"No heartbeat for {limit:.0f} s: the worker is killed"}
            os.write(sys.stdout.fileno(), f"{json.dumps(line)}\n".encode())
            os.kill(worker, signal.SIGKILL)
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
