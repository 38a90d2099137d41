"""The rendered pods run, with `podman kube play` in Kubernetes' place, and lose no task when they die."""

from __future__ import annotations

import base64
import copy
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from celery_durable.testing import wait_for
from tests.api_client import ApiClient
from tests.kubernetes.manifests import ROOT, Manifest, named, playbook, random_secrets, read, render, workloads

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

PODMAN = str(ROOT / "scripts/podman.sh")
# What podman keeps of a build (app/Containerfile).
STAGE = "typesafe-backend-build"
TASK_SECONDS = 2  # app/agents/tasks/example_task.py


def podman(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Run podman where containers can run; return its output."""
    result = subprocess.run([PODMAN, *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0 or not check, f"podman {arguments}: {result.stderr}{result.stdout}"
    return result.stdout.strip()


def cgroups() -> Path:
    """Return where podman finds control groups: scripts/podman.sh may have mounted them for it."""
    holder = Path("/run/platform-testhosts/holder.pid")
    return (
        Path("/proc", holder.read_text().strip(), "root/sys/fs/cgroup") if holder.exists() else Path("/sys/fs/cgroup")
    )


def image(kind: str) -> str:
    """Return the name of an image as registries have it; it is made when it is missing."""
    result = subprocess.run([ROOT / "scripts/images.sh", kind, "debian13"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[-1]


def build(directory: Path) -> str:
    """Build the application's image with its playbook; return its name."""
    # podman as this machine can run it (scripts/podman.sh).
    (directory / "podman").symlink_to(PODMAN)
    name = "localhost/kubernetes-test-backend:1"
    variables = {
        **random_secrets(),
        "kubernetes_image": name,
        "kubernetes_image_engine": "podman",
        "container_base_image": image("base"),
    }
    env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    result = playbook(name="image", env=env, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return name


class Kubelet:
    """Does for a pod's volumes what the kubelet does and podman (4.3) cannot: secrets as files, and fsGroup."""

    def __init__(self, root: Path, secrets_: dict[str, Manifest]) -> None:
        """Keep the volumes below ``root``."""
        self._root = root
        self._secrets = secrets_

    def pod(self, workload: Manifest, ordinal: str) -> Manifest:
        """Return the pod that a StatefulSet's or Deployment's controller makes of its template."""
        name = f"{workload['metadata']['name']}-{ordinal}"
        template = workload["spec"]["template"]
        claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = [*template["spec"]["volumes"], *({"name": claim, "persistentVolumeClaim": {}} for claim in claims)]
        group = template["spec"]["securityContext"]["fsGroup"]
        mounted = [
            {"name": volume["name"], "hostPath": {"path": str(self._mount(volume, name, group)), "type": "Directory"}}
            for volume in volumes
        ]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name},
            "spec": copy.deepcopy({**template["spec"], "volumes": mounted}),
        }

    def _mount(self, volume: Manifest, pod: str, group: int) -> Path:
        directory = self._root / f"{pod}-{volume['name']}"
        if "persistentVolumeClaim" not in volume:
            shutil.rmtree(directory, ignore_errors=True)  # a new pod has new ones
        directory.mkdir(exist_ok=True)
        os.chown(directory, 0, group)
        directory.chmod(0o2775 if "secret" in volume else 0o2777)
        if secret := volume.get("secret"):
            for file, content in self._secrets[secret["secretName"]]["data"].items():
                path = directory / file
                path.write_bytes(base64.b64decode(content))
                os.chown(path, 0, group)
                path.chmod(secret["defaultMode"])
        return directory


