"""Ansible action: systemd_service, and when a unit does not start, the error ends with what its program said last."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ansible.plugins.action import ActionBase


def last_sentence(lines: list[str]) -> str:
    """Return what a program's log says last, of a line in JSON its message; empty when it says nothing."""
    for line in reversed(lines):
        text = line.strip()
        if text.startswith("{"):
            try:
                entry = json.loads(text)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                # A traceback's last line is its error.
                text = str(entry.get("exception") or entry.get("message") or "").strip().rpartition("\n")[2]
        if text:
            return text[:1000]
    return ""


class ActionModule(ActionBase):
    """Runs the module, then reads the journal where it failed."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        result |= self._execute_module("ansible.builtin.systemd_service", arguments, task_vars=task_vars)
        if result.get("failed") and arguments.get("state") in ("started", "restarted"):
            name = str(arguments.get("name", ""))
            unit = name if name.endswith((".service", ".socket", ".timer")) else f"{name}.service"
            # Of the program alone, not of systemd, which says only that it has ended.
            query = (
                f"journalctl --boot --since=-10min --lines=50 --output=cat --no-pager _SYSTEMD_UNIT={shlex.quote(unit)}"
            )
            said = last_sentence(self._low_level_execute_command(query).get("stdout", "").splitlines())
            if said:
                result["msg"] = f"{result.get('msg', '')} Its program said last: {said}".strip()
        return result
