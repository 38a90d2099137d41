"""What is wrong with an inventory whose logs go to one host is rejected in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.preflight.cases import Case, preflight_errors

pytestmark = pytest.mark.timeout(600)

AUTHORITY = {
    "redis_tls_ca": trustme.CA().cert_pem.bytes().decode(),
    "redis_tls_ca_key": "-----BEGIN PRIVATE KEY-----\nx",
}
CASES = {
    "good": Case({**AUTHORITY}, []),
    "keyless": Case({**AUTHORITY, "redis_tls_ca_key": ""}, ["group logs", "redis_tls_ca_key", "make secrets"]),
    "journal": Case({**AUTHORITY, "logs_journal_max_use": "1 GB"}, ["logs_journal_max_use is '1 GB'", "100M"]),
    "received": Case({**AUTHORITY, "logs_received_max_use": "much"}, ["logs_received_max_use is 'much'", "100M"]),
    "port": Case({**AUTHORITY, "logs_port": 70000}, ["logs_port is 70000", "1 to 65535"]),
    "old": Case({**AUTHORITY}, ["old is to take", "Debian 12", "Debian 13"], {"distribution_version": "12"}),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    return preflight_errors(CASES, tmp_path_factory.mktemp("inventory"), logs=("old",))


@pytest.mark.parametrize("name", CASES)
def test_each_case(messages: dict[str, str], name: str) -> None:
    CASES[name].judge(messages[name])


def test_two_hosts_for_the_logs(tmp_path: Path) -> None:
    two = preflight_errors(
        {name: Case({**AUTHORITY}, []) for name in ("first", "second")}, tmp_path, logs=("first", "second")
    )
    assert "The group logs has first, second" in two["first"]


def test_a_host_for_the_logs_without_a_firewall(tmp_path: Path) -> None:
    [told] = preflight_errors(
        {"open": Case({**AUTHORITY, "host_firewall": False}, [])}, tmp_path, logs=("open",)
    ).values()
    assert "host_firewall is false" in told