class Cluster:
    """Pods on a network of their own, where a Service's name leads to its pod."""

    def __init__(self, manifests: list[Manifest], directory: Path) -> None:
        """Make the network; volumes go below ``directory``."""
        self.network = f"kubernetes-test-{secrets.token_hex(3)}"
        self._kubelet = Kubelet(directory, named(manifests, "Secret"))
        self._settings = list(named(manifests, "ConfigMap").values())
        self._workloads = workloads(manifests)
        self.pods: dict[str, str] = {}
        podman("network", "create", self.network)

    def start(self, name: str) -> None:
        """Start the first pod of a workload, or start it anew."""
        pod = self._kubelet.pod(self._workloads[name], "0")
        self.pods[name] = pod["metadata"]["name"]
        if "memory" not in (cgroups() / "cgroup.controllers").read_text().split():
            # A machine with hybrid hierarchies: podman has no controller for limits and would reject them.
            for inner in pod["spec"]["containers"]:
                del inner["resources"]
        text = yaml.safe_dump_all([*self._settings, pod])
        podman("kube", "play", "--start=false", "--network", f"{self.network}:alias={name}", "-", stdin=text)
        if not Path("/run/systemd/system").exists():
            # Without systemd, podman 4.3 gives the pod's control group a rule that forbids all devices, /dev/null too.
            group = cgroups() / podman("pod", "inspect", "--format", "{{.CgroupPath}}", self.pods[name]).lstrip("/")
            group.rmdir()
            group.mkdir()
        podman("pod", "start", self.pods[name])

    def container(self, name: str) -> str:
        """Return the name of a workload's only container."""
        [inner] = self._workloads[name]["spec"]["template"]["spec"]["containers"]
        return f"{self.pods[name]}-{inner['name']}"

    def probe(self, name: str, probe: str) -> int:
        """Run an exec probe as the kubelet does; return its exit status."""
        [inner] = self._workloads[name]["spec"]["template"]["spec"]["containers"]
        command = [PODMAN, "exec", self.container(name), *inner[probe]["exec"]["command"]]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def wait_for(self, name: str, probe: str) -> None:
        """Wait until a probe succeeds."""
        wait_for(lambda: self.probe(name, probe) == 0, seconds=60)

    def address(self, name: str) -> str:
        """Return a pod's address."""
        infra = json.loads(podman("pod", "inspect", self.pods[name]))["InfraContainerID"]
        networks = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"]
        return str(networks[self.network]["IPAddress"])

    def stop(self) -> None:
        """Remove everything; pytest shows the last lines of each pod when a test has failed."""
        for name, pod in self.pods.items():
            subprocess.run(
                [PODMAN, "logs", "--tail", "15", self.container(name)], stderr=subprocess.STDOUT, check=False
            )
            podman("pod", "rm", "--force", "--time", "0", pod, check=False)
        podman("network", "rm", "--force", self.network, check=False)
        podman("image", "prune", "--force", f"--filter=label=org.opencontainers.image.title={STAGE}", check=False)


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """Secrets of this run."""
    return random_secrets()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> Iterator[Cluster]:
    """All pods, one of each."""
    directory = tmp_path_factory.mktemp("manifests")
    images = {"kubernetes_image": build(tmp_path_factory.mktemp("bin")), "kubernetes_redis_image": image("redis")}
    # Debian 13 has Redis 8.0.
    render(directory, **values, **images, kubernetes_redis_version="8.0")
    cluster = Cluster(read(*sorted(directory.iterdir())), tmp_path_factory.mktemp("volumes"))
    try:
        for name in ("redis", "redis-broker"):
            cluster.start(name)
            cluster.wait_for(name, "readinessProbe")
        cluster.start("script-keeper")
        cluster.wait_for("script-keeper", "readinessProbe")
        for name in ("celery-worker", "api", "flower"):
            cluster.start(name)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def api(cluster: Cluster, values: dict[str, Any]) -> ApiClient:
    """The API, as soon as it can take work."""
    api = ApiClient(f"http://{cluster.address('api')}:8000", values["backend_api_key"])

    def ready() -> bool:
        try:
            return api.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(ready, seconds=60)
    cluster.wait_for("celery-worker", "startupProbe")
    return api


def running(api: ApiClient, task: str) -> None:
    """Wait until a worker is in the middle of a task."""
    wait_for(lambda: api.state(task) in {"STARTED", "PROGRESS"}, seconds=30)


