"""Filters of the stack role: what the runbooks make of what hosttools' workers has seen on each host."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Seconds without a sign of life after which a worker is silent (as in celery_durable.aio.workforce); those of a start.
SILENT_SECONDS, STARTING_SECONDS = 15, 20
# A child shares most of its memory with the main process. One that has this much and twice the main one's has grown;
# one of the pool asyncio may hold what hundreds of runs need.
GROWN_MIB = 200
# What repairs what keeps a worker from starting.
REMEDIES = {
    "secrets": "deploy",
    "settings": "deploy",
    "password": "deploy",
    "venv": "rebuild",
    "release": "release",
    "redis": "redis",
}
STATES = {
    "running": "runs",
    "starting": "starts just now",
    "hanging": "does not get through its start",
    "stopping": "finishes its tasks, then stops",
    "stopped": "is stopped",
    "failed": "has failed",
    "crashing": "ends right after each start",
    "halted": "was halted by a signal",
    "silent": "runs, but is silent",
    "masked": "is masked",
    "missing": "is not installed",
}


# What a runbook does for each remedy that it has.
PLANS = {
    "start": "start and enable {unit}",
    "restart": "restart {unit}",
    "install": "write {unit} again, as playbooks/site/app.yml does",
    "deploy": "deploy this checkout with the inventory's settings and secrets, and restart {unit}",
    "rebuild": "deploy this checkout with a new virtual environment, and restart {unit}",
}


def worker_findings(hosts: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each worker with ``host``, ``state``, ``remedy`` (maybe empty), ``plan``, and what it ``says``.

    Remedies: start, restart, install (the unit), deploy (settings and secrets again), rebuild (the virtual
    environment), release (another one), redis (must be repaired first), memory, and examine (nobody knows).

    Args:
        hosts: the variables of each host, with ``workers_examined``, what examining it has returned.
    """
    seen = {
        host["inventory_hostname"]: json.loads(host["workers_examined"]["stdout"])
        for host in hosts
        if host["workers_examined"].get("stdout")
    }
    brokers = [told["signs"] for told in seen.values() if "signs" in told]
    return [worker for name, told in seen.items() for worker in _of_host(name, told, brokers)]


def workers_plans(workers: list[Mapping[str, Any]], release: str = "") -> list[str]:
    """Return what is done for each worker that cannot start.

    Args:
        workers: some of those that ``worker_findings`` has returned.
        release: the chosen release; without it the newest other one where the live one is at fault.
    """
    plans = []
    for worker in workers:
        others = worker["releases"]["others"]
        chosen = release or (others[0] if worker["remedy"] == "release" and others else "")
        where = f"{worker['unit']} on {worker['host']}"
        if chosen:
            plans.append(
                f"make the former release {chosen} the live one, and restart {where} (a deployment undoes this)"
            )
        elif worker["remedy"] == "release":
            plans.append(f"install this checkout's release anew, there is no former one, and restart {where}")
        else:
            plans.append(worker["plan"])
    return plans


def _of_host(host: str, told: Mapping[str, Any], brokers: list[dict[str, int] | None]) -> Iterator[dict[str, Any]]:
    signs = brokers[0] if brokers else None
    obstacle = told.get("obstacle") or {}
    if brokers and signs is None:
        obstacle = {"kind": "redis", "says": "the queue's Redis does not answer"}
    for worker in told.get("workers", []):
        state = worker["state"]
        settled = worker["processes"] and worker["processes"][0]["age"] > STARTING_SECONDS
        if state == "running" and signs is not None and settled:
            silence = signs.get(worker["node"])
            if silence is None or silence > SILENT_SECONDS:
                state = "silent"
        remedy = _remedy(worker, state, obstacle)
        yield {
            **worker,
            "host": host,
            "state": state,
            "remedy": remedy,
            "plan": PLANS.get(remedy, "").format(unit=f"{worker['unit']} on {host}"),
            "says": f"{host}: {worker['unit']} {_sentence(worker, state, obstacle)}",
            "releases": told["releases"],
        }


def _remedy(worker: Mapping[str, Any], state: str, obstacle: Mapping[str, str]) -> str:
    if obstacle.get("kind") in REMEDIES:
        return REMEDIES[obstacle["kind"]]
    if state in ("starting", "stopping"):
        return ""
    if state in ("masked", "missing"):
        return "install"
    if state in ("crashing", "hanging"):
        return "memory" if worker["oom_kills"] else "examine"
    if state in ("silent", "halted"):
        return "restart"
    return "" if state == "running" and worker["enabled"] else "start"


