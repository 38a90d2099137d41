#!/usr/bin/env python3
"""What this host's balancer sees: prints findings as JSON, and changes nothing.

Runs on the host as root, with the system's Python alone. A finding is one of playbooks/files/doctor.py, which says what
its fields mean, and a cause for playbooks/runbooks/balancer.yml besides.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CRITICAL, WARNING = 1, 2
# The platform's own addresses are never behind a proxy, whatever the environment says.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
LATER = 10  # of doctor.py's layers: what is wrong with the API itself comes before
PATIENCE = 3  # seconds for each answer
# As the alerts have them.
CERTIFICATE_WARNING, CERTIFICATE_CRITICAL = 20 * 24 * 3600, 3 * 24 * 3600


@dataclass
class Finding:
    """Something that is wrong, in the words of doctor.py and of the runbook."""

    severity: int
    what: str
    runbook: str
    cause: str
    layer: int = LATER
    suspect: bool = False
    certain: bool = False

    @property
    def rank(self) -> int:
        """What is worse comes first."""
        return self.severity


def say(*command: str, given: str = "") -> tuple[bool, str]:
    """Return whether a command succeeds and what it says."""
    try:
        run = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return run.returncode == 0, run.stdout.strip()


def figures(url: str) -> str:
    """Return HAProxy's figures, nothing when it does not answer."""
    try:
        with OPEN(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def servers(told: str) -> Iterator[Finding]:
    """Judge HAProxy's figures: who gets no requests, and why."""
    if not told:
        yield Finding(CRITICAL, "the balancer does not answer at its own address", "BalancerDown", "silent")
        return
    checks = dict(re.findall(r'^haproxy_server_check_status\{([^}]*),state="(\w+)"\} 1', told, re.MULTILINE))
    codes = dict(re.findall(r"^haproxy_server_check_code\{([^}]*)\} (\d+)", told, re.MULTILINE))
    up = re.findall(r'^haproxy_server_status\{([^}]*),state="UP"\} (\d)', told, re.MULTILINE)
    names = {labels: re.findall(r'="([^"]*)"', labels) for labels, _ in up}
    away = [labels for labels, state in up if state == "0" and names[labels][0] in ("api", "flower")]
    for labels in away:
        proxy, server = names[labels]
        why = f"its check says {checks.get(labels, 'nothing')} {codes.get(labels, '')}".strip()
        yield Finding(WARNING, f"the balancer sends nothing to {proxy} on {server}: {why}", "BackendDown", "backend")
    if [names[labels] for labels in away if names[labels][0] == "api"] == [
        name for name in names.values() if name[0] == "api"
    ]:
        yield Finding(CRITICAL, "the balancer sees no API that can take work", "NoBackend", "backend")


def certificate(file: str) -> Iterator[Finding]:
    """Look how long the certificate is valid, and whether clients are shown the one of the file."""
    page, text = "BalancerCertificateExpires", say("openssl", "x509", "-in", file)[1]
    for seconds, severity in ((0, CRITICAL), (CERTIFICATE_CRITICAL, CRITICAL), (CERTIFICATE_WARNING, WARNING)):
        if not say("openssl", "x509", "-in", file, "-noout", "-checkend", str(seconds))[0]:
            ends = f"ends within {seconds // (24 * 3600)} days" if seconds else "has ended, or cannot be read"
            yield Finding(severity, f"the balancer's certificate {file} {ends}", page, "certificate")
            return
    shown = say("openssl", "s_client", "-connect", "127.0.0.1:443", given="")[1]
    if "BEGIN CERTIFICATE" in shown and text not in shown:
        what = f"the balancer shows another certificate than {file}: systemctl reload haproxy"
        yield Finding(WARNING, what, page, "certificate")


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", metavar="URL", help="of HAProxy; without it there is no balancer here")
    parser.add_argument("--certificate", default="", metavar="FILE", help="that clients are shown")
    parser.add_argument("--floating-address", default="", help="that exactly one balancer must have")
    given = parser.parse_args()
    findings = list(servers(figures(given.figures))) if given.figures else []
    findings += certificate(given.certificate) if given.certificate and Path(given.certificate).exists() else []
    told: list[dict[str, object]] = [{**asdict(finding), "rank": finding.rank} for finding in findings]
    if given.floating_address:
        has = f" {given.floating_address}/" in say("ip", "-4", "-oneline", "address")[1]
        told.append({"severity": 0, "facts": {}, "one_of": {f"the address {given.floating_address}": has}})
    print(json.dumps(told))


if __name__ == "__main__":
    main()
