"""The platform in containers (playbooks/containers/compose.yml): the guide's commands, a worker's stop and death.

With podman-compose; ENGINE=docker takes the Docker that runs on this machine, and its Compose.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from celery_durable.testing import wait_for
from tests.api_client import ApiClient
from tests.containers.project import ENGINE, Compose
from tests.support import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

PROJECT = "compose-test"
IMAGE = f"localhost/{PROJECT}-backend"
# What podman keeps of a build (app/Containerfile).
EGRESS_TABLE = f"workers-{PROJECT}"
# Of the workers, unlike any that a machine with an installation has.
NETWORK = "172.30.213.0/24"
STAGE = f"{PROJECT}-backend-build"
# Seconds; a worker that never comes back is given up 15 s after it.
HARD_LIMIT = 10


class Sample(Compose):
    """The sample application."""

    def __init__(self, directory: Path) -> None:
        """Prepare to install it into ``directory``."""
        limits = {"task_soft_time_limit": HARD_LIMIT - 2, "task_time_limit": HARD_LIMIT}
        # Not only the project, but the application too; so that no other test's images are removed.
        super().__init__(directory, PROJECT, NETWORK, app_name=PROJECT, **limits)

    @property
    def api(self) -> ApiClient:
        """A client of the API."""
        return ApiClient(f"http://127.0.0.1:{self.api_port}", self.key)

    def workers(self) -> list[str]:
        """Return the names of the workers that answer."""
        names: list[str] = self.api.get("/health/celery").json().get("workers", [])
        return names


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """The running project."""
    with Sample(tmp_path_factory.mktemp("compose")).running() as project:
        yield project


def test_a_task_succeeds_and_unexpected_clients_are_rejected(stack: Sample) -> None:
    stack.api.wait(stack.api.enqueue(), seconds=60)
    api = f"http://127.0.0.1:{stack.api_port}/tasks/enqueue"
    assert httpx.post(api, headers={"X-API-Key": "wrong"}, json={"data": {}}).status_code == 401
    flower = f"http://127.0.0.1:{stack.flower_port}/flower/"
    assert httpx.get(flower).status_code == 401
    password = (REPOSITORY / ".secrets/compose/flower_password").read_text().strip()
    assert httpx.get(flower, auth=("admin", password)).status_code == 200


def test_a_second_run_changes_nothing(stack: Sample) -> None:
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", stack.play())


def test_a_wrong_value_is_one_sentence_and_changes_nothing(stack: Sample) -> None:
    output = stack.play("--extra-vars=compose_worker_network=10.0.0.1", check=False)
    assert "compose_worker_network is '10.0.0.1', but it must be a private IPv4 network" in output.splitlines()[-1]
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", output)


@pytest.mark.long
def test_images_of_earlier_releases_go(stack: Sample) -> None:
    name, tag = stack.inspect(stack.containers("api")[0])["Config"]["Image"].rsplit(":", 1)
    assert name == IMAGE
    for number in range(4):
        # An older image has no layer of its own here; its name is what is removed.
        stack.run(ENGINE, "tag", stack.image("base"), f"{IMAGE}:old-{number}")
    stack.play()
    left = stack.run(ENGINE, "image", "ls", "--format={{.Repository}}:{{.Tag}}").split()
    left = [image for image in left if image.startswith(f"{IMAGE}:")]
    assert f"{IMAGE}:{tag}" in left
    assert len(left) == 3
    stages = stack.run(ENGINE, "image", "ls", "--quiet", f"--filter=label=org.opencontainers.image.title={STAGE}")
    assert stages == ""


def test_the_guides_commands_answer(stack: Sample) -> None:
    assert stack.compose("exec", "-T", "redis", "redis-cli", "ping") == "PONG\n"
    assert "ready" in stack.compose("logs", "celery-worker")
    assert "celery-worker" in stack.compose("ps")
    assert stack.api.get("/health").json()["status"] == "healthy"


def test_each_redis_has_its_policy(stack: Sample) -> None:
    for service, policy, fsync in (("redis", "allkeys-lru", "everysec"), ("redis-broker", "noeviction", "always")):
        lines = stack.compose(
            *("exec", "-T", service, "redis-cli", "config", "get", "maxmemory-policy", "appendonly", "appendfsync")
        ).split()
        settings = dict(zip(lines[::2], lines[1::2], strict=True))
        assert settings == {"maxmemory-policy": policy, "appendonly": "yes", "appendfsync": fsync}


def test_containers_are_closed(stack: Sample) -> None:
    for service in ("redis", "redis-broker", "script-keeper", "celery-worker", "api", "flower"):
        (container,) = stack.containers(service)
        found = stack.inspect(container)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"] if ENGINE == "docker" else found["EffectiveCaps"] in (None, [])
        assert "no-new-privileges" in " ".join(host["SecurityOpt"])
        assert found["Config"]["User"] in ("10001:10001", "999:999")
        addresses = {binding["HostIp"] for bindings in host["PortBindings"].values() for binding in bindings}
        assert addresses <= {"127.0.0.1"}
        assert "redis://" not in json.dumps(found["Config"])
        assert stack.key not in json.dumps(found)
    assert stack.run(ENGINE, "exec", stack.containers("api")[0], "ls", "/run/secrets").split() == sorted(
        [
            "BACKEND_API_KEY",
            "CELERY_BROKER_URL",
            "CELERY_RESULT_BACKEND",
            "DURABLE_SIGNING_KEY",
            "REDIS_URL",
            "TASK_SIGNING_KEY",
        ]
    )


# Prints what becomes of a connection to each HOST:PORT, within 3 s.
CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print("open")
    except OSError as error:
        print(type(error).__name__)
"""


