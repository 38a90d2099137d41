"""What the host roles reject before anything is changed: wrong values, and those that would lock Ansible out."""

from __future__ import annotations

import pytest

from tests.preflight.cases import Case, preflight_errors_of_many

# All cases are one run of Ansible, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(600)

SECRET = "a-login-password-1"  # noqa: S105 - wrong on purpose
CASES = {
    "namesake": Case({}, ["namesake and other-namesake", "same host name, web"], {"nodename": "web"}),
    "other-namesake": Case({}, ["other-namesake and namesake", "same host name, web"], {"nodename": "web"}),
    "login-with-a-password": Case(
        {"ansible_password": SECRET}, ["with a password", "ssh-copy-id", "host_hardening"], hidden=SECRET
    ),
    "login-with-a-password-by-its-old-name": Case(
        {"ansible_ssh_pass": SECRET}, ["with a password", "ssh-copy-id"], hidden=SECRET
    ),
    "root-locked-out": Case(
        {"hardening_ssh_permit_root_login": "no"},
        ["hardening_ssh_permit_root_login is no", "as root", "prohibit-password"],
        {"user": "root"},
    ),
    "root-with-a-password": Case(
        {"hardening_ssh_permit_root_login": "yes"}, ["hardening_ssh_permit_root_login", "yes", "prohibit-password"]
    ),
    "tunnels": Case({"hardening_ssh_tcp_forwarding": "remote"}, ["hardening_ssh_tcp_forwarding", "remote", "local"]),
    # The kernel would take none of these; a typed line break would set something else.
    "kernel-parameter-that-is-a-switch": Case(
        {"hardening_sysctl": {"kernel.dmesg_restrict": True}},
        ["hardening_sysctl", "kernel.dmesg_restrict", "True", "number"],
    ),
    "kernel-parameter-in-a-list": Case(
        {"hardening_sysctl": {"net.ipv4.ip_local_port_range": [1024, 65000]}}, ["ip_local_port_range", "a text like"]
    ),
    "kernel-parameter-without-a-value": Case(
        {"redis_sysctl": {"vm.swappiness": ""}}, ["redis_sysctl", "vm.swappiness"]
    ),
    "two-kernel-parameters-in-one": Case(
        {"hardening_sysctl": {"vm.swappiness": "1\nkernel.sysrq = 1"}}, ["hardening_sysctl", "vm.swappiness"]
    ),
    "kernel-parameter-with-a-space": Case(
        {"hardening_sysctl": {"vm swappiness": 1}}, ["hardening_sysctl", "vm swappiness"]
    ),
    "keys": Case({"hardening_ssh_max_auth_tries": 1}, ["hardening_ssh_max_auth_tries is 1", "at least 2"]),
    "another-ssh-port": Case({"firewall_ssh_port": 2222}, ["firewall_ssh_port is 2222", "through port 22", "lock"]),
    "ssh-port-that-is-none": Case({"firewall_ssh_port": 0}, ["firewall_ssh_port is 0", "65535"]),
    "ssh-from-elsewhere": Case(
        {"firewall_ssh_from": ["192.0.2.0/24"]}, ["from 10.0.0.1", "firewall_ssh_from (192.0.2.0/24)", "lock"]
    ),
    "ssh-from-nowhere": Case({"firewall_ssh_from": []}, ["from 10.0.0.1", "firewall_ssh_from (empty)", "lock"]),
    "ssh-from-a-name": Case({"firewall_ssh_from": ["office.example.com"]}, ["firewall_ssh_from", "office.example.com"]),
    "no-capability": Case(
        {}, ["Operation not permitted", "NET_ADMIN", "host_firewall"], {"nftables_error": "Operation not permitted"}
    ),
    "client-that-is-a-name": Case(
        {"api_bind": "0.0.0.0", "api_clients": ["balancer"]},  # noqa: S104 - the reason for the rule
        ["'api'", "balancer", "10.0.0.0/24"],
    ),
    "clients-that-are-a-text": Case(
        {"host_firewall_allow": [{"name": "metrics", "port": 9100, "from": "10.0.0.1"}]},
        ["'metrics'", "from 10.0.0.1,", "a list, like [10.0.0.5]"],
    ),
    "clients-left-empty": Case(
        {"host_firewall_allow": [{"name": "metrics", "port": 9100, "from": None}]}, ["'metrics'", "from None", "a list"]
    ),
    "proxy-that-is-a-name": Case({"trusted_proxies": ["ingress"]}, ["trusted_proxies", "'ingress'", "10.0.0.0/24"]),
    "proxies-that-are-everybody": Case({"trusted_proxies": ["*"]}, ["trusted_proxies", "'*'"]),
    "rejects-at-each-restart": Case(
        {"reject_without_workers_seconds": 5}, ["reject_without_workers_seconds is 5", "60"]
    ),
    "no-connections": Case({"client_connection_limit": 0}, ["client_connection_limit is 0", "at least 1"]),
    "connections-of-udp": Case(
        {"host_firewall_allow": [{"name": "dns", "port": 53, "protocol": "udp", "connections": 3}]}, ["'dns'", "tcp"]
    ),
    "network-with-host-bits": Case(
        {"flower_bind": "10.0.0.9", "flower_clients": ["10.0.0.9/24"]}, ["'flower'", "10.0.0.9/24"]
    ),
    "extra-port-that-is-none": Case(
        {"host_firewall_allow": [{"name": "metrics", "port": 91000}]}, ["'metrics'", "91000", "65535"]
    ),
    "extra-port-with-a-quote": Case(
        {"host_firewall_allow": [{"name": 'x" accept', "port": 1}]}, ["firewall_allow", "letters"]
    ),
    "unknown-protocol": Case(
        {"host_firewall_allow": [{"name": "metrics", "port": 9100, "protocol": "sctp"}]}, ["sctp", "tcp, udp, vrrp"]
    ),
    "no-port": Case({"host_firewall_allow": [{"name": "metrics"}]}, ["'metrics'", "not given", "65535"]),
    "unknown-forward-policy": Case({"firewall_forward": "reject"}, ["firewall_forward", "reject", "drop"]),
    "client-of-redis-without-an-address": Case(
        {"redis_bind": ["0.0.0.0"]},  # noqa: S104 - the reason for the rule
        ["silent-peer", "Redis", "private_address"],
    ),
}
GOOD = {
    "good": Case({}, []),
    "root-with-a-key": Case({}, [], {"user": "root"}),
    "no-firewall": Case({"host_firewall": False}, [], {"nftables_error": "Operation not permitted"}),
    "no-hardening": Case({"host_hardening": False, "ansible_password": SECRET}, []),
    "silent-peer": Case({}, [], {"default_ipv4": {}}),
    "kernel-parameters": Case(
        {
            "hardening_sysctl": {
                "vm.swappiness": 1,
                "net/ipv4/ip_forward": "0",
                "net.ipv4.ip_local_port_range": "1024 65000",
            }
        },
        [],
    ),
    "overlapping-networks": Case({"firewall_ssh_from": ["10.0.0.0/8", "10.0.0.1", "fd00::/8"]}, []),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return preflight_errors_of_many({**CASES, **GOOD}, tmp_path_factory.mktemp("inventory"))


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_is_accepted(errors: dict[str, str], name: str) -> None:
    assert errors[name] == ""


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_rejected_in_one_clear_sentence(errors: dict[str, str], name: str) -> None:
    CASES[name].judge(errors[name])
