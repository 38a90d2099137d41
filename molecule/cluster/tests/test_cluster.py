"""Hosts die under load, one at a time, a network falls apart, releases are rolled out; writes the report."""

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
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import EPHEMERAL, PROJECT, SCENARIO, VaultInventory
from shared.releases import release

from celery_durable.testing import wait_for
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
PAGE = PROJECT / "docs/reports/cluster.md"
HEAD = """# The cluster under faults

Written by `molecule test -s cluster` on {date} UTC; do not edit. {hosts} hosts on one machine with two cores,
{rate} requests per second through the balancer. A client repeats what was refused (503) or not answered, with the same
`Idempotency-Key`, after a second. "Lost" are tasks that were answered with 202 and have no result in the end. The
longest stall is the longest time between two answers with 202. The time is that of the playbook.

| What happens | Accepted | Finished | Lost | Refused | Not answered | Longest stall | Time |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
`site.yml` after all of this, on all hosts: 0 changed, {seconds:.0f} s.
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
    took: float  # seconds of the playbook, 0 when there was none

    def __str__(self) -> str:
        """Return its line of the table."""
        took = f"{self.took:.0f} s" if self.took else "-"
        return (
            f"| {self.fault} | {self.accepted} | {self.accepted - self.lost} | {self.lost} | {self.refused} "
            f"| {self.unanswered} | {self.stall:.1f} s | {took} |\n"
        )


rows: list[Row] = []
# Seconds that site.yml took in the end.
again: list[float] = []


def in_group(group: str) -> list[Host]:
    """Return the scenario's hosts of a group."""
    return [Host(name) for name, item in PLATFORMS.items() if group in item["groups"]]


REDIS, APIS, WORKERS = in_group("redis"), in_group("api"), in_group("workers")
BALANCER = in_group("balancers")[0]


@cache
def url() -> str:
    """Return where the balancer is reached from this machine; Podman keeps the port when the container starts anew."""
    return "http://" + podman("port", BALANCER.name, "80/tcp").splitlines()[0]


