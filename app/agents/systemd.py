"""What systemd is told of a worker: readiness, a status line, and beats that stop when the worker hangs.

Where something else supervises it, a small process of its own listens in systemd's place (app/agents/watchdog.py). For
containers each beat also touches a file, whose age tells a probe the same (app/probe.py).

A thread beats, so that a worker which drains or waits for its broker, where the main loop stands still, is not killed.
While it consumes, the thread beats only as long as the main loop turns. A stopped process does not beat at all.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker import state as worker_state
from cysystemd.daemon import Notification, notify

from app.agents.figures import size_of
from app.probe import HEARTBEAT_LIMIT
from app.settings import get_settings

# Seconds between two signs of life of the main loop.
LOOP_INTERVAL = 1.0


def tell(notification: Notification, value: str = "") -> None:
    """Notify systemd; nothing happens where it did not start us."""
    if "NOTIFY_SOCKET" in os.environ:
        notify(notification, value)


def install(app: Celery) -> None:
    """Make workers of ``app`` report to systemd."""
    signals.worker_init.connect(_watch_without_systemd)
    app.steps["consumer"].add(ReportToSystemd)


def _watch_without_systemd(**_: Any) -> None:
    limit = get_settings().worker_watchdog_seconds
    if limit is None or "NOTIFY_SOCKET" in os.environ:
        return
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind("")  # the kernel chooses an abstract name, a zero byte first; systemd writes it as @
    os.environ["NOTIFY_SOCKET"] = "@" + listener.getsockname()[1:].decode()
    os.environ["WATCHDOG_USEC"] = str(limit * 1_000_000)
    command = [sys.executable, "-m", "app.agents.watchdog", str(os.getpid()), str(limit)]
    subprocess.Popen(command, stdin=listener.fileno())  # noqa: S603 - a command of our own
    listener.close()


class ReportToSystemd(bootsteps.StartStopStep):
    """Knows whether the worker consumes, and watches its main loop while it does."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Begin to beat if systemd's unit or a probe asks for it; ``parent`` is the worker's consumer."""
        super().__init__(parent, **kwargs)
        parent.reporter = self
        self._consuming = threading.Event()
        self._last_turn = 0.0
        self._pool: Any = None
        self._heartbeat = get_settings().worker_heartbeat_file
        if self._heartbeat:
            self._heartbeat.unlink(missing_ok=True)  # a former worker's
        # Set by systemd from WatchdogSec=, in microseconds.
        self._limit = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 or (HEARTBEAT_LIMIT if self._heartbeat else 0)
        self._thread = threading.Thread(target=self._beat, name="systemd-watchdog", daemon=True)

    def start(self, parent: Any) -> None:
        """The worker takes tasks from now on, also after a lost connection."""
        self._pool = parent.pool
        self._turn()
        parent.timer.call_repeatedly(LOOP_INTERVAL, self._turn)
        self._consuming.set()
        tell(Notification.READY)
        tell(Notification.STATUS, self._status())
        if self._limit and not self._thread.is_alive():
            self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """The connection is lost, or the worker stops."""
        self._consuming.clear()
        tell(Notification.STATUS, self._status())

    def _turn(self) -> None:
        self._last_turn = time.monotonic()

    def _beat(self) -> None:
        while True:
            # The loop may be late by most of the limit: it waits for Redis here and there, some seconds at a time.
            if not self._consuming.is_set() or time.monotonic() - self._last_turn < self._limit * 0.7:
                tell(Notification.WATCHDOG)
                tell(Notification.STATUS, self._status())
                if self._heartbeat:
                    self._heartbeat.touch()
            time.sleep(self._limit / 4)

    def _status(self) -> str:
        busy, done = len(worker_state.active_requests), sum(worker_state.total_count.values())
        if self._consuming.is_set():
            doing = "Consuming"
        elif worker_state.should_stop is None and worker_state.should_terminate is None:
            doing = "Waiting for the broker"
        else:
            doing = "Finishing what runs, then stopping"
        return f"{doing}; {busy} of {size_of(self._pool)} processes busy, {done} tasks taken since the start"
