"""What is wrong with an inventory that has load balancers is rejected in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.preflight.cases import Case, preflight_errors

pytestmark = pytest.mark.timeout(600)

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"
MINE = {"load_balancer_certificate": CERTIFICATE, "load_balancer_key": KEY}


def host(number: int, **variables: object) -> dict[str, Any]:
    """Return the variables of a host that is a balancer, too."""
    address = f"10.0.0.{number}"
    return {"private_address": address, "api_bind": address, "load_balancer_bind": [address], **MINE, **variables}


CASES = {
    "one": Case(host(1), []),
    "two": Case(host(2, load_balancer_virtual_ip="10.0.0.99/24", load_balancer_virtual_ip_interface="eth0"), []),
    "plain": Case(host(3, load_balancer_tls=False, load_balancer_certificate="", load_balancer_key=""), []),
    "acme": Case(
        host(4, load_balancer_certificate="", load_balancer_key="", load_balancer_certificate_file="/etc/x.pem"), []
    ),
    "no-key": Case(host(5, load_balancer_key=""), ["load_balancer_key its key", "both or none"]),
    "key-alone": Case(host(6, load_balancer_certificate=""), ["both or none"], hidden="c2VjcmV0"),
    "both-ways": Case(
        host(7, load_balancer_certificate_file="/etc/x.pem"), ["none with load_balancer_certificate_file"]
    ),
    "none": Case(
        host(8, load_balancer_certificate="", load_balancer_key=""),
        ["none has no load_balancer_certificate", "redis_tls_ca", "load_balancer_tls to false"],
    ),
    "a-name": Case(host(9, load_balancer_bind=["tasks.example.com"]), ["load_balancer_bind", "tasks.example.com"]),
    "no-prefix": Case(
        host(10, load_balancer_virtual_ip="10.0.0.99", load_balancer_virtual_ip_interface="eth0"),
        ["load_balancer_virtual_ip is '10.0.0.99'", "10.0.0.10/24"],
    ),
    "limit": Case(host(11, load_balancer_rate_limit=0), ["load_balancer_rate_limit is 0", "1 to 100000"]),
    "many": Case(host(12, load_balancer_max_connections=9000), ["load_balancer_max_connections is 9000", "8000"]),
    "same-port": Case(
        host(13, load_balancer_status_port=8000), ["want the same port", "load_balancer_status_port 8000"]
    ),
    "hidden-api": Case(
        host(14, api_bind="127.0.0.1"), ["api_bind of hidden-api is 127.0.0.1", "one, two", "private_address"]
    ),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    return preflight_errors(CASES, tmp_path_factory.mktemp("inventory"), balancers=tuple(CASES))


@pytest.mark.parametrize("name", CASES)
def test_each_case(messages: dict[str, str], name: str) -> None:
    CASES[name].judge(messages[name].replace("\n", " "))


def test_an_address_needs_two_to_float(tmp_path: Path) -> None:
    balancer = host(1, load_balancer_virtual_ip="10.0.0.99/24", load_balancer_virtual_ip_interface="eth0")
    said = preflight_errors({"a": Case(balancer, [])}, tmp_path, balancers=("a",))
    assert "there must be another balancer" in said["a"].replace("\n", " ")


def test_one_host_may_have_everything(tmp_path: Path) -> None:
    """The API may then stay on the loopback address."""
    said = preflight_errors({"a": Case(host(1, api_bind="127.0.0.1"), [])}, tmp_path, balancers=("a",))
    assert said["a"] == ""
