"""Prometheus asks servers and sentinels of a replicated Redis, and knows when to tell of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import testinfra
from conftest import EPHEMERAL, PROJECT, ask, assert_alerts_fire, diagnose_by_page, firing, metrics, runbook_pages
from shared.drills.hosts import present_hosts
from testinfra.host import Host

from celery_durable.testing import wait_for

pytestmark = pytest.mark.timeout(600)

HOSTS = ("drill-redis-1", "drill-redis-2", "drill-redis-3")


@pytest.fixture(scope="session")
def watch() -> Host:
    """The host with Prometheus."""
    return testinfra.get_host("ansible://drill-watch", ansible_inventory=str(EPHEMERAL / "inventory"), sudo=True)


def test_every_server_and_sentinel_is_asked_and_answers(watch: Host) -> None:
    wanted = {(host, redis) for host in HOSTS for redis in ("main", "broker", "sentinel")}

    def answering() -> set[tuple[str, str]]:
        found = ask(watch, "query?query=redis_up==1")["result"]
        return {(series["metric"]["host"], series["metric"]["redis"]) for series in found}

    wait_for(lambda: answering() == wanted, "all Redis and sentinels", 60)


def test_every_metric_of_an_alert_of_replication_exists(watch: Host) -> None:
    (group,) = (group for group in ask(watch, "rules")["groups"] if group["name"] == "replication")
    wanted = {name for rule in group["rules"] for name in metrics(rule["query"])}
    assert len(wanted) >= 6
    wait_for(lambda: wanted <= set(ask(watch, "label/__name__/values")), f"all of {wanted}", 30)


def test_the_alerts_of_replication_know_when_to_fire() -> None:
    assert_alerts_fire("drill-watch")


@pytest.mark.timeout(1200)
def test_a_calm_cluster_raises_nothing_but_the_watchdog(watch: Host) -> None:
    # A failover of the tests before is told of for ten minutes.
    wait_for(lambda: firing(watch) - {"ClockWrong"} == {"Watchdog"}, "calm", 900)


def test_maintenance_takes_no_primary_away() -> None:
    host = present_hosts()["primary"]
    play = str(PROJECT / "playbooks/runbooks/planned_maintenance.yml")
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", play]
    command += ["--extra-vars", f"operation=begin host={host} evidence_directory={EPHEMERAL / 'evidence'}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode != 0
    assert f"{host} has the primary of" in run.stdout + run.stderr
    assert "playbooks/ops/promote_redis.yml -e to=" in run.stdout + run.stderr
    # Nothing goes on at the other hosts.
    assert "TASK [Examine all hosts]" not in run.stdout


@pytest.mark.parametrize("page", runbook_pages()["replication"], ids=lambda page: page.stem)
def test_what_a_runbook_of_replication_looks_at_can_be_seen(page: Path) -> None:
    diagnose_by_page(page, HOSTS[0])


# There is no virtual IP here; molecule/load_balancer has one.
BALANCERS = [page for page in runbook_pages()["balancers"] if page.stem != "VirtualIPMisplaced"]


@pytest.mark.parametrize("page", BALANCERS, ids=lambda page: page.stem)
def test_what_a_runbook_of_balancers_looks_at_can_be_seen(page: Path) -> None:
    diagnose_by_page(page, "drill-watch")