def test_a_task_goes_through(api: ApiClient) -> None:
    task = api.enqueue()
    api.wait(task, seconds=60)
    assert api.get("/health/celery").json()["workers"] == ["default@celery-worker-0"]


def test_the_probes_answer(cluster: Cluster, api: ApiClient) -> None:
    for name in ("redis", "redis-broker"):
        assert cluster.probe(name, "livenessProbe") == 0
    for name in ("script-keeper", "celery-worker"):
        assert cluster.probe(name, "livenessProbe") == 0
    assert api.get("/health").status_code == 200
    for probe in ("livenessProbe", "readinessProbe"):
        cluster.wait_for("flower", probe)
    assert httpx.get(f"http://{cluster.address('flower')}:5555/flower/").status_code == 401


def test_the_containers_have_no_rights(cluster: Cluster, api: ApiClient) -> None:  # noqa: ARG001 - all of them run
    for name in cluster.pods:
        status = podman("exec", cluster.container(name), "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["10001"] * 4, name
        assert (fields["CapEff"], fields["CapBnd"]) == ("0" * 16, "0" * 16), name
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2"), name
        written = subprocess.run(
            [PODMAN, "exec", cluster.container(name), "touch", "/usr/x"], capture_output=True, check=False
        )
        assert written.returncode != 0, name


def test_no_secret_is_in_the_environment_or_an_argument(
    cluster: Cluster,
    api: ApiClient,  # noqa: ARG001 - all of them run
    values: dict[str, Any],
) -> None:
    flat = [*values["redis_user_passwords"].values(), values["backend_api_key"], values["redis_password"]]
    for name in cluster.pods:
        seen = podman("exec", cluster.container(name), "cat", "/proc/1/environ", "/proc/1/cmdline")
        assert not any(value in seen for value in flat), name


def test_a_worker_pod_killed_in_the_middle_of_its_tasks_loses_none(cluster: Cluster, api: ApiClient) -> None:
    tasks = [api.enqueue() for _ in range(6)]
    running(api, tasks[0])
    podman("pod", "rm", "--force", "--time", "0", cluster.pods["celery-worker"])
    time.sleep(TASK_SECONDS)  # nobody else finishes them meanwhile
    assert any(api.state(task) != "SUCCESS" for task in tasks)
    # As a StatefulSet does it: under the same name.
    cluster.start("celery-worker")
    began = time.monotonic()
    for task in tasks:
        api.wait(task, seconds=60)
    # At once, and not when the dead worker's lease has run out (task_time_limit and 15 s).
    assert time.monotonic() - began < 45
    assert "celery_dead_letters 0.0" in api.get("/metrics").text


def test_a_stop_lets_running_tasks_end(cluster: Cluster, api: ApiClient) -> None:
    cluster.wait_for("celery-worker", "startupProbe")
    task = api.enqueue()
    running(api, task)
    # TERM to process 1 and the grace period, as the kubelet does it.
    podman("stop", "--time", "90", cluster.container("celery-worker"))
    assert api.state(task) == "SUCCESS"
    state = json.loads(podman("inspect", cluster.container("celery-worker")))[0]["State"]
    assert state["ExitCode"] == 0
    podman("pod", "rm", "--force", "--time", "0", cluster.pods["celery-worker"])


def test_what_waits_survives_a_new_broker_pod(cluster: Cluster, api: ApiClient) -> None:
    tasks = [api.enqueue() for _ in range(5)]
    podman("pod", "rm", "--force", "--time", "0", cluster.pods["redis-broker"])
    assert api.get("/health/ready").status_code == 503
    cluster.start("redis-broker")
    cluster.wait_for("redis-broker", "readinessProbe")
    cluster.start("celery-worker")
    wait_for(lambda: api.get("/health/ready").status_code == 200, seconds=30)
    for task in tasks:
        api.wait(task, seconds=60)
