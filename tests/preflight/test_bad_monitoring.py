"""What is wrong with an inventory that has a monitoring host is rejected in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.preflight.cases import Case, preflight_errors

pytestmark = pytest.mark.timeout(600)

WEAK = "ab" * 12
WATCHES = "prometheus-and-alertmanager-on-one-port"
CASES = {
    "reachable": Case({"api_bind": "10.0.0.9"}, []),
    "unreachable": Case({}, ["api_bind of unreachable is 127.0.0.1", "watcher"]),
    "watcher": Case({"api_bind": "10.0.0.9"}, []),
    "weak": Case(
        {"monitoring_password": WEAK, "api_bind": "10.0.0.9"}, ["monitoring_password", "too weak"], hidden=WEAK
    ),
    "times": Case({"monitoring_retention_size": "5", "api_bind": "10.0.0.9"}, ["monitoring_retention_size '5'", "5GB"]),
    "in-clear": Case(
        {"api_bind": "10.0.0.9", "private_network": False},
        ["watcher", "metrics_api_key to in-clear in clear text", "private_network"],
    ),
    "redis-in-clear": Case(
        {"redis_bind": ["127.0.0.1", "10.0.0.9"], "api_bind": "10.0.0.9", "private_network": False},
        ["private_network"],
    ),
    "no-key": Case({"metrics_api_key": "", "api_bind": "10.0.0.9"}, ["metrics_api_key", "`make secrets` writes it"]),
    "same-key": Case(
        {"metrics_api_key": "{{ backend_api_key }}", "api_bind": "10.0.0.9"}, ["the same as backend_api_key"]
    ),
    "exporter-and-api-on-one-port": Case(
        {"api_bind": "10.0.0.9", "api_port": 9100}, ["same port", "api_port 9100", "exporters_node_port 9100"]
    ),
    "exporter-and-flower-on-one-port": Case(
        {"api_bind": "10.0.0.9", "flower_port": 9121}, ["same port", "flower_port 9121", "exporters_redis_port 9121"]
    ),
    "prometheus-and-alertmanager-on-one-port": Case(
        {"api_bind": "10.0.0.9", "monitoring_prometheus_port": 9093}, ["same port", "monitoring_prometheus_port 9093"]
    ),
    "port": Case({"exporters_node_port": 0, "api_bind": "10.0.0.9"}, ["exporters_node_port is 0", "1 to 65535"]),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    return preflight_errors(
        CASES, tmp_path_factory.mktemp("inventory"), monitoring=("watcher", "weak", "times", WATCHES)
    )


def test_ansible_says_the_same_with_a_process_for_each_task(tmp_path: Path) -> None:
    """All tests here run tests/plugins/strategy/inline.py; this is what runs on a user's machine."""
    cases = {name: CASES[name] for name in ("unreachable", "watcher", "weak", "port")}
    watching = ("watcher", "weak")
    assert preflight_errors(cases, tmp_path, monitoring=watching, ANSIBLE_STRATEGY="linear") == preflight_errors(
        cases, tmp_path, monitoring=watching
    )


@pytest.mark.parametrize("name", CASES)
def test_each_case(messages: dict[str, str], name: str) -> None:
    CASES[name].judge(messages[name])
