"""What the celery_worker role promises, the same under systemd and under supervisor."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from conftest import Api, Process, security_exposure, wait_for
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
LOG_FILE = "/var/log/typesafe/celery-worker.log"


class Supervision:
    """Start, stop and look at the default pool's worker with the means of its supervision."""

    def __init__(self, host: Host, supervised: bool) -> None:
        """Use systemctl or supervisorctl of ``host``."""
        self.host = host
        self.supervised = supervised
        self.command = "supervisorctl" if supervised else "systemctl"
        self.unit = "typesafe-celery-worker" if supervised else "typesafe-celery"

    def do(self, verb: str) -> None:
        result = self.host.run(f"{self.command} {verb} {self.unit}")
        assert result.succeeded, result.stdout + result.stderr

    def pid(self) -> int:
        """Return the main process, 0 when none runs."""
        if self.supervised:
            return int(self.host.run(f"supervisorctl pid {self.unit}").stdout.strip() or 0)
        return int(self.host.check_output(f"systemctl show --value --property MainPID {self.unit}"))

    def log(self) -> str:
        command = f"cat {LOG_FILE}" if self.supervised else f"journalctl --no-pager --unit {self.unit}"
        return str(self.host.check_output(command))


@pytest.fixture
def supervised(name: str) -> bool:
    return "supervisor" in name


@pytest.fixture
def worker(host: Host, supervised: bool) -> Supervision:
    return Supervision(host, supervised)


def test_the_worker_is_not_root_and_has_the_concurrency_of_the_inventory(host: Host, worker: Supervision) -> None:
    assert host.check_output(f"stat -c %U /proc/{worker.pid()}") == "typesafe"
    assert len(host.check_output(f"pgrep --parent {worker.pid()} --full -- --hostname=").split()) == 2


def test_a_task_runs_and_the_log_tells_its_id(api: Api, worker: Supervision) -> None:
    task = api.enqueue()
    api.wait(task)
    wait_for(lambda: task in worker.log(), "the task's id in the log")


def test_a_worker_that_is_stopped_during_a_task_finishes_it(api: Api, worker: Supervision) -> None:
    running = api.enqueue()
    api.wait(running, "PROGRESS", "STARTED")
    worker.do("stop")
    try:
        assert worker.pid() == 0
        assert api.state(running) == "SUCCESS"
        assert api.call("GET", "/health/celery")[0] == 503
        waiting = api.enqueue()
        assert api.state(waiting) == "PENDING"
    finally:
        worker.do("start")
    api.wait(waiting)


def test_a_killed_worker_comes_back(host: Host, api: Api, worker: Supervision) -> None:
    before = worker.pid()
    host.run(f"kill -9 {before}")
    wait_for(lambda: worker.pid() not in (0, before), "a new worker")
    api.wait(api.enqueue())


def test_a_worker_that_hangs_is_restarted(host: Host, api: Api, supervised: bool, worker: Supervision) -> None:
    if not supervised:
        status = host.check_output("systemctl show --value --property StatusText typesafe-celery")
        assert status.startswith("Consuming; 0 of 2 processes busy")
    before = worker.pid()
    host.run(f"kill -STOP {before}")
    wait_for(lambda: worker.pid() not in (0, before), "a new worker", 30)
    api.wait(api.enqueue())


def test_neither_command_line_nor_environment_shows_the_password(
    host: Host, worker: Supervision, secret: Callable[[str], str]
) -> None:
    password = secret("redis_password")
    assert password not in host.check_output(f"tr '\\0' ' ' </proc/{worker.pid()}/environ")
    assert password not in host.check_output("ps -eo args")
    assert password not in worker.log()


def test_the_sandbox_is_in_force(
    host: Host, supervised: bool, worker: Supervision, process: Callable[[str], Process]
) -> None:
    if supervised:
        # No filter for system calls; tests/roles/test_worker_sandbox.py has the rest of what the program makes.
        status = host.check_output(f"cat /proc/{worker.pid()}/status")
        assert "Umask:\t0077" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        assert "CapBnd:\t0000000000000000" in status
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
        assert host.check_output(f"stat -c %U /proc/{worker.pid()}") == "typesafe"
        inside = f"nsenter --target {worker.pid()} --mount"
        assert host.run(f"{inside} touch /etc/x /opt/x").failed
        assert host.run(f"{inside} ls /etc/typesafe/secrets/operator").stdout == ""
        assert "CELERY_BROKER_URL" in host.check_output(f"{inside} ls /etc/typesafe/secrets/worker")
        assert host.check_output("systemctl show --value --property OOMPolicy supervisor") == "continue"
    else:
        process(worker.unit).assert_sandboxed("typesafe")
        process(worker.unit).assert_closed()
        assert security_exposure(host, worker.unit) <= 1.5


