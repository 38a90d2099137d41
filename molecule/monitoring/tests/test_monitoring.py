"""Prometheus asks everybody, Alertmanager tells what is wrong and that it is over, and nobody else may look."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import testinfra
from conftest import CURL, EPHEMERAL, PROJECT, SCENARIO, Api, security_exposure, wait_for
from testinfra.host import Host

pytestmark = pytest.mark.timeout(600)

PROMETHEUS, ALERTMANAGER = "http://127.0.0.1:9090", "http://127.0.0.1:9093"
# Begins a command: curl with user and password, which come through a pipe, because sudo logs each command.
LOGIN = "sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K -"
EXPORTERS = ("prometheus-node-exporter", "prometheus-redis-exporter")
# What begins like this in an expression is a metric.
METRIC = re.compile(r"\b(?:celery|http|node|redis)_\w+|\bup\b")


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


def ask(host: Host, path: str) -> Any:
    """Return what Prometheus' API says."""
    return json.loads(host.check_output(f"{LOGIN} '{PROMETHEUS}/api/v1/{path}'"))["data"]


def value(host: Host, expression: str) -> float | None:
    """Return the first value of an expression now."""
    found = ask(host, f"query?query={quote(expression)}")["result"]
    return float(found[0]["value"][1]) if found else None


def firing(host: Host) -> set[str]:
    """Return the names of the alerts that Alertmanager shows."""
    alerts = json.loads(host.check_output(f"{LOGIN} '{ALERTMANAGER}/api/v2/alerts?active=true'"))
    return {alert["labels"]["alertname"] for alert in alerts}


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
        ("redis", "monitoring-main", "main", "up"),
        ("redis", "monitoring-main", "broker", "up"),
    }
    wait_for(lambda: targets() == wanted, "all targets up", 60)
    wait_for(lambda: value(main, "min(redis_up)") == 1, "both Redis seen")
    assert value(main, "max(celery_workers_expected)") == 2
    wait_for(lambda: value(main, "max(celery_workers_alive)") == 2, "both workers seen")


def test_nobody_else_may_look(main: Host, worker_host: Host) -> None:
    for url in (f"{PROMETHEUS}/metrics", f"{PROMETHEUS}/api/v1/targets", f"{ALERTMANAGER}/api/v2/alerts"):
        assert main.check_output(f"curl -s -o /dev/null -w '%{{http_code}}' {url}") == "401"
    for port in (9090, 9093, 9121):
        assert worker_host.run(f"timeout 3 bash -c '</dev/tcp/monitoring-main/{port}'").failed
    listeners = main.check_output("ss --no-header --listening --tcp --numeric '( sport >= :9090 and sport <= :9200 )'")
    assert {line.split()[3].rpartition(":")[0] for line in listeners.splitlines()} == {"127.0.0.1"}


def test_every_metric_of_an_alert_exists(main: Host) -> None:
    api = Api(main)
    api.wait(api.enqueue())
    main.run("redis-cli ping")  # without a password: an error for Redis to count
    expressions = [rule["query"] for group in ask(main, "rules")["groups"] for rule in group["rules"]]
    assert len(expressions) >= 20
    wanted = {name for text in expressions for name in METRIC.findall(re.sub(r'"[^"]*"', "", text))}
    assert len(wanted) >= 25

    def missing() -> set[str]:
        return wanted - set(ask(main, "label/__name__/values"))

    try:
        wait_for(lambda: not missing(), "all metrics", 60)
    finally:
        print("missing:", missing())  # noqa: T201 - what the failure is about


