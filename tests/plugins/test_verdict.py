"""The last lines of a run: its verdict, also where Ansible itself is kept out, and failures that come after it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from celery_durable.testing import free_port
from tests.support import INLINE, REPOSITORY

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Three hosts that cannot be looked into: sudo, Python and SSH are broken; all are this machine."""
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: /etc/sudoers is world writable' >&2\nexit 1\n")
    sudo.chmod(0o755)
    hosts = {
        "nosudo": {"ansible_connection": "local", "ansible_become_exe": str(sudo)},
        "nopython": {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": "/nonexistent/python3",
        },
        "away": {"ansible_host": "127.0.0.1", "ansible_port": free_port()},
    }
    groups = {"workers": ("nosudo", "nopython"), "redis": ("nosudo",), "api": ("away",), "flower": ()}
    children: dict[str, object] = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))
    return file


@pytest.mark.parametrize(
    "playbook",
    [
        "diagnose/doctor",
        "runbooks/no_workers",
        "runbooks/worker_crashes",
        "runbooks/redis_connection",
        "runbooks/drift",
    ],
)
def test_the_verdict_names_what_keeps_ansible_out(playbook: str, inventory: Path, tmp_path: Path) -> None:
    evidence = f"--extra-vars=evidence_directory={tmp_path / 'evidence'}"
    run = subprocess.run(
        ["ansible-playbook", f"--inventory={inventory}", evidence, f"playbooks/{playbook}.yml"],
        cwd=REPOSITORY,
        env={**os.environ, **INLINE, "ANSIBLE_BECOME_ALLOW_SAME_USER": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode != 0
    last = run.stdout.rstrip().splitlines()[-10:]
    verdict = "\n".join(last[next(number for number, line in enumerate(last) if line.startswith("It took")) + 1 :])
    assert "CRITICAL nosudo: Ansible cannot look into it: " in verdict
    assert "sudo: /etc/sudoers is world writable (Ansible does not become root there: run sudo -n true" in verdict
    assert "CRITICAL nopython: Ansible cannot look into it: " in verdict
    assert "(its Python is missing or broken: apt-get install --reinstall python3-minimal on it)" in verdict
    assert "CRITICAL away: Ansible does not reach it: " in verdict
    assert "(nothing listens on its SSH port: look at ansible_port" in verdict
    for line in ("othing is critical", "Nothing is wrong", "All workers"):
        assert line not in run.stdout


PLAYS = """
- hosts: a:b
  gather_facts: false
  tasks:
    - ansible.builtin.fail: {msg: it was not there before}
      ignore_errors: true
    - ansible.builtin.set_stats: {data: {verdict: [the verdict], other: [no line]}, aggregate: false}
      run_once: true
    - ansible.builtin.fail: {msg: "it breaks\\nafter it"}
- hosts: nobody
"""


def test_a_failure_after_the_verdict_is_printed_below_it_once(tmp_path: Path) -> None:
    (tmp_path / "plays.yml").write_text(PLAYS)
    (tmp_path / "hosts.ini").write_text("a ansible_connection=local\nb ansible_connection=local\n")
    run = subprocess.run(
        ["ansible-playbook", f"--inventory={tmp_path / 'hosts.ini'}", tmp_path / "plays.yml"],
        cwd=REPOSITORY,
        env={**os.environ, **INLINE},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.stdout.rstrip().splitlines()[-2:] == [
        "the verdict",
        "FAILED a, b: ansible.builtin.fail: it breaks after it",
    ]
