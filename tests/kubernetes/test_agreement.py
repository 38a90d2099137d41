"""Kubernetes is told what systemd is told: settings, command lines, time to stop, Redis' policies."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.manifests import ROOT, Manifest, named, random_secrets, read, render, workloads

pytestmark = pytest.mark.timeout(300)

# Each is what the inventory says, in both.
INVENTORY: dict[str, Any] = {
    "log_level": "warning",
    "task_time_limit": 300,
    "task_soft_time_limit": 280,
    "result_expires": 7200,
    "task_default_rate_limit": "100/m",
    "celery_worker_concurrency": 7,
    "api_graceful_stop_seconds": 20,
    "flower_max_tasks": 500,
}
# What follows from where it runs: pods, and no replicas of Redis.
OWN = {"WORKERS_EXPECTED", "BROKER_REPLICAS_WANTED"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hosts get."""
    directory = tmp_path_factory.mktemp("hosts")
    extra = json.dumps({**INVENTORY, "destination": str(directory)})
    command = ["ansible-playbook", "-i", "localhost,", f"--extra-vars={extra}", "tests/templates/render.yml"]
    filters = os.environ | {"ANSIBLE_FILTER_PLUGINS": str(ROOT / "roles/stack/filter_plugins")}
    result = subprocess.run(command, cwd=ROOT, env=filters, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    return directory


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """What a cluster gets."""
    directory = tmp_path_factory.mktemp("cluster")
    render(directory, **random_secrets(), **INVENTORY)
    return read(*directory.iterdir())


def unit(hosts: Path, name: str) -> str:
    """Return a unit with its continued lines joined."""
    return (hosts / f"{name}.service").read_text().replace("\\\n", " ")


def arguments_of_unit(hosts: Path, name: str) -> list[str]:
    """Return a unit's command line, without the path of the program."""
    match = re.search(r"^ExecStart=(.*)$", unit(hosts, name), re.MULTILINE)
    assert match
    program, *arguments = shlex.split(match[1])
    return [Path(program).name, *arguments]


def pod(manifests: list[Manifest], name: str) -> Manifest:
    """Return a workload's pod."""
    spec: Manifest = workloads(manifests)[name]["spec"]["template"]["spec"]
    return spec


def options(arguments: list[str]) -> set[str]:
    """Return options as --name=value, however they were written."""
    return set(re.sub(r"(--[a-z-]+) (?!-)", r"\1=", " ".join(arguments)).split())


def test_settings(hosts: Path, manifests: list[Manifest]) -> None:
    lines = [line for line in (hosts / "backend.env").read_text().splitlines() if line and not line.startswith("#")]
    on_hosts = {name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in lines)}
    in_cluster = named(manifests, "ConfigMap")["typesafe-settings"]["data"]
    assert on_hosts.pop("SECRETS_DIRECTORY")
    assert on_hosts.keys() == in_cluster.keys()
    assert {name for name in on_hosts if on_hosts[name] != in_cluster[name]} <= OWN


def test_command_lines(hosts: Path, manifests: list[Manifest]) -> None:
    worker = [argument.replace("@%h", "@%H") for argument in pod(manifests, "celery-worker")["containers"][0]["args"]]
    assert worker == arguments_of_unit(hosts, "worker")
    # Where they listen, how many processes there are and where state lies follows from where they run.
    place = re.compile(r"--(fd|workers|host|port|address|db|log-config)=")
    for name in ("api", "flower"):
        told = [options(pod(manifests, name)["containers"][0]["args"]), options(arguments_of_unit(hosts, name))]
        mine, theirs = ({option for option in each if not place.match(option)} for each in told)
        assert mine == theirs


def test_time_to_stop(hosts: Path, manifests: list[Manifest]) -> None:
    match = re.search(r"^TimeoutStopSec=(\d+)$", unit(hosts, "worker"), re.MULTILINE)
    assert match
    assert pod(manifests, "celery-worker")["terminationGracePeriodSeconds"] == int(match[1]) > 300 + 5 + 10
    api = pod(manifests, "api")
    drain = int(api["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert api["terminationGracePeriodSeconds"] > drain + 20
