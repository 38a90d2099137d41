"""The guide's production configuration checklist, point by point, on an installed host."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Api, Process
from testinfra.host import Host

INSTANCES = {6379: "/etc/redis/redis.conf", 6380: "/etc/redis/redis-broker.conf"}
UNITS = ["typesafe-celery.service", "typesafe-api.service", "typesafe-flower.service"]
# Logs that cannot grow: a record for each user, and a file that each run of apt writes anew.
REWRITTEN = {"/var/log/lastlog", "/var/log/apt/eipp.log.xz"}
each_redis = pytest.mark.parametrize("port", INSTANCES)


@pytest.fixture
def redis(host: Host) -> Callable[[int, str], str]:
    """Ask one Redis instance something, with the password that its own configuration names."""

    def ask(port: int, command: str) -> str:
        login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {INSTANCES[port]})"
        return str(host.check_output(f"{login}; redis-cli -p {port} {command}"))

    return ask


@pytest.fixture
def celery_settings(host: Host) -> dict[str, Any]:
    """The settings that the deployed worker runs with."""
    names = ["task_soft_time_limit", "task_time_limit", "result_expires", "worker_max_tasks_per_child"]
    code = "import json; from app.agents.worker import celery_app as celery; "
    code += f"print(json.dumps([celery.conf[name] for name in {names}]))"
    run = f"cd /opt/typesafe/backend && sudo -u typesafe venv/bin/python -c {shlex.quote(code)}"
    return dict(zip(names, json.loads(host.check_output(run)), strict=True))


@each_redis
def test_redis_configured_with_persistence_aof_rdb(redis: Callable[[int, str], str], port: int) -> None:
    persistence = redis(port, "INFO persistence")
    assert "aof_enabled:1" in persistence
    assert "aof_last_write_status:ok" in persistence
    assert "rdb_last_bgsave_status:ok" in persistence
    assert "900 1 300 10 60 10000" in redis(port, "CONFIG GET save")


def test_redis_maxmemory_policy_set(redis: Callable[[int, str], str]) -> None:
    assert "maxmemory_policy:allkeys-lru" in redis(6379, "INFO memory")
    # The queue's own Redis must never evict: it would drop accepted tasks without an error.
    assert "maxmemory_policy:noeviction" in redis(6380, "INFO memory")
    for port in INSTANCES:
        assert "maxmemory:0\r" not in redis(port, "INFO memory")


@each_redis
def test_redis_password_authentication_enabled(host: Host, redis: Callable[[int, str], str], port: int) -> None:
    assert "NOAUTH" in host.run(f"redis-cli -p {port} PING").stdout
    assert "WRONGPASS" in host.run(f"REDISCLI_AUTH=guess redis-cli -p {port} PING 2>&1").stdout
    assert redis(port, "PING") == "PONG"


def test_celery_workers_run_as_non_root_user(host: Host, process: Callable[[str], Process]) -> None:
    pid = process("typesafe-celery").pid
    family = [str(pid), *host.check_output(f"pgrep --parent {pid}").split()]
    owners = {host.check_output(f"stat -c %U /proc/{member}") for member in family}
    assert owners == {"typesafe"}


def test_worker_concurrency_tuned_based_on_cpu_cores(host: Host, process: Callable[[str], Process]) -> None:
    # This scenario leaves celery_worker_concurrency alone: twice the processors, because agent tasks mostly wait.
    children = host.check_output(f"pgrep --parent {process('typesafe-celery').pid}").split()
    assert len(children) == 2 * int(host.check_output("nproc"))


def test_task_time_limits_configured_soft_55s_hard_60s(celery_settings: dict[str, Any]) -> None:
    assert (celery_settings["task_soft_time_limit"], celery_settings["task_time_limit"]) == (55, 60)


def test_result_expiration_set_1_hour_default(
    api: Api, redis: Callable[[int, str], str], celery_settings: dict[str, Any]
) -> None:
    assert celery_settings["result_expires"] == 3600
    task = api.enqueue()
    api.wait(task)
    assert 3500 < int(redis(6379, f"-n 1 TTL celery-task-meta-{task}")) <= 3600


def test_automatic_worker_restart_after_n_tasks_1000_default(celery_settings: dict[str, Any]) -> None:
    assert celery_settings["worker_max_tasks_per_child"] == 1000


def test_monitoring_and_alerting_configured(host: Host, api: Api) -> None:
    assert api.get("/metrics/celery").json()["workers"]["count"] == 1
    assert api.get("/health/celery").json()["status"] == "healthy"
    login = "$(cat /etc/typesafe-flower/FLOWER_BASIC_AUTH)"
    workers = host.check_output(f'curl -s -u "{login}" http://127.0.0.1:5555/flower/api/workers')
    assert list(json.loads(workers)) == [f"default@{host.check_output('hostname')}"]


def test_log_rotation_enabled(host: Host) -> None:
    """Services write to the journal, which is bounded; every other log file is rotated or bounded by its writer."""
    assert "SystemMaxUse=1G" in host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "/var/log/journal" in host.check_output("journalctl --header | grep 'File path'")
    assert host.service("logrotate.timer").is_enabled
    rotated = re.findall(r"considering log (\S+)", host.run("logrotate --debug /etc/logrotate.conf").stderr)
    written = host.check_output("find /var/log -type f -size +0 -not -path '/var/log/journal/*'").splitlines()
    assert set(written) - {*rotated, *REWRITTEN} == set()
    for instance in ("redis-server", "redis-server@broker"):
        assert "Ready to accept" in host.check_output(f"journalctl --unit={instance} --output=cat")


@pytest.mark.parametrize("unit", UNITS)
def test_environment_variables_secured(
    host: Host, process: Callable[[str], Process], secret: Callable[[str], str], unit: str
) -> None:
    pid = process(unit).pid
    for member in [str(pid), *host.run(f"pgrep --parent {pid}").stdout.split()]:
        for place in ("environ", "cmdline"):
            content = host.check_output(f"tr '\\0' ' ' </proc/{member}/{place}")
            assert secret("redis_password") not in content
            assert secret("flower_password") not in content
    # The secrets reach the service as credentials, which only it can read.
    assert process(unit).reads(f"/run/credentials/{unit}/CELERY_BROKER_URL")
    assert host.run(f"sudo -u nobody ls /run/credentials/{unit}").failed
