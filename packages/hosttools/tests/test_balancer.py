"""What the doctor finds about a balancer."""

import json
import subprocess
from pathlib import Path

import pytest

from hosttools import balancer, findings
from tests.support import load_plugin

filters = load_plugin("roles/stack/filter_plugins/stack_doctor.py")


def figures(**states: int) -> str:
    """Return HAProxy's figures: servers of the API, 1 is up."""
    lines = []
    for server, up in states.items():
        labels = f'proxy="api",server="{server}"'
        lines += [
            f'haproxy_server_status{{{labels},state="DOWN"}} {1 - up}',
            f'haproxy_server_status{{{labels},state="UP"}} {up}',
            f'haproxy_server_check_status{{{labels},state="L7STS"}} {1 - up}',
            f'haproxy_server_check_status{{{labels},state="L7OK"}} {up}',
            f"haproxy_server_check_code{{{labels}}} {200 if up else 503}",
        ]
    return "\n".join(lines)


def test_nothing_is_wrong_with_servers_that_are_up() -> None:
    assert list(balancer.servers(figures(a=1, b=1))) == []


def test_a_server_that_is_away_is_named_with_its_reason() -> None:
    (away,) = balancer.servers(figures(a=1, b=0))
    assert away.what == "the balancer sends nothing to api on b: its check says L7STS 503"
    assert (away.severity, away.runbook) == (findings.WARNING, "BackendDown")


def test_no_server_is_critical() -> None:
    *_, none = balancer.servers(figures(a=0, b=0))
    assert (none.severity, none.runbook) == (findings.CRITICAL, "NoBackend")


def test_a_silent_balancer_is_told() -> None:
    assert [finding.runbook for finding in balancer.servers("")] == ["BalancerDown"]


@pytest.mark.parametrize(("days", "severity"), [(2, 1), (10, 2), (60, None)])
def test_the_end_of_a_certificate_is_told(tmp_path: Path, days: int, severity: int | None) -> None:
    file = tmp_path / "platform.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj /CN=a -keyout /dev/null"
    subprocess.run(["openssl", *words.split(), "-days", str(days), "-out", str(file)], check=True, capture_output=True)
    assert [finding.severity for finding in balancer.certificate(str(file))] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("having", "said"),
    [
        ("a", []),
        ("", ["CRITICAL a: nobody has the address 10.0.0.9 -> docs/runbooks/VirtualIPMisplaced.md"]),
        ("ab", ["CRITICAL a: a and b have the address 10.0.0.9 -> docs/runbooks/VirtualIPMisplaced.md"]),
    ],
)
def test_a_virtual_ip_has_exactly_one_holder(having: str, said: list[str]) -> None:
    hosts = []
    for name in "ab":
        told = {"severity": 0, "facts": {}, "one_of": {"the address 10.0.0.9": name in having}}
        hosts.append(
            {
                "inventory_hostname": name,
                "doctor_examined": {"stdout": "[]"},
                "doctor_balancer": {"rc": 0, "stdout": json.dumps([told])},
            }
        )
    assert filters.doctor_sentences(filters.doctor_findings(hosts)) == said
