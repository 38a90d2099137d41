"""The whole platform on one host, installed by site.yml: what only shows when all parts are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable

import pytest
from conftest import EPHEMERAL, PROJECT, Api, security_exposure
from testinfra.host import Host

from celery_durable.testing import wait_for

Converge = Callable[..., subprocess.CompletedProcess[str]]
# A run that changes nothing takes about 0.15 s for each task.
TASKS = 130
# Everything that may listen; SSH is the test host's own.
LISTENERS = {f"127.0.0.1:{port}" for port in (6379, 6380, 8000, 5555)} | {"[::1]:6379", "[::1]:6380"}
SSH = {"0.0.0.0:22", "[::]:22"}


def test_only_what_is_declared_listens_and_only_on_the_loopback_address(host: Host) -> None:
    lines = host.check_output("ss --no-header --listening --tcp --numeric").splitlines()
    assert {line.split()[3] for line in lines} - SSH == LISTENERS


@pytest.mark.parametrize(
    "unit", ["redis-server", "redis-server@broker", "typesafe-celery", "typesafe-api", "typesafe-flower"]
)
def test_every_unit_is_up_at_boot_and_tightly_sandboxed(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled
    assert security_exposure(host, f"{unit}.service") <= 1.5


def test_nothing_in_the_journal_tells_a_secret(host: Host, secret: Callable[[str], str]) -> None:
    journal = host.check_output("journalctl --no-pager")
    assert secret("redis_password") not in journal
    assert secret("flower_password") not in journal


@pytest.mark.hosts("site-debian13")
def test_a_second_run_changes_nothing_within_its_budget_of_tasks_and_shows_no_secret(converge: Converge) -> None:
    again = converge("-vvv", "--diff")
    assert again.returncode == 0, again.stdout[-4000:]
    made = {file.name: file.read_text().split()[0] for file in (EPHEMERAL / "secrets").iterdir()}
    assert [name for name, value in made.items() if value in again.stdout] == []
    counts = {
        key: int(value)
        for key, value in re.findall(r"(ok|changed|skipped)=(\d+)", again.stdout.partition("PLAY RECAP")[2])
    }
    assert counts["changed"] == 0
    assert counts["ok"] + counts["skipped"] <= TASKS


def test_the_guides_commands_work_on_the_host(host: Host) -> None:
    assert host.run("systemctl status typesafe-celery").succeeded
    assert "ready." in host.check_output("journalctl --no-pager -u typesafe-celery")
    assert "/opt/typesafe/backend/venv/bin/celery" in host.check_output("ps aux")
    inspect = "cd /opt/typesafe/backend && sudo -u typesafe venv/bin/celery -A app.agents.worker inspect ping"
    assert "pong" in host.check_output(inspect)


CANVAS = """
from celery import chain, chord, group
from app.agents.worker import celery_app
give = celery_app.tasks["celery.accumulate"]
parts = chord([give.s(number) for number in range(3)], give.s())
found = chain(give.s(1), give.s(), group(give.s(2), give.s(3)), give.s()).apply_async().get(timeout=60)
assert found == [[[[[1]], 2], [[[1]], 3]]], found
found = chord([parts, parts.clone(), give.s(9)], give.s()).apply_async().get(timeout=60)
assert found == [[[[[0], [1], [2]]], [[[0], [1], [2]]], [9]]], found
assert group(give.s(number) for number in range(20)).apply_async().get(timeout=60) == [[number] for number in range(20)]
"""


@pytest.mark.parametrize(
    ("user", "service"), [("typesafe", "worker"), ("typesafe-api", "api"), ("typesafe-operator", "operator")]
)
def test_groups_and_chords_end_whoever_sends_them(host: Host, user: str, service: str) -> None:
    secrets = f"SECRETS_DIRECTORY=/etc/typesafe/secrets/{service}"
    run = f"cd /opt/typesafe/backend && sudo -u {user} {secrets} venv/bin/python -c {shlex.quote(CANVAS)}"
    host.run_expect([0], run)


def test_an_operator_looks_after_the_dead_letters(host: Host, api: Api, name: str) -> None:
    def dead_letters(**variables: str) -> str:
        command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--limit={name}"]
        command += [f"--extra-vars={json.dumps(variables)}"]
        result = subprocess.run(
            [*command, str(PROJECT / "playbooks/diagnose/dead_letters.yml")],
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout if result.returncode == 0 else f"failed: {result.stdout}"

    login = "export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf)"
    host.run_expect([0], f"{login}; redis-cli -p 6380 LPUSH celery poison")
    api.wait(api.enqueue())
    wait_for(lambda: "1 dead letters." in dead_letters(), "the dead letter", 30)
    assert dead_letters(operation="drop").startswith("failed")
    assert "Nothing was changed." in dead_letters(operation="drop", task="all")
    assert "is deleted" in dead_letters(operation="drop", task="all", confirm="yes")
    assert "0 dead letters." in dead_letters()


def test_tasks_that_wait_while_the_host_reboots_run_after_it(host: Host, api: Api, reboot: Callable[[], None]) -> None:
    host.run_expect([0], "systemctl stop typesafe-celery")
    waiting = [api.enqueue({"number": number}) for number in range(5)]
    reboot()
    wait_for(lambda: api.get("/health/celery").status_code == 200, "a worker after the reboot", 60)
    for task in waiting:
        api.wait(task, seconds=60)


@pytest.mark.hosts("site-debian13")
def test_a_tag_installs_its_part_alone(host: Host, converge: Converge) -> None:
    units = "systemctl show --value --property MainPID typesafe-celery typesafe-api typesafe-flower redis-server"
    before = host.check_output(units)
    # Both parts have a change by that: Redis' configuration, and a setting of the application.
    run = converge("--tags=redis", stack_redis_maxmemory="200mb", rate_limit="999/second")
    assert run.returncode == 0, run.stdout
    assert host.file("/etc/redis/redis.conf").contains("^maxmemory 209715200$")
    assert not host.file("/etc/typesafe/backend.env").contains("999/second")
    assert host.check_output(units) == before
    host.check_output("systemctl disable redis-server@broker")  # by hand: the next run enables it again
    assert converge("--tags=redis").returncode == 0
    assert host.service("redis-server@broker").is_enabled


@pytest.mark.hosts("site-debian13")
def test_a_change_that_breaks_a_rule_is_rejected_before_anything_changes(host: Host, converge: Converge) -> None:
    before = host.check_output("stat -c %Z /etc/redis/redis.conf /etc/typesafe/backend.env")
    rejected = converge(task_soft_time_limit=60)
    assert rejected.returncode != 0
    assert "task_soft_time_limit is 60" in rejected.stdout
    assert "changed=0" in rejected.stdout
    assert host.check_output("stat -c %Z /etc/redis/redis.conf /etc/typesafe/backend.env") == before


@pytest.mark.hosts("site-debian13")
def test_a_queue_that_holds_tasks_is_not_given_up(host: Host, name: str, api: Api, converge: Converge) -> None:
    def rights() -> str:
        socket, file = "/run/redis-broker/redis-server.sock", "/etc/redis/redis-broker.conf"
        password = host.check_output(f"sed -n 's/^requirepass //p' {file}").strip()
        return str(host.check_output(f"REDISCLI_AUTH={password} redis-cli -s {socket} ACL LIST"))

    pool = {"name": "default", "queues": ["celery", "reports"], "concurrency": 2}
    routes = {"app.agents.tasks.example_task.example_agent_task": "reports"}
    host.check_output("usermod --shell /bin/bash typesafe-flower")  # by hand: the next run corrects it
    added = converge(task_routes=routes, celery_worker_pools=[pool])
    assert added.returncode == 0, added.stdout[-4000:]
    assert host.user("typesafe-flower").shell == "/usr/sbin/nologin"
    assert "~reports" in rights()
    host.check_output("systemctl stop typesafe-celery")
    waiting = api.enqueue({"key": "value"})
    rejected = converge()
    assert rejected.returncode != 0
    assert "The queue 'reports' holds 1 tasks, but no pool and no route of the inventory names it" in rejected.stdout
    assert "changed=0" in rejected.stdout
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--limit={name}"]
    command += [str(PROJECT / "playbooks/ops/move_queue.yml"), "-e", "from=reports to=celery confirm=yes"]
    moved = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "1 entries of reports are taken out" in moved.stdout, moved.stdout
    removed = converge()
    assert removed.returncode == 0, removed.stdout[-4000:]
    assert "~reports" not in rights()
    api.wait(waiting)


@pytest.mark.hosts("site-debian12")
def test_a_new_password_and_the_guides_topology_reach_everything_and_no_output_shows_a_secret(
    host: Host, api: Api, converge: Converge, secret: Callable[[str], str]
) -> None:
    """Last in this file: the hosts have another password and topology afterwards."""
    old, new = secret("redis_password"), secret("redis_password")[::-1]
    changed = converge("-vvv", "--diff", redis_password=new, redis_topology="shared")
    assert changed.returncode == 0, changed.stdout
    for password in (old, new, secret("flower_password")):
        assert password not in changed.stdout
    assert "WRONGPASS" in host.run(f"REDISCLI_AUTH={old} redis-cli -p 6379 PING 2>&1").stdout
    host.run_expect([0], "systemctl stop redis-server@broker")
    api.wait(api.enqueue(), seconds=60)
