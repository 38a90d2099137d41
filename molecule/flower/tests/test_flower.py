"""What the flower role promises: nothing without the password, and a memory that survives a restart."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable

import pytest
from conftest import EPHEMERAL, PROJECT, Process, security_exposure
from testinfra.host import Host

from celery_durable.testing import wait_for

UNIT = "typesafe-flower.service"
URL = "http://127.0.0.1:5555/flower"


def status(host: Host, path: str, login: str = "") -> int:
    """The HTTP status of one page; 0 when nobody answers."""
    user = f'-u "{login}"' if login else ""
    return int(host.run(f"curl -s -o /dev/null -w '%{{http_code}}' {user} {URL}{path}").stdout)


# The host's shell reads the login from the file, so that these tests leave it in no log.
LOGIN = "$(cat /etc/typesafe-flower/FLOWER_BASIC_AUTH)"


@pytest.mark.parametrize(
    "path", ["/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/static/css/flower.css"]
)
def test_no_page_without_the_password(host: Host, path: str) -> None:
    assert status(host, path) == 401
    assert status(host, path, "admin:wrong") == 401
    assert status(host, path, LOGIN) == 200


def test_the_health_check_is_open(host: Host) -> None:
    assert status(host, "/healthcheck") == 200


def test_it_listens_on_the_loopback_address_alone(host: Host) -> None:
    listeners = host.check_output("ss --no-header --listening --tcp --numeric 'sport = :5555'").splitlines()
    assert [line.split()[3] for line in listeners] == ["127.0.0.1:5555"]


def test_neither_command_line_nor_journal_shows_the_password(host: Host, secret: Callable[[str], str]) -> None:
    for kept in (secret("flower_password"), secret("redis_password")):
        assert kept not in host.check_output("ps -eo args")
        assert kept not in host.check_output(f"journalctl --no-pager --unit {UNIT}")


def test_the_sandbox_is_in_force(host: Host, process: Callable[[str], Process]) -> None:
    process(UNIT).assert_sandboxed("typesafe-flower")
    process(UNIT).assert_closed()
    assert security_exposure(host, UNIT) <= 1.5


def test_the_applications_code_is_not_where_it_runs(host: Host, process: Callable[[str], Process]) -> None:
    """Celery's command line imports from the working directory first."""
    where = host.check_output(f"readlink /proc/{process(UNIT).pid}/cwd")
    assert where == host.check_output("readlink /opt/typesafe/platform")
    assert not host.file(f"{where}/app").exists


def test_it_remembers_tasks_over_a_restart(host: Host) -> None:
    def page() -> str:
        return str(host.check_output(f'curl -s -u "{LOGIN}" {URL}/api/tasks'))

    task = host.check_output(
        "cd /opt/typesafe/backend && sudo -u typesafe venv/bin/celery -A app.agents.worker call "
        "app.agents.tasks.example_task.example_agent_task --args='[\"from-the-test\", {}]'"
    )
    wait_for(lambda: task in page(), "the task in Flower", 30)
    host.run_expect([0], f"systemctl restart {UNIT}")
    wait_for(lambda: status(host, "/healthcheck") == 200, "Flower after its restart", 30)
    assert task in page()


def site() -> subprocess.CompletedProcess[str]:
    """Run site.yml on the installed host."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / "site.yml")]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=900
    )


@pytest.mark.timeout(1900)
def test_a_failed_run_of_site_yml_ends_with_its_cause(host: Host) -> None:
    """Flower cannot start; then it can, and what Redis denied before the run fails nothing."""
    folder = f"/etc/systemd/system/{UNIT}.d"
    cause = "the cause, in the words of the program"
    unit = f'[Service]\nExecStartPre=/bin/sh -c "echo {cause}; exit 1"\n'
    host.check_output(f"mkdir -p {folder} && printf %s {shlex.quote(unit)} > {folder}/broken.conf")
    host.check_output(f"systemctl daemon-reload && systemctl stop {UNIT}")
    run = site()
    assert run.returncode != 0
    # One task has failed, with the program's own last sentence; no handler and no gate adds an error behind it.
    failures = re.findall(r"^(?:fatal|failed): ?\[.*", run.stdout, re.MULTILINE)
    assert len(failures) == 1, run.stdout
    assert "is undefined" not in run.stdout
    last = " ".join(" ".join(run.stdout.rstrip().splitlines()[-3:]).split())
    assert f"Its program said last: {cause}" in last, run.stdout

    host.check_output(f"rm -r {folder} && systemctl daemon-reload && systemctl reset-failed {UNIT}")
    host.check_output(
        "REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf) "
        "redis-cli -s /run/redis-broker/redis-server.sock flushall 2>/dev/null | grep NOPERM"
    )
    run = site()
    assert run.returncode == 0, run.stdout
    assert host.service(UNIT).is_running
