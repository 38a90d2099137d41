"""Filters of the stack role: what playbooks/doctor.yml looks for on a host, and how it tells what it found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

# As in playbooks/files/doctor.py, which says what a layer, a suspect and a certain finding are.
FACTS, CRITICAL, WARNING, NOTE = 0, 1, 2, 3
HIGHEST_LAYER = 10
FILES = 6
SEVERITIES = {CRITICAL: "CRITICAL", WARNING: "warning", NOTE: "note"}
# Of what Ansible says.
LONGEST_REASON = 200


def doctor_findings(hosts: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings of all hosts, the most likely cause first.

    Args:
        hosts: the variables of each host, with ``doctor_examined``, what examining it has returned, and perhaps
            ``doctor_compared``, how its files differ from those that were installed, and ``doctor_replication``, how
            its Redis stands to the others, and ``doctor_balancer``, what its balancer sees.
    """
    findings = [finding for host in hosts for finding in _of(host)]
    facts = [finding for finding in findings if finding["severity"] == FACTS]
    findings += _differences(facts) + _one_of(facts)
    findings = [finding for finding in findings if finding["severity"] != FACTS]
    critical = [finding for finding in findings if finding["severity"] == CRITICAL]
    if not critical:
        return sorted((finding for finding in findings if finding["severity"] != NOTE), key=_rank)
    first, last = min(critical, key=_rank), max(_layer(finding) for finding in critical)
    if not first.get("certain"):
        findings = [
            {**finding, "severity": CRITICAL} if finding.get("suspect") and _layer(finding) <= last else finding
            for finding in findings
        ]
    return sorted(findings, key=_rank)


def doctor_sentences(findings: list[dict[str, Any]]) -> list[str]:
    """Return one line for each finding: severity, host, what it is, and the page that helps."""
    return [
        f"{SEVERITIES[finding['severity']]} {finding['host']}: {finding['what']}"
        + (f" -> docs/runbooks/{finding['runbook']}.md" if finding["runbook"] else "")
        for finding in findings
    ]


def _of(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, examined = host["inventory_hostname"], host["doctor_examined"]
    reason = " ".join(str(examined.get("stderr") or examined.get("msg") or "").split())[-LONGEST_REASON:]
    reason = f": {reason}" if reason else ""
    silent = {"host": name, "severity": CRITICAL, "runbook": "TargetDown", "layer": 0, "suspect": False}
    if examined.get("unreachable"):
        return [{**silent, "what": f"Ansible does not reach it{reason}"}]
    found = []
    for answer in (examined, *(host.get(f"doctor_{part}", {}) for part in ("compared", "replication", "balancer"))):
        try:
            found += [{"host": name, **finding} for finding in json.loads(answer.get("stdout") or "[]")]
        except ValueError:
            found.append({**silent, "what": f"Ansible cannot look into it{reason}"})
    for answer, failed in (
        (host.get("doctor_compared", {}), "its files cannot be compared with what was installed"),
        (host.get("doctor_replication", {}), "how its Redis stands to the others cannot be seen"),
        (host.get("doctor_balancer", {}), "what its balancer sees cannot be read"),
    ):
        if answer.get("rc", 0) != 0:
            why = " ".join(str(answer.get("stderr", "")).split())[-LONGEST_REASON:]
            found.append(
                {**silent, "severity": WARNING, "what": f"{failed}: {why}", "runbook": "drift", "layer": FILES}
            )
    return found if examined.get("stdout") else [{**silent, "what": f"Ansible cannot look into it{reason}"}]


def _differences(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what must be the same on all hosts and is not, named at the hosts that are fewer."""
    found = []
    for name in sorted({name for finding in told for name in finding["facts"]}):
        values = {finding["host"]: finding["facts"][name] for finding in told if name in finding["facts"]}
        ranked = Counter(values.values()).most_common()
        if len(ranked) > 1:
            usual = ranked[0][0]
            like = next(host for host, value in values.items() if value == usual)
            found += [
                {
                    "host": host,
                    "severity": WARNING,
                    "what": f"{name} is not the same as on {like} ({value} here, {usual} there): run site.yml",
                    "runbook": "drift",
                    "layer": FILES,
                    "suspect": True,
                }
                for host, value in values.items()
                if value != usual
            ]
    return found


def _one_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what exactly one host must have, and none or several have."""
    found = []
    for name in sorted({name for finding in told for name in finding.get("one_of", {})}):
        asked = [finding for finding in told if name in finding.get("one_of", {})]
        having = [finding["host"] for finding in asked if finding["one_of"][name]]
        if len(having) != 1:
            what = f"{' and '.join(having)} have {name}" if having else f"nobody has {name}"
            told_of = {"host": (having or [asked[0]["host"]])[0], "severity": CRITICAL, "what": what}
            found.append({**told_of, "runbook": "FloatingAddress", "layer": HIGHEST_LAYER, "suspect": False})
    return found


def _layer(finding: Mapping[str, Any]) -> int:
    return int(finding.get("layer", HIGHEST_LAYER))


def _rank(finding: Mapping[str, Any]) -> tuple[int, int, bool, bool, str]:
    # In the same layer suspects go before what they explain, and what Redis says before what its clients meet.
    client = finding["runbook"] == "BrokerUnreachable"
    return finding["severity"], _layer(finding), not finding.get("suspect", False), client, finding["host"]


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {"doctor_findings": doctor_findings, "doctor_sentences": doctor_sentences}