def _sentence(worker: Mapping[str, Any], state: str, obstacle: Mapping[str, str]) -> str:
    parts = [STATES[state]]
    if not worker["enabled"] and state in ("running", "stopped", "failed"):
        parts.append("and would not start after a boot")
    if state == "crashing":
        parts.append(f"({worker['ends']} times within 15 minutes)")
    if state == "silent" and worker["status"]:
        parts.append(f"({worker['status']})")
    if obstacle.get("kind") == "slow":
        parts.append(f"(nobody knows whether it could start again: {obstacle['says']})")
    elif obstacle:
        waits = "and waits" if obstacle["kind"] == "redis" else "but could not start again"
        parts.append(f"{waits if state == 'running' else 'and cannot start'}: {obstacle['says']}")
    elif state in ("crashing", "failed", "hanging"):
        memory = "the kernel killed it for want of memory" if worker["oom_kills"] else ""
        words = f"its last words: {worker['last_log']}"
        parts.append(f"- {'; '.join(filter(None, [memory, worker['last_exit'], words]))}")
    return " ".join(parts)


def task_time_findings(hosts: list[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each task that has hit a limit within the last hour.

    Args:
        hosts: the variables of each host, with ``times_examined``, what hosttools' task_durations has returned.
    """
    seen = [json.loads(host["times_examined"]["stdout"]) for host in hosts if host["times_examined"].get("stdout")]
    hour: Counter[str] = Counter()
    for told in seen:
        hour.update(told.get("hour", {}))
    tasks: Mapping[str, Any] = next((told["tasks"] for told in seen if told.get("tasks")), {})
    return [
        f"{task}: {count} runs hit a time limit within the last hour{_ever(tasks.get(task))}"
        for task, count in hour.most_common()
    ]


def _ever(task: Mapping[str, Any] | None) -> str:
    """Tell what has been counted of a task since the figures began."""
    if not task or not (total := task["run"].get("+Inf")):
        return ""
    ended, timed_out = sum(task["ended"].values()), task["ended"].get("timed_out", 0)
    bounds = sorted((float(bound), count) for bound, count in task["run"].items())
    quick = next(bound for bound, count in bounds if count >= total / 2)
    slow = next(bound for bound, count in bounds if count >= 0.95 * total)
    return f" ({timed_out:.0f} of {ended:.0f} ever; half of all runs end within {quick:g} s, 95 % within {slow:g} s)"


def fat_workers(workers: list[Mapping[str, Any]], hosts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the workers that take too much memory, the fattest first, each with ``why``.

    Args:
        workers: what ``worker_findings`` has returned.
        hosts: each host's memory, as hosttools' workers reports it.
    """
    fat = []
    for worker in sorted(workers, key=_size, reverse=True):
        host, size = hosts[worker["host"]], _size(worker)
        main, *children = [process["rss"] for process in worker["processes"]] or [0]
        limit = worker["memory_max"] // 2**20
        if limit and size > 0.8 * limit:
            why = f"more than 80 % of its limit of {limit} MiB"
        elif host["available"] < 0.1 * host["total"] and size > 0.1 * host["total"]:
            why = f"while {host['available']} of the host's {host['total']} MiB are left"
        elif not worker.get("shared") and max(children, default=0) > 2 * main + GROWN_MIB:
            why = f"one of its processes alone {max(children)} MiB: it has grown"
        else:
            continue
        fat.append({**worker, "why": f"{worker['unit']} on {worker['host']} takes {size} MiB, {why}"})
    return fat


def memory_sentences(workers: list[Mapping[str, Any]], hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what each host and each worker takes."""
    sentences = []
    for name, host in hosts.items():
        kills = f", the kernel killed {host['kernel_kills']} times within a day" if host["kernel_kills"] else ""
        largest = ", ".join(host["largest"])
        sentences.append(f"{name}: {host['available']} of {host['total']} MiB available{kills}; the largest: {largest}")
    for worker in workers:
        main, *children = [f"{process['rss']} MiB after {process['age']} s" for process in worker["processes"]] or ["-"]
        kills = f"; {worker['oom_kills']} processes killed for want of memory" if worker["oom_kills"] else ""
        shown = ", ".join(children) or "none"
        sentences.append(
            f"{worker['host']}: {worker['unit']} {_size(worker)} MiB; main process {main}; children {shown}{kills}"
        )
    return sentences


def _size(worker: Mapping[str, Any]) -> int:
    # Proportional: what processes share is counted once.
    return sum(int(process["pss"]) for process in worker["processes"])


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "fat_workers": fat_workers,
            "memory_sentences": memory_sentences,
            "task_time_findings": task_time_findings,
            "worker_findings": worker_findings,
            "workers_plans": workers_plans,
        }
