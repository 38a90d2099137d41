"""A balancer sends requests to the services that it can reach, where they listen."""

from tests.support import load_plugin

balancers = load_plugin("roles/stack/filter_plugins/stack_balancers.py")
HOSTS = {
    "bound": {"api_bind": "10.0.0.21", "api_port": 9000},
    "everywhere": {"api_bind": "0.0.0.0", "private_address": "10.0.0.22"},  # noqa: S104 - what an inventory may say
    "by-its-route": {"api_bind": "[::]", "ansible_facts": {"default_ipv4": {"address": "10.0.0.23"}}},
    "closed": {},
    "version-6": {"api_bind": "[fd00::1]"},
}


def test_each_where_it_listens() -> None:
    assert balancers.balancer_servers(list(HOSTS), HOSTS, "elsewhere", "api", 8000) == [
        {"name": "bound", "address": "10.0.0.21:9000"},
        {"name": "everywhere", "address": "10.0.0.22:8000"},
        {"name": "by-its-route", "address": "10.0.0.23:8000"},
        {"name": "version-6", "address": "[fd00::1]:8000"},
    ]


def test_a_loopback_address_is_for_its_own_host() -> None:
    assert balancers.balancer_servers(["closed"], HOSTS, "closed", "api", 8000) == [
        {"name": "closed", "address": "127.0.0.1:8000"}
    ]
