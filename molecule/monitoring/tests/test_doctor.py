"""The doctor on real hosts: nothing in calm, and for each fault its cause in the first sentence."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import pytest
from conftest import EPHEMERAL, PROJECT, SCENARIO, wait_for

pytestmark = pytest.mark.timeout(300)

MAIN, WORKER = "monitoring-main", "monitoring-worker"
LIBRARY = (SCENARIO / "tests/drill.sh").read_text()
API_URL = "/etc/typesafe/secrets/api/CELERY_BROKER_URL"
UNIT = "/etc/systemd/system/typesafe-celery.service"


@dataclass(frozen=True)
class Fault:
    """What is broken, how it is healed, and what the doctor's first sentence must say. Commands are bash, as root."""

    on: str
    inject: str
    heal: str
    says: str


FAULTS = {
    "worker-stopped": Fault(
        WORKER, "systemctl stop typesafe-celery", "systemctl start typesafe-celery", "typesafe-celery is inactive"
    ),
    "redis-stopped": Fault(
        MAIN,
        "systemctl stop redis-server@broker",
        "systemctl start redis-server@broker",
        "redis-server@broker is inactive: it was stopped",
    ),
    "redis-hangs": Fault(
        MAIN,
        "systemctl kill -s STOP redis-server@broker",
        "systemctl kill -s CONT redis-server@broker",
        "of redis-server@broker, process",
    ),
    "api-halted": Fault(
        MAIN,
        "systemctl kill -s STOP typesafe-api",
        "systemctl kill -s CONT typesafe-api",
        "is halted by a signal",
    ),
    "no-name-server": Fault(
        WORKER,
        "cp /etc/resolv.conf /run/resolv.kept; echo >/etc/resolv.conf",
        "cat /run/resolv.kept >/etc/resolv.conf",
        "/etc/resolv.conf names no name server",
    ),
    "foreign-firewall": Fault(
        WORKER,
        "nft add table inet evil; nft add chain inet evil out '{ type filter hook output priority 0; }';"
        "nft add rule inet evil out tcp dport 6380 drop",
        "nft delete table inet evil",
        "table inet evil that is not ours drops packets: tcp dport 6380 drop",
    ),
    "redis-user-off": Fault(
        MAIN,
        "redis ACL SETUSER worker off",
        "redis ACL SETUSER worker on",
        "the user worker of Redis",
    ),
    "little-memory": Fault(
        MAIN,
        "redis CONFIG SET maxmemory 1mb",
        "redis CONFIG SET maxmemory 256mb",
        "the running Redis broker has maxmemory 1048576",
    ),
    "wrong-password": Fault(
        MAIN,
        f"cp -p {API_URL} /run/url.kept; sed -i 's/:[^:@]*@/:wrongwrongwrong@/' {API_URL};"
        "systemctl restart typesafe-api",
        f"cp -p /run/url.kept {API_URL}; systemctl restart typesafe-api",
        "refuses the password of api that its secret file holds",
    ),
    "unit-edited": Fault(
        WORKER,
        f"cp -p {UNIT} /run/unit.kept; sed -i 's/--queues=celery/--queues=elsewhere/' {UNIT};"
        "systemctl daemon-reload; systemctl stop typesafe-celery; systemctl mask --runtime --force typesafe-celery",
        f"systemctl unmask --runtime typesafe-celery; cp -p /run/unit.kept {UNIT};"
        "systemctl daemon-reload; systemctl start typesafe-celery",
        "typesafe-celery",
    ),
    "disk-full": Fault(
        MAIN,
        "mount -t tmpfs -o size=8m drill /var/cache/apt/archives; head -c 8M /dev/zero >/var/cache/apt/archives/big",
        "umount /var/cache/apt/archives",
        "/var/cache/apt/archives",
    ),
}


def doctor() -> tuple[int, list[str]]:
    """Return the doctor's exit code and its sentences."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / "playbooks/doctor.yml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = r"(?:CRITICAL|warning) [\w-]+: [^\"'\n]+|Nothing is wrong"
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
    run = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", host, "bash", "-e"]
    subprocess.run(run, input=f"{LIBRARY}\n{commands}", text=True, check=True, capture_output=True, timeout=120)


def test_it_finds_nothing_in_calm() -> None:
    code, sentences = doctor()
    assert sentences
    assert wrong() == []
    assert code == 0


@pytest.mark.parametrize("name", FAULTS)
def test_it_names_the_cause_first(name: str) -> None:
    fault = FAULTS[name]
    try:
        shell(fault.on, fault.inject)
        sentences = wrong()
    finally:
        shell(fault.on, fault.heal)
    assert fault.says in sentences[0], sentences
    assert f" {fault.on}: " in sentences[0], sentences
    wait_for(lambda: not [sentence for sentence in wrong() if "CRITICAL" in sentence], "all is well again", 90)
