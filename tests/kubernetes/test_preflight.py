"""Every wrong value is refused in a sentence that names variable, value and rule."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.kubernetes.manifests import ROOT, playbook, random_secrets

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "good": ({}, []),
    "namespace": ({"kubernetes_namespace": "Type_Safe"}, ["kubernetes_namespace is 'Type_Safe'", "lower-case"]),
    "memory": ({"kubernetes_worker_memory": "1G"}, ["kubernetes_worker_memory is '1G'", "Mi or Gi"]),
    "processors": ({"kubernetes_api_cpu": "half"}, ["kubernetes_api_cpu is 'half'", "500m"]),
    "root": ({"kubernetes_user": 0}, ["kubernetes_user is 0", "root"]),
    "replicas": ({"kubernetes_api_replicas": 0}, ["kubernetes_api_replicas is 0", "at least 1"]),
    "autoscaling": ({"kubernetes_autoscaling": "both"}, ["kubernetes_autoscaling", "both", "keda, hpa"]),
    "no-room": (
        {"kubernetes_autoscaling": "hpa", "kubernetes_worker_max_replicas": 3},
        ["kubernetes_worker_max_replicas is 3", "'default'", "3 pods"],
    ),
    "purpose": (
        {"kubernetes_existing_secrets": {"workers": "x"}},
        ["kubernetes_existing_secrets", "workers", "worker"],
    ),
    "pool": ({"kubernetes_worker_pool_replicas": {"slow": 2}}, ["kubernetes_worker_pool_replicas has slow", "default"]),
    "no-package": ({"kubernetes_context": "kind"}, ["Python package kubernetes", "requirements/kubernetes.txt"]),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    # An interpreter without the package, wherever the tests run.
    common = {
        "ansible_python_interpreter": sys.executable,
        "kubernetes_directory": str(tmp_path_factory.mktemp("none")),
    }
    hosts = {name: {**common, **variables} for name, (variables, _) in CASES.items()}
    inventory = tmp_path_factory.mktemp("inventory") / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    command = ["ansible-playbook", f"--inventory={inventory}", "tests/kubernetes/preflight.yml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = dict.fromkeys(CASES, "")
    for line in result.stdout.splitlines():
        if line.startswith(("fatal: [", "failed: [")):
            found[line.split("[")[1].split("]")[0]] += line
    assert "PLAY RECAP" in result.stdout, result.stderr
    return found


@pytest.mark.parametrize("name", CASES)
def test_each_case(messages: dict[str, str], name: str) -> None:
    _, words = CASES[name]
    assert all(word in messages[name] for word in words), messages[name]
    assert bool(messages[name]) == bool(words), messages[name]


def test_tls_for_redis_is_refused() -> None:
    authority = {"redis_tls_ca": "BEGIN CERTIFICATE", "redis_tls_ca_key": "PRIVATE KEY"}
    result = playbook(**random_secrets(), **authority, redis_tls=True)
    assert result.returncode != 0
    assert "redis_tls is true, but this playbook makes no certificates for pods" in result.stdout
