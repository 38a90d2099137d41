"""A project of Compose that a test installs, and the commands that its user types.

With podman-compose; ENGINE=docker takes the Docker that runs on this machine, and its Compose.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from celery_durable.testing import free_port
from tests.support import REPOSITORY

ENGINE = os.environ.get("ENGINE", "podman")
COMPOSE = {"docker": ("docker", "compose"), "podman": ("podman-compose",)}[ENGINE]


class Compose:
    """The installed project, and the commands that its user types."""

    def __init__(self, directory: Path, name: str, network: str, **variables: Any) -> None:
        """Prepare to install it into ``directory``, with its workers in ``network``, unlike any of an installation."""
        self.name = name
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
                    "compose_name": name,
                    "compose_worker_network": network,
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
                    **variables,
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

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Install it; at the end it is taken down with its data."""
        self.remove()  # what a run that was broken off has left
        try:
            self.play()
            yield self
        finally:
            self.remove()

    def remove(self) -> None:
        """Remove containers and data, whatever state they are in."""
        project = f"--filter=label=com.docker.compose.project={self.name}"
        if containers := self.run(ENGINE, "ps", "--all", "--quiet", project, cwd=REPOSITORY).split():
            at_once = ["--time", "0", "--depend"] if ENGINE == "podman" else []
            self.run(ENGINE, "rm", "--force", *at_once, *containers, cwd=REPOSITORY)
        if volumes := self.run(ENGINE, "volume", "ls", "--quiet", project, cwd=REPOSITORY).split():
            self.run(ENGINE, "volume", "rm", *volumes, cwd=REPOSITORY)
        networks = [f"{self.name}_default", f"{self.name}_workers"]
        self.run(ENGINE, "network", "rm", "--force", *networks, cwd=REPOSITORY, check=False)
        self.run("nft", "delete", "table", "inet", f"workers-{self.name}", cwd=REPOSITORY, check=False)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        label = f"--filter=label=com.docker.compose.service={service}"
        project = f"--filter=label=com.docker.compose.project={self.name}"
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
