"""Hosts die under load, one at a time; a network falls apart; a host is replaced. Writes docs/cluster.md."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import yaml
from conftest import EPHEMERAL, PROJECT, SCENARIO, wait_for

from tests.chaos.host import Host, podman
from tests.chaos.load import Load, not_successful

pytestmark = pytest.mark.timeout(900)

PLATFORMS = {item["name"]: item for item in yaml.safe_load((SCENARIO / "molecule.yml").read_text())["platforms"]}
INSTANCES = {"main": 6379, "broker": 6380}
SENTINEL = (
    "REDISCLI_AUTH=$(cat /etc/redis/sentinel-password) redis-cli -s /run/sentinel/redis-sentinel.sock --raw sentinel"
)
# Requests per second, and seconds of load before a fault and after its end.
RATE, BEFORE, AFTER = 8, 4, 8
# Seconds: from a fault until tasks are accepted again, and until accepted ones have run after the load.
LONGEST_STALL, DRAIN = 15, 90
PAGE = PROJECT / "docs/cluster.md"
HEAD = """# The cluster under faults

Written by `molecule test -s cluster` on {date} UTC; do not edit. {hosts} hosts on one machine with two cores,
{rate} requests per second. A client repeats what was refused (503) or not answered, with the same `Idempotency-Key`,
after a second. "Lost" are tasks that were answered with 202 and have no result in the end. The longest stall is the
longest time between two answers with 202.

| Fault | Accepted | Finished | Lost | Refused | Not answered | Longest stall |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What became of the load during one fault."""

    fault: str
    accepted: int
    lost: int
    refused: int
    unanswered: int
    stall: float  # seconds


rows: list[Row] = []


def in_group(group: str) -> list[Host]:
    """Return the scenario's hosts of a group."""
    return [Host(name) for name, item in PLATFORMS.items() if group in item["groups"]]


REDIS, APIS, WORKERS = in_group("redis"), in_group("api"), in_group("workers")


def address(host: Host) -> str:
    """Return the address that the scenario gives a host."""
    return str(PLATFORMS[host.name]["provider_raw_config_args"][-1].removeprefix("--ip="))


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write the table when all faults were tried."""
    yield
    if len(rows) == len(FAULTS):
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        lines = [
            f"| {row.fault} | {row.accepted} | {row.accepted - row.lost} | {row.lost} | {row.refused} "
            f"| {row.unanswered} | {row.stall:.1f} s |\n"
            for row in rows
        ]
        PAGE.write_text(HEAD.format(date=date, hosts=len(PLATFORMS), rate=RATE) + "".join(lines))


def info(host: Host, port: int) -> dict[str, str]:
    """Return what a server says of its replication; nothing when it does not answer."""
    lines = host.redis(port, "info replication", seconds=3).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def primary(name: str, among: list[Host] = REDIS) -> Host:
    """Return the host whose server is the primary, as the sentinels on these hosts agree."""

    def named() -> Host | None:
        answers = {host.run(f"{SENTINEL} get-master-addr-by-name {name} | head -1", check=False) for host in among}
        return next((host for host in REDIS if answers == {address(host)}), None)

    host: Host = wait_for(named, f"sentinels that agree on {name}", 60)
    return host


def whole() -> bool:
    """Tell whether each instance has one primary that all others follow, and each sentinel sees all of them."""
    for name, port in INSTANCES.items():
        states = [info(host, port) for host in REDIS]
        roles = sorted(state.get("role", "") for state in states)
        if roles != ["master", *["slave"] * (len(REDIS) - 1)]:
            return False
        if any(state.get("master_link_status", "up") != "up" for state in states):
            return False
        if any(not host.run(f"{SENTINEL} ckquorum {name}", check=False).startswith("OK 3") for host in REDIS):
            return False
    return True


def site(*options: str) -> str:
    """Run the whole installation again; return what it says."""
    run = subprocess.run(
        ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", *options, str(SCENARIO / "converge.yml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    return run.stdout


def changes(said: str) -> list[str]:
    """Return the tasks that changed something in a run, and where."""
    task, found = "", []
    for line in said.splitlines():
        if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
            task = match[1]
        elif line.startswith("changed: "):
            found.append(f"{task}: {line}")
    return found


def wait_for_ssh(port: int) -> None:
    """Wait for a host at its port on this machine: all must learn that its address belongs to another interface now."""

    def greets() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False

    wait_for(greets, "SSH", 120)


def kill(host: Host) -> None:
    """Take a host's power."""
    podman("kill", host.name)