def link_local_of(network: str) -> tuple[str, int, int, int]:
    """Return this host's link-local address, with any port, where it is in a network."""
    here = network.rpartition(".")[0]
    for link in json.loads(subprocess.check_output(["ip", "-json", "address"], text=True)):
        addresses = [entry["local"] for entry in link["addr_info"]]
        if any(address.startswith(f"{here}.") for address in addresses):
            local = next(address for address in addresses if address.startswith("fe80:"))
            return local, 0, 0, socket.if_nametoindex(link["ifname"])
    raise LookupError(network)


@pytest.mark.attack("nftables, by the workers' network")
def test_a_task_reaches_redis_and_no_other_service(stack: Sample) -> None:
    worker, redis, api = (stack.containers(service)[0] for service in ("celery-worker", "redis", "api"))
    gateways = re.findall(r'"Gateway": "([0-9.]+)"', json.dumps(stack.inspect(redis)["NetworkSettings"]["Networks"]))
    addresses = re.findall(r'"IPAddress": "([0-9.]+)"', json.dumps(stack.inspect(api)["NetworkSettings"]["Networks"]))
    with contextlib.ExitStack() as opened:
        # The host, at its address in each network.
        here = [opened.enter_context(socket.create_server((gateway, 0))).getsockname() for gateway in gateways]
        closed = [f"{address}:{port}" for address, port in here]
        closed += [f"{address}:{stack.api_port}" for address in addresses] + ["169.254.169.254:80"]
        assert len(closed) == 4
        link_local = opened.enter_context(socket.create_server(link_local_of(NETWORK), family=socket.AF_INET6))
        address, port = link_local.getsockname()[:2]
        other = f"{address.partition('%')[0]}%eth0:{port}"
        wanted = ["redis:6379", "redis-broker:6380"]
        told = stack.run(ENGINE, "exec", worker, "python", "-c", CONNECT, *wanted, *closed, other).split()
    assert told == ["open"] * 2 + ["ConnectionRefusedError"] * 4 + ["OSError"]
    # Nothing but the rules is in the way.
    assert stack.run(ENGINE, "exec", api, "python", "-c", CONNECT, "redis:6379", closed[2]).split() == ["open"] * 2
    counter = stack.run("nft", "list", "counter", "inet", EGRESS_TABLE, "egress_refused")
    assert int(re.findall(r"packets (\d+)", counter)[0]) >= 4


