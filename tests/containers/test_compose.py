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
from typing import Any

import httpx
import pytest

from tests.support import REPOSITORY, free_port, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

PROJECT = "compose-test"
ENGINE = os.environ.get("ENGINE", "podman")
COMPOSE = {"docker": ("docker", "compose"), "podman": ("podman-compose",)}[ENGINE]
IMAGE = f"localhost/{PROJECT}-backend"
# What podman keeps of a build (app/Containerfile).
EGRESS_TABLE = f"workers-{PROJECT}"
# Of the workers, unlike any that a machine with an installation has.
NETWORK = "172.30.213.0/24"
STAGE = f"{PROJECT}-backend-build"
# Seconds; a worker that never comes back is given up 15 s after it.
HARD_LIMIT = 10


class Compose:
    """The installed project, and the commands that its user types."""

    def __init__(self, directory: Path) -> None:
        """Prepare to install it into ``directory``."""
        self.directory = directory / "project"
        self.api_port, self.flower_port = free_port(), free_port()
        programs = directory / "bin"
        programs.mkdir()
        # podman as this machine can run it (scripts/podman.sh).
        (programs / "podman").symlink_to(REPOSITORY / "scripts/podman.sh")
        binaries = REPOSITORY / ".venv/bin"
        self.env = {**os.environ, "PATH": f"{programs}:{binaries}:{os.environ['PATH']}"}
        self.variables = directory / "variables.json"
        self.variables.write_text(
            json.dumps(
                {
                    "compose_engine": ENGINE,
                    # Not only the project, but the application too; so that no other test's images are removed.
                    "app_name": PROJECT,
                    "compose_worker_network": NETWORK,
                    "compose_directory": str(self.directory),
                    # Without a registry; the images are made as Debian makes its own.
                    "container_base_image": self.image("base"),
                    "container_redis_image": self.image("redis"),
                    "container_redis_version": "8.0",
                    # Where scripts/podman.sh has to help there are no cgroup controllers.
                    "compose_limits": ENGINE == "docker",
                    "api_port": self.api_port,
                    "flower_port": self.flower_port,
                    "api_processes": 1,
                    "celery_worker_concurrency": 2,
                    "task_soft_time_limit": HARD_LIMIT - 2,
                    "task_time_limit": HARD_LIMIT,
                }
            )
        )
        self.key = ""

    def image(self, kind: str) -> str:
        """Return an image that the engine has and scripts/images.sh makes, with podman."""
        name = self.run("scripts/images.sh", kind, "debian13", cwd=REPOSITORY).strip()
        if ENGINE == "docker":
            self.run("sh", "-c", f"podman save {name} | docker load", cwd=REPOSITORY)
        return name

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run a command in the project's directory; return what it says."""
        result = subprocess.run(
            command, cwd=cwd or self.directory, env=self.env, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0 or not check, f"{command}: {result.stdout[-3000:]}{result.stderr[-3000:]}"
        return result.stdout

    def compose(self, *arguments: str) -> str:
        """Run the engine's docker-compose."""
        return self.run(*COMPOSE, *arguments)

    def play(self, *options: str, check: bool = True) -> str:
        """Run the playbook; return what it prints."""
        playbook = ("-i", "inventories/compose", "playbooks/containers/compose.yml", f"--extra-vars=@{self.variables}")
        output = self.run("ansible-playbook", *playbook, *options, cwd=REPOSITORY, check=check)
        self.key = (REPOSITORY / ".secrets/compose/backend_api_key").read_text().strip()
        return output

    def remove(self) -> None:
        """Remove containers and data, whatever state they are in."""
        project = f"--filter=label=com.docker.compose.project={PROJECT}"
        if containers := self.run(ENGINE, "ps", "--all", "--quiet", project, cwd=REPOSITORY).split():
            at_once = ["--time", "0", "--depend"] if ENGINE == "podman" else []
            self.run(ENGINE, "rm", "--force", *at_once, *containers, cwd=REPOSITORY)
        if volumes := self.run(ENGINE, "volume", "ls", "--quiet", project, cwd=REPOSITORY).split():
            self.run(ENGINE, "volume", "rm", *volumes, cwd=REPOSITORY)
        networks = [f"{PROJECT}_default", f"{PROJECT}_workers"]
        self.run(ENGINE, "network", "rm", "--force", *networks, cwd=REPOSITORY, check=False)
        self.run("nft", "delete", "table", "inet", EGRESS_TABLE, cwd=REPOSITORY, check=False)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        label = f"--filter=label=com.docker.compose.service={service}"
        project = f"--filter=label=com.docker.compose.project={PROJECT}"
        return self.run(ENGINE, "ps", "--quiet", "--no-trunc", label, project).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container."""
        found: dict[str, Any] = json.loads(self.run(ENGINE, "inspect", container))[0]
        return found

    def probe(self, container: str) -> tuple[bool, str]:
        """Return whether a container is healthy, and what its probe says; podman has no timer and is told to ask."""
        if ENGINE == "podman":
            command = ["podman", "healthcheck", "run", container]
            run = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
            return run.returncode == 0, run.stdout + run.stderr
        health = self.inspect(container)["State"]["Health"]
        return health["Status"] == "healthy", health["Log"][-1]["Output"] if health["Log"] else ""

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask the API."""
        return httpx.get(
            f"http://127.0.0.1:{self.api_port}{path}", headers={"X-API-Key": self.key}, timeout=10, **options
        )

    def enqueue(self) -> str:
        """Send a task; return its id."""
        url = f"http://127.0.0.1:{self.api_port}/tasks/enqueue"
        answer = httpx.post(url, headers={"X-API-Key": self.key}, json={"data": {"key": "value"}}, timeout=10)
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id

    def state(self, task_id: str) -> str:
        """Return a task's state."""
        state: str = self.get(f"/tasks/status/{task_id}").json()["status"]
        return state

    def wait_for(self, task_ids: list[str], timeout: float = 60) -> None:
        """Wait until all of them have succeeded."""
        wait_until(lambda: all(self.state(task_id) == "SUCCESS" for task_id in task_ids), timeout, interval=0.5)

    def workers(self) -> list[str]:
        """Return the names of the workers that answer."""
        names: list[str] = self.get("/health/celery").json().get("workers", [])
        return names


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The running project; at the end it is taken down with its data."""
    project = Compose(tmp_path_factory.mktemp("compose"))
    project.remove()  # what a run that was broken off has left
    try:
        project.play()
        yield project
    finally:
        project.remove()


def test_a_task_succeeds_and_strangers_are_refused(stack: Compose) -> None:
    stack.wait_for([stack.enqueue()])
    api = f"http://127.0.0.1:{stack.api_port}/tasks/enqueue"
    assert httpx.post(api, headers={"X-API-Key": "wrong"}, json={"data": {}}).status_code == 401
    flower = f"http://127.0.0.1:{stack.flower_port}/flower/"
    assert httpx.get(flower).status_code == 401
    password = (REPOSITORY / ".secrets/compose/flower_password").read_text().strip()
    assert httpx.get(flower, auth=("admin", password)).status_code == 200


def test_a_second_run_changes_nothing(stack: Compose) -> None:
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", stack.play())


def test_a_wrong_value_is_one_sentence_and_changes_nothing(stack: Compose) -> None:
    output = stack.play("--extra-vars=compose_worker_network=10.0.0.1", check=False)
    assert "compose_worker_network is '10.0.0.1', but it must be a private IPv4 network" in output.splitlines()[-1]
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", output)


def test_images_of_earlier_releases_go(stack: Compose) -> None:
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


def test_the_guides_commands_answer(stack: Compose) -> None:
    assert stack.compose("exec", "-T", "redis", "redis-cli", "ping") == "PONG\n"
    assert "ready" in stack.compose("logs", "celery-worker")
    assert "celery-worker" in stack.compose("ps")
    assert stack.get("/health").json()["status"] == "healthy"


def test_each_redis_has_its_policy(stack: Compose) -> None:
    for service, policy, fsync in (("redis", "allkeys-lru", "everysec"), ("redis-broker", "noeviction", "always")):
        lines = stack.compose(
            *("exec", "-T", service, "redis-cli", "config", "get", "maxmemory-policy", "appendonly", "appendfsync")
        ).split()
        settings = dict(zip(lines[::2], lines[1::2], strict=True))
        assert settings == {"maxmemory-policy": policy, "appendonly": "yes", "appendfsync": fsync}


def test_containers_are_closed(stack: Compose) -> None:
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
def test_a_task_reaches_redis_and_no_other_service(stack: Compose) -> None:
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


def test_rules_that_somebody_has_removed_come_back(stack: Compose) -> None:
    stack.run("nft", "delete", "table", "inet", EGRESS_TABLE)
    assert re.search(r"localhost +: ok=\d+ +changed=1 ", stack.play())
    assert "reject" in stack.run("nft", "list", "table", "inet", EGRESS_TABLE)


def test_the_image_has_nothing_to_install_or_compile_with(stack: Compose) -> None:
    question = (
        "import importlib.util, shutil; print(importlib.util.find_spec('pip'), *map(shutil.which, ('pip', 'gcc')))"
    )
    answer = stack.run(ENGINE, "exec", stack.containers("celery-worker")[0], "python", "-c", question)
    assert answer.split() == ["None"] * 3


def test_a_stop_lets_the_running_task_finish(stack: Compose) -> None:
    task = stack.enqueue()
    wait_until(lambda: stack.state(task) == "PROGRESS")
    stack.compose("stop", "celery-worker")
    assert stack.state(task) == "SUCCESS"
    stack.compose("start", "celery-worker")
    wait_until(lambda: len(stack.workers()) == 1, timeout=40)


def test_four_workers_of_which_two_die_lose_nothing(stack: Compose) -> None:
    stack.compose("up", "--detach", "--scale", "celery-worker=4")
    wait_until(lambda: len(stack.workers()) == 4, timeout=60)
    assert len(set(stack.workers())) == 4
    killed, lost, *_ = stack.containers("celery-worker")
    process = stack.inspect(killed)["State"]["Pid"]
    tasks = [stack.enqueue() for _ in range(24)]
    # Three rounds of two in each of the four: all of them are busy from the first on.
    wait_until(lambda: sum(stack.state(task) == "PROGRESS" for task in tasks) >= 4)
    # One comes back as what it was, and one never does.
    os.kill(process, signal.SIGKILL)
    stack.run(ENGINE, "rm", "--force", *(["--time", "0"] if ENGINE == "podman" else []), lost)
    held = f"unacked:default@{lost[:12]}:celery"
    assert int(stack.compose("exec", "-T", "redis-broker", "redis-cli", "llen", held)) > 0
    stack.wait_for(tasks, timeout=90)
    wait_until(lambda: len(stack.workers()) == 3, timeout=30)


def test_a_hung_worker_is_seen_and_replaced(stack: Compose) -> None:
    container = stack.containers("celery-worker")[0]
    wait_until(lambda: stack.probe(container)[0], timeout=60)
    before = stack.inspect(container)["State"]["StartedAt"]
    # PID 1 is tini; its only child is the worker.
    init = stack.inspect(container)["State"]["Pid"]
    worker = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    os.kill(worker, signal.SIGSTOP)
    wait_until(
        lambda: (
            "No sign of life" in stack.probe(container)[1] or stack.inspect(container)["State"]["StartedAt"] != before
        ),
        20,
    )
    wait_until(lambda: stack.inspect(container)["State"]["StartedAt"] != before, timeout=30)
    wait_until(lambda: stack.probe(container)[0], timeout=60)


def test_down_takes_all_of_it_away_but_the_data(stack: Compose) -> None:
    # podman-compose counts what --scale has started among the orphans.
    stack.compose("down", "--remove-orphans")
    project = f"--filter=label=com.docker.compose.project={PROJECT}"
    assert stack.run(ENGINE, "ps", "--all", "--quiet", project) == ""
    assert f"{PROJECT}_redis-broker" in stack.run(ENGINE, "volume", "ls", "--quiet").split()