def test_the_alerts_know_when_to_fire(main: Host) -> None:
    tests = (SCENARIO / "tests/alerts_test.yml").read_text()
    command = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", "monitoring-main", "sh", "-c"]
    command += ["cat >/run/alerts_test.yml && promtool test rules /run/alerts_test.yml"]
    run = subprocess.run(command, input=tests, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "SUCCESS" in run.stdout
    assert main.file("/etc/prometheus/alerts.yml").exists


def test_a_calm_platform_raises_nothing_but_the_watchdog(main: Host) -> None:
    wait_for(lambda: "Watchdog" in firing(main), "the watchdog", 60)
    assert firing(main) - {"ClockWrong"} <= {"Watchdog", "RedisDenies"}


def test_alerts_reach_the_status_page_and_the_receiver(main: Host) -> None:
    for alert in ("RedisDown", "Watchdog"):
        command = f"amtool config routes test --config.file=/etc/prometheus/alertmanager.yml alertname={alert}"
        assert main.check_output(command) == "status page,team"
    wait_for(lambda: "Alertmanager was heard" in status_page(main), "the watchdog on the status page", 60)


def doctor() -> tuple[int, list[str]]:
    """Return the doctor's exit code and its sentences."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / "playbooks/doctor.yml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = r"(?:CRITICAL|warning) [\w-]+: [^\"'\n]+|Nothing is wrong"
    return run.returncode, re.findall(said, run.stdout)


def test_the_doctor_finds_nothing_in_calm() -> None:
    code, sentences = doctor()
    # The test hosts' clock is the machine's.
    assert sentences
    assert [sentence for sentence in sentences if "ClockWrong" not in sentence and "Nothing" not in sentence] == []
    assert code == 0


def test_the_doctor_names_the_cause_first(main: Host) -> None:
    main.check_output("systemctl stop redis-server@broker")
    try:
        code, sentences = doctor()
    finally:
        main.check_output("systemctl start redis-server@broker")
    assert code != 0
    assert sentences[0].startswith("CRITICAL monitoring-main: redis-server@broker is inactive -> ")
    assert any("the API does not reach the broker" in sentence for sentence in sentences)


def drill(main: Host, alert: str, fault: Callable[[], object], mend: Callable[[], object]) -> None:
    """Bring a fault, wait for its alert, mend it, and wait for the alert to end."""
    assert alert not in firing(main)
    fault()
    try:
        wait_for(lambda: alert in firing(main), alert, 180)
        wait_for(lambda: f"<b>{alert}</b>" in status_page(main), f"{alert} on the status page", 60)
    finally:
        mend()
    wait_for(lambda: alert not in firing(main), f"the end of {alert}", 300)
    wait_for(lambda: f"<b>{alert}</b>" not in status_page(main), f"the end of {alert} on the status page", 120)


def test_no_workers(main: Host, worker_host: Host) -> None:
    def all_workers(verb: str) -> None:
        for host in (main, worker_host):
            host.check_output(f"systemctl {verb} typesafe-celery")

    drill(main, "NoWorkers", lambda: all_workers("stop"), lambda: all_workers("start"))


def test_dead_letters(main: Host) -> None:
    login = "export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf)"
    clear = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", "--limit=monitoring-main"]
    clear += ["--extra-vars=verb=drop letters=all", str(PROJECT / "playbooks/dead_letters.yml")]
    drill(
        main,
        "DeadLetters",
        lambda: main.check_output(f"{login}; redis-cli -p 6380 LPUSH celery poison"),
        lambda: subprocess.run(clear, check=True, capture_output=True),
    )


@pytest.mark.parametrize("page", sorted((PROJECT / "docs/runbooks").glob("[A-Z]*[a-z].md")), ids=lambda page: page.stem)
def test_what_a_runbook_looks_at_can_be_seen(page: Path) -> None:
    look = page.read_text().partition("## Look")[2].partition("## Mend")[0]
    (commands,) = re.findall(r"```bash\n(.*?)```", look, re.DOTALL)
    run = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", "monitoring-main", "bash", "-e"]
    seen = subprocess.run(run, input=commands, capture_output=True, text=True, check=False, timeout=60)
    assert seen.returncode == 0, seen.stdout + seen.stderr


def test_the_units_are_sandboxed_and_tell_no_secret(main: Host, secret: Callable[[str], str]) -> None:
    for unit in ("prometheus", "prometheus-alertmanager", *EXPORTERS):
        assert security_exposure(main, f"{unit}.service") <= 1.5, unit
    lines = main.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager -u 'prometheus*'")
    for name in ("monitoring_password", "redis_exporter_password", "backend_api_key"):
        assert secret(name) not in lines