def test_a_process_that_eats_all_memory_is_killed_and_the_worker_goes_on(
    host: Host, api: Api, supervised: bool, worker: Supervision, process: Callable[[str], Process]
) -> None:
    if supervised:
        pytest.skip("a limit of supervisor.service would be one for other programs too")
    unit = process(worker.unit)
    if unit.cgroup("memory.max") is None:
        pytest.skip("this machine gives its containers no memory controller")
    group = host.check_output(f"systemctl show --value --property ControlGroup {worker.unit}")
    host.run_expect([0], f"systemctl set-property --runtime {worker.unit} MemoryMax=500M")
    try:
        eat = f"echo \\$\\$ >/sys/fs/cgroup{group}/cgroup.procs; exec python3 -c 'bytes(1) * 10**9'"
        assert host.run(f'sh -c "{eat}"').rc == 137
        assert worker.pid() == unit.pid
        api.wait(api.enqueue())
    finally:
        host.run_expect([0], f"rm -r /run/systemd/system.control/{worker.unit}.service.d && systemctl daemon-reload")


@pytest.mark.hosts("worker-supervisor")
def test_the_log_files_are_bounded_and_the_worker_logs_on_after_a_rotation(
    host: Host, api: Api, worker: Supervision
) -> None:
    before = worker.pid()
    host.run_expect([0], "logrotate --force /etc/logrotate.d/typesafe-celery")
    assert host.file(f"{LOG_FILE}.1").size > 0
    task = api.enqueue()
    api.wait(task)
    wait_for(lambda: task in worker.log(), "the task's id in the new log file")
    assert worker.pid() == before
    assert host.run(f"sudo -u nobody cat {LOG_FILE}").failed


def slow_pool(host: Host) -> str:
    """Return the main process of the pool "slow"; the brackets keep pgrep from finding itself."""
    return str(host.run("pgrep --full --oldest -- '--hostname=[s]low@'").stdout.strip())


def test_pools_are_data_and_a_change_restarts_what_it_concerns(
    host: Host, api: Api, converge: Converge, worker: Supervision
) -> None:
    before = worker.pid()
    pools: list[dict[str, object]] = [
        {"name": "default"},
        {"name": "slow", "queues": ["slow", "slower"], "concurrency": 40, "pool": "asyncio", "processes": 1},
    ]
    added = converge(celery_worker_pools=pools)
    assert added.returncode == 0, added.stdout
    command = host.check_output(f"tr '\\0' ' ' </proc/{slow_pool(host)}/cmdline")
    assert "--queues=slow,slower" in command
    assert worker.pid() == before, "the other pool was restarted"

    # Twenty at once in one process, in the sandbox of the unit or program.
    routes = {"app.agents.tasks.example_task.example_agent_task": "slow"}
    routed = converge(celery_worker_pools=pools, task_routes=routes)
    assert routed.returncode == 0, routed.stdout
    for task in [api.enqueue() for _ in range(20)]:
        api.wait(task)
    # Under supervisor the worker has another child, its watchdog.
    assert len(host.check_output(f"pgrep --parent {slow_pool(host)} --full -- --hostname=slow").split()) == 1

    changed = converge(log_level="debug")
    assert changed.returncode == 0, changed.stdout
    assert slow_pool(host) == ""
    assert worker.pid() not in (0, before)


def test_a_task_that_waits_while_the_host_reboots_runs_after_it(
    api: Api, worker: Supervision, reboot: Callable[[], None]
) -> None:
    worker.do("stop")
    waiting = [api.enqueue(number=number) for number in range(3)]
    reboot()
    for task in waiting:
        api.wait(task, seconds=60)


@pytest.mark.hosts("worker-supervisor")
def test_the_supervision_can_be_changed(
    host: Host, api: Api, converge: Converge, supervised: bool, worker: Supervision
) -> None:
    """Last in this file: it leaves the hosts as it found them, but the way back is part of the test."""
    name = f"default@{host.check_output('hostname')}"
    for chosen, supervision in (
        ("systemd" if supervised else "supervisor", Supervision(host, not supervised)),
        ("supervisor" if supervised else "systemd", worker),
    ):
        result = converge(celery_worker_supervision=chosen)
        assert result.returncode == 0, result.stdout
        assert supervision.pid() > 0
        wait_for(lambda: api.call("GET", "/health/celery")[1]["workers"] == [name], "one worker alone")
        assert len(host.check_output("pgrep --full -- '--hostname=[d]efault@'").split()) == 3, "main and two children"
