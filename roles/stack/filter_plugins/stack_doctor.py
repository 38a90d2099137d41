"""Filters of the stack role: what playbooks/doctor.yml looks for on a host, and how it tells what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

CRITICAL, WARNING = 1, 2
SEVERITIES = {CRITICAL: "CRITICAL", WARNING: "warning"}
# What others follow from comes first: a full disk stops Redis, without Redis neither API nor workers work.
CAUSES = (
    "TargetDown",
    "DiskFilling",
    "MemoryLow",
    "RedisCannotSave",
    "RedisDown",
    "BrokerEvicts",
    "BrokerUnreachable",
    "ApiDown",
    "WorkerRestartLoop",
    "NoWorkers",
    "TaskStuck",
)


def doctor_findings(hosts: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings of all hosts, the most likely cause first.

    Args:
        hosts: the variables of each host, with ``doctor_examined``, what examining it has returned.
    """
    findings = []
    for host in hosts:
        name, examined = host["inventory_hostname"], host["doctor_examined"]
        if examined.get("unreachable"):
            silent = {"severity": CRITICAL, "what": "Ansible does not reach it", "runbook": "TargetDown"}
            findings.append({"host": name, **silent})
            continue
        findings += [{"host": name, **finding} for finding in json.loads(examined["stdout"])]
    return sorted(findings, key=_rank)


def doctor_sentences(findings: list[dict[str, Any]]) -> list[str]:
    """Return one line for each finding: severity, host, what it is, and the page that helps."""
    return [
        f"{SEVERITIES[finding['severity']]} {finding['host']}: {finding['what']}"
        + (f" -> docs/runbooks/{finding['runbook']}.md" if finding["runbook"] else "")
        for finding in findings
    ]


def _rank(finding: Mapping[str, Any]) -> tuple[int, int, str]:
    cause = CAUSES.index(finding["runbook"]) if finding["runbook"] in CAUSES else len(CAUSES)
    return finding["severity"], cause, finding["host"]


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {"doctor_findings": doctor_findings, "doctor_sentences": doctor_sentences}