def test_rules_that_somebody_has_removed_come_back(stack: Sample) -> None:
    stack.run("nft", "delete", "table", "inet", EGRESS_TABLE)
    assert re.search(r"localhost +: ok=\d+ +changed=1 ", stack.play())
    assert "reject" in stack.run("nft", "list", "table", "inet", EGRESS_TABLE)


def test_the_image_has_nothing_to_install_or_compile_with(stack: Sample) -> None:
    question = (
        "import importlib.util, shutil; print(importlib.util.find_spec('pip'), *map(shutil.which, ('pip', 'gcc')))"
    )
    answer = stack.run(ENGINE, "exec", stack.containers("celery-worker")[0], "python", "-c", question)
    assert answer.split() == ["None"] * 3


def test_a_stop_lets_the_running_task_finish(stack: Sample) -> None:
    task = stack.api.enqueue()
    wait_for(lambda: stack.api.state(task) == "PROGRESS")
    stack.compose("stop", "celery-worker")
    assert stack.api.state(task) == "SUCCESS"
    stack.compose("start", "celery-worker")
    wait_for(lambda: len(stack.workers()) == 1, seconds=40)


def test_four_workers_of_which_two_die_lose_nothing(stack: Sample) -> None:
    stack.compose("up", "--detach", "--scale", "celery-worker=4")
    wait_for(lambda: len(stack.workers()) == 4, seconds=60)
    assert len(set(stack.workers())) == 4
    killed, lost, *_ = stack.containers("celery-worker")
    process = stack.inspect(killed)["State"]["Pid"]
    tasks = [stack.api.enqueue() for _ in range(24)]
    # Three rounds of two in each of the four: all of them are busy from the first on.
    wait_for(lambda: sum(stack.api.state(task) == "PROGRESS" for task in tasks) >= 4)
    # One comes back as what it was, and one never does.
    os.kill(process, signal.SIGKILL)
    stack.run(ENGINE, "rm", "--force", *(["--time", "0"] if ENGINE == "podman" else []), lost)
    held = f"unacked:default@{lost[:12]}:celery"
    assert int(stack.compose("exec", "-T", "redis-broker", "redis-cli", "llen", held)) > 0
    for task in tasks:
        stack.api.wait(task, seconds=90)
    wait_for(lambda: len(stack.workers()) == 3, seconds=30)


def test_a_hung_worker_is_seen_and_replaced(stack: Sample) -> None:
    container = stack.containers("celery-worker")[0]
    wait_for(lambda: stack.probe(container)[0], seconds=60)
    before = stack.inspect(container)["State"]["StartedAt"]
    # PID 1 is tini; its only child is the worker.
    init = stack.inspect(container)["State"]["Pid"]
    worker = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    os.kill(worker, signal.SIGSTOP)
    wait_for(
        lambda: "No heartbeat" in stack.probe(container)[1] or stack.inspect(container)["State"]["StartedAt"] != before,
        seconds=20,
    )
    wait_for(lambda: stack.inspect(container)["State"]["StartedAt"] != before, seconds=30)
    wait_for(lambda: stack.probe(container)[0], seconds=60)


def test_down_takes_all_of_it_away_but_the_data(stack: Sample) -> None:
    # podman-compose counts what --scale has started among the orphans.
    stack.compose("down", "--remove-orphans")
    project = f"--filter=label=com.docker.compose.project={PROJECT}"
    assert stack.run(ENGINE, "ps", "--all", "--quiet", project) == ""
    assert f"{PROJECT}_redis-broker" in stack.run(ENGINE, "volume", "ls", "--quiet").split()
