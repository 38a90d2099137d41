"""Logs in one place: the journal of a host is on another one, and reports a task's timeline when the first is gone."""

from __future__ import annotations

import subprocess

import pytest
import testinfra
from conftest import EPHEMERAL, PROJECT, Api, security_exposure
from testinfra.host import Host

from celery_durable.testing import wait_for

PORT = 19532


def reach(name: str) -> Host:
    """Return a host of this scenario."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(EPHEMERAL / "inventory"), sudo=True)


@pytest.fixture(scope="session")
def sender() -> Host:
    """The host that runs everything."""
    return reach("logs-sender")


@pytest.fixture(scope="session")
def receiver() -> Host:
    """The host that takes the journal."""
    return reach("logs-receiver")


def timeline(task: str, *options: str) -> str:
    """Return what the playbook says of a task."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--extra-vars=task={task}", *options]
    run = subprocess.run(
        [*command, str(PROJECT / "playbooks/diagnose/task_timeline.yml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_the_receiver_reports_a_timeline_alone(sender: Host, receiver: Host) -> None:
    api = Api(sender)
    task = api.enqueue()
    api.wait(task)
    found = f"journalctl --merge --quiet --output=cat --grep='{task}' | grep -q 'Task finished'"
    wait_for(lambda: receiver.run(found).succeeded, "the task's end on the receiver", 30)
    told = timeline(task, "--limit=localhost,logs-receiver")
    # The worker may be faster than the API, which writes its line when Redis has answered.
    assert max(told.index("Task accepted"), told.index("Task started")) < told.index("Task finished")
    assert timeline(task).count("Task finished") == 1


def test_what_was_missed_is_sent_later(sender: Host, receiver: Host) -> None:
    receiver.check_output("systemctl stop systemd-journal-remote.socket systemd-journal-remote.service")
    try:
        sender.check_output("logger --tag logs-test written-while-away")
    finally:
        receiver.check_output("systemctl start systemd-journal-remote.socket")
    sent = "journalctl --merge --quiet SYSLOG_IDENTIFIER=logs-test"
    wait_for(lambda: "written-while-away" in receiver.run(sent).stdout, "the line", 90)


def test_the_port_is_open_for_the_inventorys_hosts_alone(receiver: Host, sender: Host) -> None:
    [address] = sender.check_output("hostname -I").split()[:1]
    [rule] = [line for line in receiver.check_output("nft list table inet platform").splitlines() if str(PORT) in line]
    assert address in rule
    listens = receiver.check_output(f"ss --listening --tcp --numeric --no-header 'sport = :{PORT}'").split()[3]
    assert listens.startswith(receiver.check_output("hostname -I").split()[0])


def test_what_is_taken_is_bounded(receiver: Host) -> None:
    assert "MaxUse=4G" in receiver.check_output("systemd-analyze cat-config systemd/journal-remote.conf")


def test_the_units_are_sandboxed(sender: Host, receiver: Host) -> None:
    assert security_exposure(sender, "systemd-journal-upload.service") <= 2.5
    assert security_exposure(receiver, "systemd-journal-remote.service") <= 2.5


def test_the_key_is_roots(sender: Host) -> None:
    assert sender.check_output("stat -c '%U %a' /etc/platform-logs /etc/platform-logs/host.pem") == "root 700\nroot 600"
