"""What systemd is told of a worker: readiness, a status line, and beats that stop when the worker hangs.

Where something else supervises it, a small process of its own listens in systemd's place (worker/watchdog.py). For
containers each beat also touches a file, whose age tells a probe the same (probe.py).

A thread beats, so that a worker which drains or waits for its broker, where the main loop stands still, is not killed.
While it consumes, the thread beats only as long as the main loop turns. A stopped process does not beat at all.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker import state as worker_state

from celery_durable.metrics import size_of
from celery_durable.options import options_of
from celery_durable.probe import HEARTBEAT_LIMIT

# Seconds between two heartbeats of the main loop.
LOOP_INTERVAL = 1.0


def notify(assignment: str) -> None:
    """Notify systemd (sd_notify(3)); nothing happens where it did not start us, or does not listen any more."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # An abstract name begins with a zero byte, which systemd writes as @.
            sender.sendto(assignment.encode(), address.replace("@", "\0", 1))


def install(app: Celery) -> None:
    """Make workers of ``app`` report to systemd."""
    signals.worker_init.connect(_watch_without_systemd)
    app.steps["consumer"].add(ReportToSystemd)


def _watch_without_systemd(sender: Any, **_: Any) -> None:
    limit = options_of(sender.app).watchdog_seconds if hasattr(sender.app, "durable_options") else None
    if limit is None or "NOTIFY_SOCKET" in os.environ:
        return
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind("")  # the kernel chooses an abstract name, a zero byte first; systemd writes it as @
    os.environ["NOTIFY_SOCKET"] = "@" + listener.getsockname()[1:].decode()
    os.environ["WATCHDOG_USEC"] = str(limit * 1_000_000)
    command = [sys.executable, "-m", "celery_durable.worker.watchdog", str(os.getpid()), str(limit)]
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
        self._heartbeat = options_of(parent.app).heartbeat_file
        if self._heartbeat:
            self._heartbeat.unlink(missing_ok=True)  # a previous worker's
        # Set by systemd from WatchdogSec=, in microseconds.
        self._limit = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 or (HEARTBEAT_LIMIT if self._heartbeat else 0)
        self._thread = threading.Thread(target=self._beat, name="systemd-watchdog", daemon=True)

    def start(self, parent: Any) -> None:
        """The worker takes tasks from now on, also after a lost connection."""
        self._pool = parent.pool
        self._turn()
        parent.timer.call_repeatedly(LOOP_INTERVAL, self._turn)
        self._consuming.set()
        notify("READY=1")
        notify(self._status())
        if self._limit and not self._thread.is_alive():
            self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """The connection is lost, or the worker stops."""
        self._consuming.clear()
        notify(self._status())

    def _turn(self) -> None:
        self._last_turn = time.monotonic()

    def _beat(self) -> None:
        while True:
            # The loop may be late by most of the limit: it waits for Redis here and there, some seconds at a time.
            if not self._consuming.is_set() or time.monotonic() - self._last_turn < self._limit * 0.7:
                notify("WATCHDOG=1")
                notify(self._status())
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
        return f"STATUS={doing}; {busy} of {size_of(self._pool)} processes busy, {done} tasks taken since the start"
