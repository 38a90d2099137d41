"""Prints a run's verdict below everything else: a task's ``verdict``, and each later failure once."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: verdict
type: notification
short_description: The verdict of a run as its last lines
description:
  - Prints the list that a task has set as C(verdict) with M(ansible.builtin.set_stats) after the recap.
  - A failure that is not in it is added, once for all hosts that it has stopped.
"""
# One screen's end. A failure is one sentence.
LONGEST = 10
LONGEST_LINE = 600
# How a line begins that says that something is wrong.
WRONG = ("CRITICAL", "FAILED", "I do not know", "It is not repaired", "Something else stays")


def printable(line: str) -> str:
    """Return a line with everything escaped that a terminal could obey: it may quote what a client or task has sent."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


class CallbackModule(CallbackBase):
    """Collects while the run goes on, prints at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "verdict"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Begin without a verdict."""
        super().__init__()
        self.began = time.monotonic()
        self.verdict: list[str] = []
        self.failures: dict[str, dict[str, None]] = {}

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take a verdict, which covers the failures before it."""
        told = result.result.get("ansible_stats", {}).get("data", {}).get("verdict")
        if told:
            self.verdict, self.failures = [str(line) for line in told], {}

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep why a host has failed."""
        if not ignore_errors:
            self._keep(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep why a host was not reached."""
        self._keep(result)

    def _keep(self, result: Any) -> None:
        told = result.result
        said = " ".join(str(told.get(part) or "") for part in ("msg", "stderr", "module_stderr"))
        said = " ".join(said.replace("Task failed: ", "").split())
        if not any(said in line or line in said for line in self.verdict):
            sentence = f"{result.task.get_name().strip()}: {said}"[:LONGEST_LINE]
            self.failures.setdefault(sentence, {})[result.host.get_name()] = None

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the verdict, at most ten lines, the likeliest cause on top."""
        stopped = {*stats.failures, *stats.dark}
        failed = [
            f"FAILED {', '.join(sorted(stopped & hosts.keys()))}: {sentence}"
            for sentence, hosts in self.failures.items()
            if stopped & hosts.keys()
        ]
        lines = [*self.verdict[: LONGEST - min(len(failed), 3)], *failed[-3:]]
        self._display.display(f"\nIt took {time.monotonic() - self.began:.0f} s.")
        for line in map(printable, lines):
            wrong = line.startswith(WRONG)
            self._display.display(line, color="red" if wrong else None)
