"""What this host's balancer sees: prints findings as JSON, and changes nothing.

Runs on the host as root. A finding is one of the doctor's, and a cause for playbooks/runbooks/balancer.yml besides.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from hosttools import certificates, process, web
from hosttools.findings import CRITICAL, WARNING, Finding, tell


def figures(url: str) -> str:
    """Return HAProxy's metrics, nothing when it does not answer."""
    status, page = web.ask(url)
    return page if status == 200 else ""


def servers(told: str) -> Iterator[Finding]:
    """Judge HAProxy's figures: who gets no requests, and why."""
    if not told:
        yield Finding(CRITICAL, "the balancer does not answer at its own address", "BalancerDown", cause="silent")
        return
    checks = dict(re.findall(r'^haproxy_server_check_status\{([^}]*),state="(\w+)"\} 1', told, re.MULTILINE))
    codes = dict(re.findall(r"^haproxy_server_check_code\{([^}]*)\} (\d+)", told, re.MULTILINE))
    up = re.findall(r'^haproxy_server_status\{([^}]*),state="UP"\} (\d)', told, re.MULTILINE)
    names = {labels: re.findall(r'="([^"]*)"', labels) for labels, _ in up}
    away = [labels for labels, state in up if state == "0" and names[labels][0] in ("api", "flower")]
    for labels in away:
        proxy, server = names[labels]
        why = f"its check says {checks.get(labels, 'nothing')} {codes.get(labels, '')}".strip()
        what = f"the balancer sends nothing to {proxy} on {server}: {why}"
        yield Finding(WARNING, what, "BackendDown", cause="backend")
    if [names[labels] for labels in away if names[labels][0] == "api"] == [
        name for name in names.values() if name[0] == "api"
    ]:
        yield Finding(CRITICAL, "the balancer sees no API that can take work", "NoBackend", cause="backend")


def certificate(file: str) -> Iterator[Finding]:
    """Look how long the certificate is valid, and whether clients are shown the one of the file."""
    page, text = "BalancerCertificateExpires", process.run("openssl", "x509", "-in", file).output
    severity, ends = certificates.end(file)
    if severity:
        yield Finding(severity, f"the balancer's certificate {file} {ends}", page, cause="certificate")
        return
    shown = process.run("openssl", "s_client", "-connect", "127.0.0.1:443").output
    if "BEGIN CERTIFICATE" in shown and text not in shown:
        what = f"the balancer shows another certificate than {file}: systemctl reload haproxy"
        yield Finding(WARNING, what, page, cause="certificate")


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", metavar="URL", help="of HAProxy; without it there is no balancer here")
    parser.add_argument("--certificate", default="", metavar="FILE", help="that clients are shown")
    parser.add_argument("--virtual-ip", default="", help="that exactly one balancer must have")
    given = parser.parse_args()
    findings = list(servers(figures(given.figures))) if given.figures else []
    findings += certificate(given.certificate) if given.certificate and Path(given.certificate).exists() else []
    told: list[dict[str, object]] = [finding.report() for finding in findings]
    if given.virtual_ip:
        has = f" {given.virtual_ip}/" in process.run("ip", "-4", "-oneline", "address").output
        told.append({"severity": 0, "facts": {}, "one_of": {f"the address {given.virtual_ip}": has}})
    tell(told)
