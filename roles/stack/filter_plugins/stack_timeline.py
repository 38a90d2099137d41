"""Filter of the stack role: a task's timeline from its hosts' logs (playbooks/diagnose/task_timeline.yml)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

# What the API says of a task that has ended, and of one that nothing is known of any more.
ENDED = ("SUCCESS", "FAILURE", "REVOKED", "404", "410")


def task_timeline(hosts: list[Mapping[str, Any]], task: str) -> list[str]:
    """Return the timeline, a line each, in the order of time, from the variables of all hosts after they were read.

    What units did is part of it only while the task was on its way.
    """
    # One that failed half-way has said nothing that can be read.
    read = {host["inventory_hostname"]: host.get("timeline_read", {}) for host in hosts}
    told = {name: json.loads(said["stdout"]) for name, said in read.items() if "stdout" in said and not said.get("rc")}
    silent = [name for name in read if name not in told]
    end = [f"{name} cannot be read: its lines are missing, unless it sends them elsewhere." for name in silent]
    if not told:
        return end

    # A host's lines may have been sent to another host too.
    lines = {
        (line["time"], line["host"], line["unit"], line["message"]): line
        for host in told.values()
        for line in host["lines"]
    }
    about_task = [moment for moment, line in lines.items() if not line["about_unit"]]
    state = next((host["state"] for host in told.values() if host["state"]), "")
    if not about_task:
        end.append(_nothing(told, task, state, certain=not silent))
    shown = [
        moment
        for moment, line in sorted(lines.items(), key=lambda item: (item[0][0], item[0][2]))
        if about_task and (not line["about_unit"] or not state.startswith(ENDED) or moment[0] <= max(about_task)[0])
    ]
    end.append(f"State now: {state}" if state else "State now: no host of the group api says.")
    return _table([_cells(lines[moment]) for moment in shown]) + end


def _cells(line: Mapping[str, str]) -> list[str]:
    # 2026-01-31T12:00:00.000+00:00
    time = line["time"][:23].replace("T", " ")
    return [time, line["host"], line["unit"], line["level"], " ".join(line["message"].split())]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _nothing(told: Mapping[str, Mapping[str, str]], task: str, state: str, *, certain: bool) -> str:
    created = next(iter(told.values()))["created"]
    # The host whose logs are the shortest may have had it.
    back, host = max((read_here["oldest"], name) for name, read_here in told.items())
    if created and created < back:
        return f"No log has a line about {task}: it is of {created}, and the logs of {host} reach back to {back} only."
    # Of a task that it does not know the API says 404, 410 of one whose result has ended.
    if state and not state.startswith(("404", "The API")):
        return f"No log has a line about {task}, but it was accepted: its lines were removed, or written elsewhere."
    if not certain or not back or state.startswith("The API"):
        return f"No log that could be read has a line about {task}: whether it was accepted here is not known."
    return f"No log has a line about {task}, though all reach back to {back}: it was never accepted here."


class FilterModule:
    """The filter under its name in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about it."""
        return {"task_timeline": task_timeline}