def boot(host: Host) -> None:
    """Give it back."""
    podman("start", host.name)
    host.wait_for_boot()
    wait_for_ssh(int(podman("port", host.name, "22/tcp").splitlines()[0].rpartition(":")[2]))


@contextmanager
def load(fault: str, through: Host) -> Iterator[Load]:
    """Send tasks while a fault is brought and ends; judge what has become of them."""
    key = APIS[0].api_key
    with Load(through.url, key, RATE) as stream:
        time.sleep(BEFORE)
        yield stream
        time.sleep(AFTER)
    lost = set(stream.accepted)

    def finished() -> bool:
        nonlocal lost
        lost = not_successful(through.url, key, lost)
        return not lost

    deadline = time.monotonic() + DRAIN
    while not finished() and time.monotonic() < deadline:
        time.sleep(1)
    moments = sorted(stream.accepted.values())
    stall = max(later - earlier for earlier, later in pairwise(moments))
    row = Row(fault, len(moments), len(lost), stream.refused, stream.unanswered, stall)
    print(row)  # noqa: T201 - what pytest shows when the test fails
    rows.append(row)
    assert not lost
    assert not stream.wrong
    assert not stream.given_up
    assert stall <= LONGEST_STALL


def broker_dies() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    with load("The broker's primary loses power", APIS[0]):
        kill(host)
        wait_for(lambda: primary("broker", others) != host, "another primary", 30)
    boot(host)
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host


def replica_dies() -> None:
    host = next(host for host in REDIS if host not in {primary(name) for name in INSTANCES})
    with load("A host of replicas loses power", APIS[0]):
        kill(host)
        time.sleep(5)
    boot(host)
    wait_for(whole, "all servers replicate", 60)


def primary_is_cut_off() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    # SSH and Podman's own way in stay.
    cut = "table inet cut { chain i { type filter hook input priority -300; ip saddr 10.213.1.0/24 drop; }; }"
    with load("The broker's primary is cut off from all other hosts", APIS[0]):
        host.run(f"nft '{cut}'")
        wait_for(lambda: primary("broker", others) != host, "another primary", 30)
        began = time.monotonic()
        refused = wait_for(
            lambda: "NOREPLICAS" in host.redis(6380, "SET app:cut 1"), "a refusal of the old primary", 10
        )
        assert refused, time.monotonic() - began
        host.run("nft delete table inet cut")
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host


def worker_dies() -> None:
    with load("A host of workers loses power", APIS[0]):
        kill(WORKERS[0])
        time.sleep(5)
    boot(WORKERS[0])


def api_dies() -> None:
    with load("An API server loses power", APIS[0]):
        kill(APIS[1])
        time.sleep(5)
    boot(APIS[1])


FAULTS = [broker_dies, replica_dies, primary_is_cut_off, worker_dies, api_dies]


def test_all_is_well_at_first() -> None:
    wait_for(whole, "all servers replicate", 60)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_accepted_is_lost(fault: Callable[[], None]) -> None:
    fault()


def test_a_run_of_site_undoes_no_failover() -> None:
    before = {name: primary(name) for name in INSTANCES}
    assert before["broker"] != REDIS[0] or before["main"] != REDIS[0]
    began = time.monotonic()
    said = site()
    print(f"site.yml again: {time.monotonic() - began:.0f} s")  # noqa: T201
    assert changes(said) == []
    assert before == {name: primary(name) for name in INSTANCES}
    assert whole()


def test_an_empty_host_takes_the_place_of_a_dead_one() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    kill(host)
    wait_for(lambda: primary("broker", others) != host, "another primary", 30)
    item = PLATFORMS[host.name]
    start = [str(PROJECT / "scripts/testhost.sh"), "start", host.name, item["image"], *item["provider_raw_config_args"]]
    podman("rm", "--force", "--time=0", host.name)
    port = subprocess.run(start, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    wait_for_ssh(int(port))
    site(f"--limit={host.name}", f"--extra-vars={json.dumps({'ansible_port': int(port)})}")
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host
