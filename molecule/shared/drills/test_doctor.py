"""The doctor on real hosts: nothing in calm, and for each fault its cause in the first sentence."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import pytest
import yaml
from conftest import EPHEMERAL, PROJECT, SCENARIO, wait_for
from shared.drills.hosts import bash, present_hosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Fault:
    """A fault of a scenario's tests/faults.yml."""

    host: str
    inject: str
    heal: str
    says: str


CASES = yaml.safe_load((SCENARIO / "tests/faults.yml").read_text())
FAULTS = {name: Fault(**case) for name, case in CASES.items()}


def doctor() -> tuple[int, list[str]]:
    """Return the doctor's exit code and its sentences."""
    command = [
        "ansible-playbook",
        f"--inventory={EPHEMERAL / 'inventory'}",
        str(PROJECT / "playbooks/diagnose/doctor.yml"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = r"(?:CRITICAL|warning) [\w-]+: [^\"\n]+|Nothing is wrong"
    return run.returncode, re.findall(said, run.stdout)


def wrong() -> list[str]:
    """Return what the doctor says, without what these hosts are: the machine's clock, and the drills' providers."""
    return [
        sentence
        for sentence in doctor()[1]
        if not any(word in sentence for word in ("ClockWrong", "drill.conf", "Nothing"))
    ]


def shell(host: str, commands: str) -> None:
    """Run commands as root."""
    run = bash(host, commands)
    assert run.returncode == 0, f"{host}: {commands}\n{run.stdout}{run.stderr}"


def test_it_finds_nothing_in_calm() -> None:
    code, sentences = doctor()
    assert sentences
    assert wrong() == []
    assert code == 0


@pytest.mark.parametrize("name", FAULTS)
def test_it_names_the_cause_first(name: str) -> None:
    fault = FAULTS[name]
    host = present_hosts()[fault.host]
    try:
        shell(host, fault.inject)
        sentences = wrong()
    finally:
        shell(host, fault.heal)
    assert fault.says in sentences[0], sentences
    assert f" {host}: " in sentences[0], sentences
    wait_for(lambda: not [sentence for sentence in wrong() if "CRITICAL" in sentence], "all is well again", 90)
