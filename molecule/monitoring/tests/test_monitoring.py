"""Prometheus asks everybody, Alertmanager tells what is wrong and that it is over, and nobody else may look."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import testinfra
from conftest import (
    ALERTMANAGER,
    CURL,
    EPHEMERAL,
    PROJECT,
    PROMETHEUS,
    Api,
    ask,
    assert_alerts_fire,
    assert_seen,
    diagnose_by_page,
    firing,
    metrics,
    runbook_pages,
    security_exposure,
)
from testinfra.host import Host

from celery_durable.testing import wait_for

pytestmark = pytest.mark.timeout(600)

EXPORTERS = ("prometheus-node-exporter", "prometheus-redis-exporter")


@pytest.fixture(scope="session")
def main() -> Host:
    """The host with everything on it."""
    inventory = str(EPHEMERAL / "inventory")
    return testinfra.get_host("ansible://monitoring-main", ansible_inventory=inventory, sudo=True)


@pytest.fixture(scope="session")
def worker_host() -> Host:
    """The host that has workers alone."""
    inventory = str(EPHEMERAL / "inventory")
    return testinfra.get_host("ansible://monitoring-worker", ansible_inventory=inventory, sudo=True)


def value(host: Host, expression: str) -> float | None:
    """Return the first value of an expression now."""
    found = ask(host, f"query?query={quote(expression)}")["result"]
    return float(found[0]["value"][1]) if found else None


def status_page(host: Host) -> str:
    """Return the API's page for people."""
    return str(host.check_output(f"{CURL} {Api.url}/status"))


def test_everybody_is_asked_and_answers(main: Host) -> None:
    def targets() -> set[tuple[str, str, str, str]]:
        active = ask(main, "targets?state=active")["activeTargets"]
        labels = [(target["labels"], target["health"]) for target in active]
        return {(label["job"], label["host"], label.get("redis", ""), health) for label, health in labels}

    wanted = {
        ("prometheus", "monitoring-main", "", "up"),
        ("alertmanager", "monitoring-main", "", "up"),
        ("api", "monitoring-main", "", "up"),
        ("node", "monitoring-main", "", "up"),
        ("node", "monitoring-worker", "", "up"),
        ("node", "monitoring-supervisor", "", "up"),
        ("redis", "monitoring-main", "main", "up"),
        ("redis", "monitoring-main", "broker", "up"),
    }
    wait_for(lambda: targets() == wanted, "all targets up", 60)
    wait_for(lambda: value(main, "min(redis_up)") == 1, "both Redis seen", 30)
    assert value(main, "max(celery_workers_expected)") == 3
    wait_for(lambda: value(main, "max(celery_workers_alive)") == 3, "all workers seen", 30)


def test_nobody_else_may_look(main: Host, worker_host: Host) -> None:
    for url in (f"{PROMETHEUS}/metrics", f"{PROMETHEUS}/api/v1/targets", f"{ALERTMANAGER}/api/v2/alerts"):
        assert main.check_output(f"curl -s -o /dev/null -w '%{{http_code}}' {url}") == "401"
    for port in (9090, 9093, 9121):
        assert worker_host.run(f"timeout 3 bash -c '</dev/tcp/monitoring-main/{port}'").failed
    listeners = main.check_output("ss --no-header --listening --tcp --numeric '( sport >= :9090 and sport <= :9200 )'")
    assert {line.split()[3].rpartition(":")[0] for line in listeners.splitlines()} == {"127.0.0.1"}


def test_every_metric_of_an_alert_exists(main: Host) -> None:
    expressions = [rule["query"] for group in ask(main, "rules")["groups"] for rule in group["rules"]]
    assert len(expressions) >= 20
    wanted = {name for text in expressions for name in metrics(text)}
    assert len(wanted) >= 25
    # The sample has no schedule, so no beat: molecule/foreign sees that one.
    assert_seen(main, wanted - {"celery_beat_active"})


def test_the_alerts_know_when_to_fire() -> None:
    assert_alerts_fire("monitoring-main")


def test_a_calm_platform_raises_nothing_but_the_watchdog(main: Host) -> None:
    wait_for(lambda: "Watchdog" in firing(main), "the watchdog", 60)
    assert firing(main) - {"ClockWrong"} <= {"Watchdog", "RedisDenies"}


def test_alerts_reach_the_status_page_and_the_receiver(main: Host) -> None:
    for alert in ("RedisDown", "Watchdog"):
        command = f"amtool config routes test --config.file=/etc/prometheus/alertmanager.yml alertname={alert}"
        assert main.check_output(command) == "status page,team"
    wait_for(lambda: "Alertmanager was heard" in status_page(main), "the watchdog on the status page", 60)


@pytest.mark.long
def test_an_alert_comes_to_the_status_page_and_leaves_it(main: Host) -> None:
    login = "export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf)"
    clear = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", "--limit=monitoring-main"]
    clear += ["--extra-vars=operation=drop task=all confirm=yes", str(PROJECT / "playbooks/diagnose/dead_letters.yml")]
    main.check_output(f"{login}; redis-cli -p 6380 LPUSH celery poison")
    try:
        wait_for(lambda: "<b>DeadLetters</b>" in status_page(main), "the alert on the status page", 180)
    finally:
        subprocess.run(clear, check=True, capture_output=True)
    wait_for(lambda: "<b>DeadLetters</b>" not in status_page(main), "the end of the alert on the status page", 300)


# Those of replicas and of balancers are looked at where there are some.
PAGES = [
    page for group, pages in runbook_pages().items() if group not in ("replication", "balancers") for page in pages
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_runbook_looks_at_can_be_seen(page: Path) -> None:
    diagnose_by_page(page, "monitoring-main")


def test_the_units_are_sandboxed_and_tell_no_secret(main: Host, secret: Callable[[str], str]) -> None:
    for unit in ("prometheus", "prometheus-alertmanager", *EXPORTERS):
        assert security_exposure(main, f"{unit}.service") <= 1.5, unit
    lines = main.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager -u 'prometheus*'")
    for name in ("monitoring_password", "redis_exporter_password", "backend_api_key", "metrics_api_key"):
        assert secret(name) not in lines


def test_prometheus_has_its_own_key_and_the_exporters_have_none(main: Host, secret: Callable[[str], str]) -> None:
    assert main.file("/etc/prometheus/secrets/api_key").content_string == secret("metrics_api_key")
    for unit in EXPORTERS:
        number = main.check_output(f"systemctl show --value --property MainPID {unit}")
        assert main.run(f"nsenter --target {number} --mount cat /etc/prometheus/secrets/api_key").failed
