"""Filters of the stack role: what playbooks/diagnose/doctor.yml looks for on a host, and how it tells what it found."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

# As in packages/hosttools/src/hosttools/findings.py, which says what a layer, a suspect and a certain finding are.
FACTS, CRITICAL, WARNING, NOTE = 0, 1, 2, 3
HIGHEST_LAYER = 10
FILES = 6
SEVERITIES = {CRITICAL: "CRITICAL", WARNING: "warning", NOTE: "note"}
# Of what Ansible says.
LONGEST_REASON = 600
# So many lines are a verdict: one screen, with the likeliest cause on top.
LONGEST_VERDICT = 10
# What keeps Ansible out, by its own words, and what to do; the first that is found counts.
OBSTACLES = {
    r"host key|HOST IDENTIFICATION": "compare its SSH host key with the console's, then ssh-keygen -R HOST",
    r"Permission denied \(": "its SSH refuses the key: look at ansible_user and authorized_keys",
    r"resolve host|Name or service": "its name has no address here: look at ansible_host and the name servers",
    r"Connection refused": "nothing listens on its SSH port: look at ansible_port, and at ssh on the console",
    r"(?i)become|sudo|privilege": "Ansible does not become root there: run sudo -n true on it, repair with visudo -c",
    r"(?i)interpreter|python\S* not found|python\S*: not found|No module named": (
        "its Python is missing or broken: apt-get install --reinstall python3-minimal on it"
    ),
    r"Timed out after": "it does not answer in time: look at its load, disk and console",
    r"timed out|No route|unreachable": "it is down, or the network on the way: look at its console",
}


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
    return sorted((_beside(finding, first) for finding in findings), key=_rank)


def _beside(finding: dict[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Put a difference next to the first broken part, the nearest one first; mark what lies above that part."""
    away = _layer(first) - _layer(finding)
    if finding.get("difference") and away > 0:
        return {**finding, "layer": _layer(first), "distance": away}
    broken = finding["severity"] == CRITICAL and not finding.get("suspect") and not finding.get("certain")
    return {**finding, "follows": True} if broken and away < 0 and finding["host"] == first["host"] else finding


def doctor_sentences(findings: list[dict[str, Any]]) -> list[str]:
    """Return one line for each finding: severity, host, what it is, and the page that helps."""
    return [
        f"{SEVERITIES[finding['severity']]} {finding['host']}: {finding['what']}"
        + (" (perhaps a consequence)" if finding.get("follows") else "")
        + (f" -> docs/runbooks/{finding['runbook']}.md" if finding["runbook"] else "")
        for finding in findings
    ]


def doctor_verdict(findings: list[dict[str, Any]]) -> list[str]:
    """Return the doctor's last lines: the likeliest cause first, at most ``LONGEST_VERDICT``."""
    return _short(doctor_sentences(findings)) or ["Nothing is wrong."]


def doctor_blind(host: Mapping[str, Any]) -> bool:
    """Return whether Ansible could not look into a host at all."""
    examined = host.get("doctor_examined")
    return examined is not None and not examined.get("stdout")


def doctor_seen(hosts: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the hosts, by their variables, that Ansible could look into, or that it was not asked to."""
    return [host for host in hosts if not doctor_blind(host)]


def runbook_lines(
    findings: list[dict[str, Any]], *, verdict: str, plan: str, pages: list[str], confirm: bool, evidence: str
) -> list[str]:
    """Return what a runbook says after it has looked.

    Args:
        findings: the doctor's, the most likely cause first.
        verdict: what the runbook itself has found, empty when that is nothing.
        plan: what it would change, empty when that is nothing.
        pages: what the runbook is about.
        confirm: whether it changes something now.
        evidence: where the evidence is.
    """
    critical = [finding for finding in findings if finding["severity"] == CRITICAL]
    shown = doctor_sentences(critical if not plan else [])
    if plan:
        elsewhere = [finding for finding in critical if finding["runbook"] not in pages]
        shown = [f"Elsewhere: {sentence}" for sentence in doctor_sentences(elsewhere)]
        end = [f"Now: {plan}" if confirm else f"Nothing was changed. With -e confirm=yes: {plan}"]
    elif critical:
        end = [*_unknown(findings), f"This runbook repairs nothing here. The evidence is in {evidence}."]
    else:
        end = ["Nothing is critical, and there is nothing to repair here."]
    return [*([verdict.strip()] if verdict.strip() else []), *_short(shown, LONGEST_VERDICT - len(end) - 1), *end]


def _unknown(findings: list[dict[str, Any]]) -> list[str]:
    """Return that the cause is not known, with the three likeliest differences from the last healthy state."""
    differences = [finding for finding in findings if finding.get("difference")][:3]
    told = [f"Differs from its healthy state: {finding['host']}: {finding['what']}" for finding in differences]
    # What is certain, or keeps Ansible out, needs no other cause.
    critical = [finding for finding in findings if finding["severity"] == CRITICAL]
    known = any(finding.get("certain") or _layer(finding) == 0 for finding in critical)
    return told if known else [f"I do not know the cause{'; the likeliest differences:' if told else '.'}", *told]


def _short(lines: list[str], longest: int = LONGEST_VERDICT) -> list[str]:
    if len(lines) <= longest:
        return lines
    return [*lines[: longest - 1], f"... and {len(lines) - longest + 1} more, which stand above."]


def _of(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, examined = host["inventory_hostname"], host["doctor_examined"]
    words = " ".join(str(examined.get(part) or "") for part in ("stderr", "module_stderr", "msg"))
    words = " ".join(words.replace("Task failed: ", "").split())[-LONGEST_REASON:]
    remedy = next((remedy for pattern, remedy in OBSTACLES.items() if re.search(pattern, words)), "")
    reason = (f": {words}" if words else "") + (f" ({remedy.replace('HOST', name)})" if remedy else "")
    silent = {"host": name, "severity": CRITICAL, "runbook": "TargetDown", "layer": 0, "suspect": False}
    if examined.get("unreachable"):
        return [{**silent, "what": f"Ansible does not reach it{reason}"}]
    if doctor_blind(host):
        return [{**silent, "what": f"Ansible cannot look into it{reason}"}]
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
    return found


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
                    # The host's own difference from its healthy state says where it comes from: that one goes first.
                    "difference": True,
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
            found.append({**told_of, "runbook": "VirtualIPMisplaced", "layer": HIGHEST_LAYER, "suspect": False})
    return found


def doctor_secrets(names: Mapping[str, list[str]], services: list[str]) -> list[str]:
    """Return the doctor's arguments that name each secret file that these services must have."""
    return [f"--secret={service}/{name}" for service in services for name in sorted(set(names[service]))]


def _layer(finding: Mapping[str, Any]) -> int:
    return int(finding.get("layer", HIGHEST_LAYER))


def _rank(finding: Mapping[str, Any]) -> tuple[int, int, int, int, bool, str]:
    # In the same layer suspects go before what they explain, those that say more than a difference before it, and what
    # Redis says before what its clients meet.
    order = 1 if finding.get("difference") else 0 if finding.get("suspect") else 2
    client = finding["runbook"] == "BrokerUnreachable"
    return finding["severity"], _layer(finding), order, finding.get("distance", 0), client, finding["host"]


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "doctor_blind": doctor_blind,
            "doctor_findings": doctor_findings,
            "doctor_secrets": doctor_secrets,
            "doctor_seen": doctor_seen,
            "doctor_sentences": doctor_sentences,
            "doctor_verdict": doctor_verdict,
            "runbook_lines": runbook_lines,
        }
