"""The manifests, as the playbook renders them and as Kustomize builds them."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate.utils
import yaml

from tests.support import ansible_playbook

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy/kubernetes"
Manifest = dict[str, Any]
# It reads all schemas of a version again for each manifest.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
kubernetes_validate.utils.all_versions = functools.cache(kubernetes_validate.utils.all_versions)
# Of Kubernetes, the oldest first; the role does not apply to an older one.
VERSIONS = ["1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
SERVICES = ("worker", "api", "flower", "exporter", "operator")


def random_secrets() -> dict[str, Any]:
    """Return what `make secrets` writes into a vault, as far as Kubernetes needs it."""
    names = ("redis_password", "flower_password", "backend_api_key", "task_signing_key", "control_signing_key")
    return {
        **{name: secrets.token_hex(24) for name in names},
        "redis_user_passwords": {name: secrets.token_hex(24) for name in SERVICES},
    }


def playbook(
    *arguments: str, name: str = "kubernetes", env: dict[str, str] | None = None, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run the playbook without an inventory, or another one."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as extra:
        json.dump(variables, extra)
        extra.flush()
        options = ["-i", "localhost,", f"playbooks/containers/{name}.yml", "-e", f"@{extra.name}", *arguments]
        return ansible_playbook(*options, **(env or {}))


def render(directory: Path, **variables: Any) -> None:
    """Let the playbook write manifests into a directory."""
    result = playbook(**variables, kubernetes_directory=str(directory))
    assert result.returncode == 0, result.stdout + result.stderr


def read(*files: Path) -> list[Manifest]:
    """Return the manifests in some files."""
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def overlay(name: str, directory: Path, *, component: str = "keda") -> list[Manifest]:
    """Make an overlay's secrets, in a copy, and build it."""
    shutil.copytree(DEPLOY, directory / "deploy", ignore=shutil.ignore_patterns("overlays"))
    source, place = DEPLOY / "overlays" / name, directory / "deploy/overlays" / name
    place.mkdir(parents=True)
    text = (source / "kustomization.yml").read_text()
    (place / "kustomization.yml").write_text(text.replace("components/keda", f"components/{component}"))
    subprocess.run([sys.executable, directory / "deploy/make_secrets.py", place], check=True)
    command = ["kubectl", "kustomize", str(place)]
    # A kubeconfig of whoever runs this has nothing to say here.
    built = subprocess.run(command, env={**os.environ, "KUBECONFIG": os.devnull}, capture_output=True, check=True)
    return list(yaml.safe_load_all(built.stdout))


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by their names."""
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return what makes pods, by name."""
    return {**named(manifests, "StatefulSet"), **named(manifests, "Deployment")}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Tell whether a label selector selects."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def connections(manifests: list[Manifest]) -> set[tuple[str, str, int]]:
    """Return which workload may connect to which, and where: both sides' policies must allow it."""
    pods = {name: each["spec"]["template"] for name, each in workloads(manifests).items()}
    policies = list(named(manifests, "NetworkPolicy").values())
    ports = {int(port["port"]) for rule in _rules(policies, "ingress") for port in rule["ports"]}

    def allows(direction: str, peer_key: str, one: str, other: str, port: int) -> bool:
        mine = [
            policy["spec"]
            for policy in policies
            if selects(policy["spec"]["podSelector"], pods[one]["metadata"]["labels"])
            and direction.capitalize() in policy["spec"]["policyTypes"]
        ]
        return not mine or any(
            any(number["port"] == port for number in rule["ports"])
            and any(
                "podSelector" in peer
                and "namespaceSelector" not in peer
                and selects(peer["podSelector"], pods[other]["metadata"]["labels"])
                for peer in rule[peer_key]
            )
            for spec in mine
            for rule in spec.get(direction, [])
        )

    return {
        (client, server, port)
        for client in pods
        for server in pods
        for port in ports
        if allows("egress", "to", client, server, port) and allows("ingress", "from", server, client, port)
    }


def reaches(manifests: list[Manifest], pod: str, address: str, port: int, protocol: str = "TCP") -> bool:
    """Say whether the policies let a workload connect to an address."""
    labels = workloads(manifests)[pod]["spec"]["template"]["metadata"]["labels"]
    policies = [
        policy
        for policy in named(manifests, "NetworkPolicy").values()
        if selects(policy["spec"]["podSelector"], labels) and "Egress" in policy["spec"]["policyTypes"]
    ]

    def holds(block: Manifest) -> bool:
        return ip_address(address) in ip_network(block["cidr"]) and not any(
            ip_address(address) in ip_network(network) for network in block.get("except", [])
        )

    return any(
        any("ipBlock" in peer and holds(peer["ipBlock"]) for peer in rule["to"])
        and any(
            each["protocol"] == protocol and each["port"] <= port <= each.get("endPort", each["port"])
            for each in rule["ports"]
        )
        for rule in _rules(policies, "egress")
    )


def _rules(policies: list[Manifest], direction: str) -> list[Manifest]:
    return [rule for policy in policies for rule in policy["spec"].get(direction, [])]