def address(host: Host) -> str:
    """Return the address that the scenario gives a host."""
    return str(PLATFORMS[host.name]["provider_raw_config_args"][-1].removeprefix("--ip="))


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write the table when all faults were tried."""
    yield
    if len(rows) == len(FAULTS) and again:
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        head = HEAD.format(date=date, hosts=len(PLATFORMS), rate=RATE)
        PAGE.write_text(head + "".join(map(str, rows)) + TAIL.format(seconds=again[0]))


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


def playbook(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook."""
    return subprocess.run(
        ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", *options, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )


def site(*options: str) -> str:
    """Run the whole installation again; return what it says."""
    run = playbook(SCENARIO / "converge.yml", *options)
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


@contextmanager
def comes_back(host: Host) -> Iterator[None]:
    """Give it back in the end, also when the load has not gone well: the other tests want all hosts."""
    try:
        yield
    finally:
        podman("start", host.name)
        host.wait_for_boot()
        wait_for_ssh(int(podman("port", host.name, "22/tcp").splitlines()[0].rpartition(":")[2]))


@contextmanager
def load(fault: str, in_time: bool = False) -> Iterator[Load]:
    """Send tasks while a fault is brought and ends, or a playbook runs; judge what has become of them.

    ``in_time``: how long what is brought takes belongs into the table, and no request may fail meanwhile.
    """
    key = APIS[0].api_key
    with Load(url(), key, RATE) as stream:
        time.sleep(BEFORE)
        began = time.monotonic()
        yield stream
        took = time.monotonic() - began if in_time else 0.0
        time.sleep(AFTER)
    lost = dict.fromkeys(stream.accepted, "")

    def finished() -> bool:
        nonlocal lost
        lost = not_successful(url(), key, lost)
        return not lost

    deadline = time.monotonic() + DRAIN
    while not finished() and time.monotonic() < deadline:
        time.sleep(1)
    moments = sorted(stream.accepted.values())
    stall = max(later - earlier for earlier, later in pairwise(moments))
    row = Row(fault, len(moments), len(lost), stream.refused, stream.unanswered, stall, took)
    print(row)  # noqa: T201 - what pytest shows when the test fails
    rows.append(row)
    assert not lost
    assert not stream.wrong
    assert not stream.given_up
    assert stall <= LONGEST_STALL
    assert not in_time or (stream.refused, stream.unanswered) == (0, 0)


def broker_dies() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    with comes_back(host), load("The broker's primary loses power"):
        kill(host)
        wait_for(lambda: primary("broker", others) != host, "another primary", 30)
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host


def replica_dies() -> None:
    host = next(host for host in REDIS if host not in {primary(name) for name in INSTANCES})
    with comes_back(host), load("A host of replicas loses power"):
        kill(host)
        time.sleep(5)
    wait_for(whole, "all servers replicate", 60)


def primary_is_cut_off() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    # SSH and Podman's own way in stay.
    cut = "table inet cut { chain i { type filter hook input priority -300; ip saddr 10.213.1.0/24 drop; }; }"
    with load("The broker's primary is cut off from all other hosts"):
        host.run(f"nft '{cut}'")
        wait_for(lambda: primary("broker", others) != host, "another primary", 30)
        began = time.monotonic()
        rejected = wait_for(
            lambda: "NOREPLICAS" in host.redis(6380, "SET app:cut 1"), "a refusal of the old primary", 10
        )
        assert rejected, time.monotonic() - began
        host.run("nft delete table inet cut")
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host


def worker_dies() -> None:
    with comes_back(WORKERS[0]), load("A host of workers loses power"):
        kill(WORKERS[0])
        time.sleep(5)


def api_dies() -> None:
    with comes_back(APIS[1]), load("An API server loses power"):
        kill(APIS[1])
        time.sleep(5)


def balancer_dies() -> None:
    # Two balancers with one address: molecule/load_balancer.
    with load("The only balancer loses power and starts again"), comes_back(BALANCER):
        kill(BALANCER)


def balancer_is_reloaded() -> None:
    with load("The balancer is reloaded, three times"):
        for _ in range(3):
            BALANCER.run("systemctl reload haproxy")
            time.sleep(2)


def run_well(name: str, *options: str) -> str:
    """Run one of the project's playbooks, which must succeed; return what it says."""
    run = playbook(PROJECT / f"playbooks/{name}.yml", *options)
    assert run.returncode == 0, run.stdout[-6000:]
    return run.stdout


def a_setting_changes() -> None:
    # All API servers and workers restart, each at the same time as its like.
    with load("A setting of all services changes, and changes back", in_time=True):
        run_well("site/app", "--extra-vars=task_soft_time_limit=50")
        run_well("site/app")


def another_server_becomes_primary() -> None:
    primaries = {primary(name) for name in INSTANCES}
    other = next(host for host in REDIS if host not in primaries)
    with load("Another server is made the primary of both, on purpose"):
        run_well("ops/promote_redis", f"--extra-vars=to={other.name}")
    assert {primary(name) for name in INSTANCES} == {other}
    wait_for(whole, "all servers replicate", 60)


def redis_is_upgraded() -> None:
    known = REDIS[0].run("apt-cache madison redis-server | cut -d'|' -f2 | tr -d ' '").split()
    for host in REDIS:
        wanted = " ".join(f"{package}={known[-1]}" for package in ("redis-server", "redis-sentinel", "redis-tools"))
        install = f"apt-get install --quiet --yes --allow-downgrades --option=Dpkg::Options::=--force-confold {wanted}"
        host.run(f"DEBIAN_FRONTEND=noninteractive {install} </dev/null", seconds=120)
        host.run("systemctl restart redis-server@broker")
        wait_for(whole, "all servers replicate", 90)
    with load(f"Redis is upgraded on {len(REDIS)} hosts"):
        run_well("ops/upgrade_redis", "--extra-vars=confirm=yes")
    for host in REDIS:
        assert host.run("dpkg-query --show --showformat='${Version}' redis-server") == known[0]
    assert {primary(name) for name in INSTANCES} == {REDIS[0]}
    wait_for(whole, "all servers replicate", 60)


def all_secrets_are_replaced(tmp_path: Path) -> None:
    inventory = VaultInventory(tmp_path / "inventory")
    inventory.create()
    with load("All secrets are replaced"):
        run = inventory.playbook(str(PROJECT / "playbooks/ops/rotate_secrets.yml"))
    assert run.returncode == 0, run.stdout[-6000:]
    # The load had the former key, which is valid until it is retired.
    run = inventory.playbook(str(PROJECT / "playbooks/ops/retire_secrets.yml"), "--extra-vars=confirm=yes")
    assert run.returncode == 0, run.stdout[-6000:]
    inventory.give_back()
    wait_for(whole, "all servers replicate", 60)


def live() -> set[str]:
    """Return the ids of the releases that are live on hosts of API and workers."""
    links = {host.run("readlink /opt/typesafe/backend") for host in APIS + WORKERS}
    return {link.rpartition("/")[2].partition("-")[0] for link in links}


def all_are_ready() -> bool:
    """Tell whether the balancer has all API hosts, and all workers answer."""
    statistics = BALANCER.run("curl -s 'http://127.0.0.1:8404/;csv'", check=False)
    workers = BALANCER.run("curl -s http://10.213.1.31/health/celery", check=False)
    return len(re.findall(r"(?m)^api,cluster-api-\d,.*,UP,", statistics)) == len(APIS) and all(
        host.name in workers for host in WORKERS
    )


def roll(what: str, *options: str, name: str = "ops/deploy", good: bool = True) -> None:
    """Roll a release out, or back, under load; check that all hosts run one release, another one when it is good.

    One that is not good goes back on the host that has noticed it. Others may run it by then, the report says how they
    go back, and that is done.
    """
    wait_for(all_are_ready, "all hosts", 60)
    before = live()
    with load(what, in_time=True):
        run = playbook(PROJECT / f"playbooks/{name}.yml", *options)
    assert (run.returncode == 0) == good, run.stdout[-6000:]
    if not good:
        said = " ".join(run.stdout.split())
        assert "The previous release is back and healthy." in said or "It was not touched." in said, run.stdout[-6000:]
        (kept,) = before
        assert f"playbooks/ops/rollback.yml -e release={kept} -e confirm=yes" in said
        if live() != before:
            back = playbook(PROJECT / "playbooks/ops/rollback.yml", f"--extra-vars=release={kept} confirm=yes")
            assert back.returncode == 0, back.stdout[-6000:]
    assert len(live()) == 1
    assert (live() != before) == good
    wait_for(all_are_ready, "all hosts", 60)


def deploy(tmp_path: Path, what: str, fault: str = "") -> None:
    variables = release(tmp_path, "release", fault)
    roll(what, f"--extra-vars={json.dumps(variables)}", good=not fault)


def a_deploy(tmp_path: Path) -> None:
    deploy(tmp_path, f"A release is deployed on {len(APIS + WORKERS)} hosts")


def a_deploy_of_a_dead_api(tmp_path: Path) -> None:
    deploy(tmp_path, "A release is deployed whose API does not start", "the API does not start")


def a_deploy_of_a_dead_worker(tmp_path: Path) -> None:
    deploy(tmp_path, "A release is deployed whose workers do not start", "the worker does not start")


def a_deploy_of_a_failing_task(tmp_path: Path) -> None:
    deploy(tmp_path, "A release is deployed whose task fails", "the task always fails")


def a_rollback() -> None:
    roll("The release before comes back, on all hosts", "--extra-vars=confirm=yes", name="ops/rollback")


FAULTS: list[Callable[..., None]] = [
    broker_dies,
    replica_dies,
    primary_is_cut_off,
    worker_dies,
    api_dies,
    balancer_dies,
    balancer_is_reloaded,
    a_setting_changes,
    another_server_becomes_primary,
    redis_is_upgraded,
    all_secrets_are_replaced,
    a_deploy,
    a_deploy_of_a_dead_api,
    a_deploy_of_a_dead_worker,
    a_deploy_of_a_failing_task,
    a_rollback,
]


def test_all_is_well_at_first() -> None:
    wait_for(whole, "all servers replicate", 60)
    # The test hosts' clock is that of the machine, which may be unsynchronized.
    assert set(re.findall(r"-> docs/runbooks/(\w+)\.md", run_well("diagnose/doctor"))) <= {"ClockWrong"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_accepted_is_lost(fault: Callable[..., None], tmp_path: Path) -> None:
    wait_for(all_are_ready, "all hosts", 60)
    fault(*[tmp_path] if "tmp_path" in fault.__annotations__ else [])


def test_a_run_of_site_undoes_no_failover() -> None:
    # Two failovers may have brought it back to where the inventory would begin.
    if primary("broker") == REDIS[0]:
        REDIS[0].run(f"{SENTINEL} failover broker")
        wait_for(lambda: primary("broker") != REDIS[0], "another primary", 30)
        wait_for(whole, "all servers replicate", 60)
    before = {name: primary(name) for name in INSTANCES}
    began = time.monotonic()
    said = site()
    again.append(time.monotonic() - began)
    assert changes(said) == []
    assert before == {name: primary(name) for name in INSTANCES}
    assert whole()


def start(name: str, options: list[str]) -> int:
    """Start an empty host of the kind that the others of Redis are; return the port of its SSH."""
    image = PLATFORMS[REDIS[0].name]["image"]
    command = [str(PROJECT / "scripts/testhost.sh"), "start", name, image, *options]
    port = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    wait_for_ssh(port)
    return port


@contextmanager
def one_redis_more(directory: Path) -> Iterator[tuple[Host, str]]:
    """Add an empty host without a sentinel to the inventory; yield it and the option that gives it to a playbook."""
    like, host, own_address = REDIS[0], Host("cluster-redis-4"), "10.213.1.4"
    *options, _ = PLATFORMS[like.name]["provider_raw_config_args"]
    known = yaml.safe_load((EPHEMERAL / "inventory/ansible_inventory.yml").read_text())["all"]["hosts"][like.name]
    inventory = directory / "inventory.yml"
    try:
        port = start(host.name, [*options, f"--ip={own_address}"])
        entry = known | {"ansible_port": port, "private_address": own_address}
        inventory.write_text(yaml.safe_dump({"redis": {"hosts": {host.name: entry}}}))
        yield host, f"--inventory={inventory}"
    finally:
        podman("rm", "--force", "--time=0", host.name)


@pytest.mark.timeout(1800)
def test_a_redis_host_is_added_and_taken_out(tmp_path: Path) -> None:
    with one_redis_more(tmp_path) as (host, inventory):
        # What a deployment leaves that is broken off; the run brings the API back.
        APIS[0].run("touch /run/typesafe-api.drained")
        site(inventory)
        wait_for(all_are_ready, "all hosts", 30)
        ports = INSTANCES.values()
        wait_for(lambda: all(info(host, port).get("master_link_status") == "up" for port in ports), "a replica", 60)

        rejected = playbook(
            PROJECT / "playbooks/ops/remove_redis.yml", inventory, f"--extra-vars=host={REDIS[0].name} confirm=yes"
        )
        assert rejected.returncode != 0
        assert "an odd number of three sentinels at least" in " ".join(rejected.stdout.split())

        said = run_well("ops/remove_redis", inventory, f"--extra-vars=host={host.name}")
        assert "Nothing was changed." in " ".join(said.split())
        assert info(host, INSTANCES["broker"])["role"] == "slave"

        run_well("ops/remove_redis", inventory, f"--extra-vars=host={host.name} confirm=yes")
        assert not any("role" in info(host, port) for port in ports)
        for sentinel in REDIS:
            assert (
                len(re.findall(r"(?m)^slave-priority$", sentinel.run(f"{SENTINEL} replicas broker"))) == len(REDIS) - 1
            )
    wait_for(whole, "all servers replicate", 60)


def test_an_empty_host_takes_the_place_of_a_dead_one() -> None:
    host = primary("broker")
    others = [other for other in REDIS if other != host]
    kill(host)
    wait_for(lambda: primary("broker", others) != host, "another primary", 30)
    podman("rm", "--force", "--time=0", host.name)
    port = start(host.name, PLATFORMS[host.name]["provider_raw_config_args"])
    site(f"--limit={host.name}", f"--extra-vars={json.dumps({'ansible_port': port})}")
    wait_for(whole, "all servers replicate", 60)
    assert primary("broker") != host
