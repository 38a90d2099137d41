"""Every wrong value is rejected in a sentence that names variable, value and rule."""

from __future__ import annotations

import json
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from celery_durable.testing import free_port
from tests.kubernetes.cluster_api import ClusterApi, kubeconfig, serving
from tests.kubernetes.manifests import VERSIONS, playbook, random_secrets
from tests.support import ansible_playbook

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
    "replaced": (
        {"kubernetes_worker_egress_ports": [8443]},
        ["kubernetes_worker_egress_ports", "worker_egress", "8443"],
    ),
    "egress": (
        {"kubernetes_worker_egress": [{"name": "db", "to": ["db.internal"]}]},
        ["'db' of kubernetes_worker_egress", "db.internal"],
    ),
    "pool": ({"kubernetes_worker_pool_replicas": {"slow": 2}}, ["kubernetes_worker_pool_replicas has slow", "default"]),
    "image-of-no-release": (
        {"kubernetes_prepare": [["true"]]},
        ["kubernetes_image is 'typesafe-backend:latest'", "tag of its own"],
    ),
    "image-of-a-release": ({"kubernetes_prepare": [["true"]], "kubernetes_image": "r.example.com:5000/shop:1"}, []),
    "untagged-image": (
        {"kubernetes_prepare": [["true"]], "kubernetes_image": "r.example.com:5000/shop"},
        ["kubernetes_image is 'r.example.com:5000/shop'"],
    ),
    "no-package": (
        {"kubernetes_context": "plain", "ansible_python_interpreter": "{{ bare_python }}"},
        ["Python package kubernetes", "requirements/kubernetes.txt"],
    ),
    "cluster": ({"kubernetes_context": "plain"}, []),
    "unknown": ({"kubernetes_context": "mine"}, ["kubernetes_context 'mine'", "does not answer", "kubectl"]),
    "away": ({"kubernetes_context": "away"}, ["kubernetes_context 'away'", "does not answer", "kubectl"]),
    "old": ({"kubernetes_context": "old"}, ["runs Kubernetes 1.28", f"tested with {VERSIONS[0]}"]),
    "no-keda": (
        {"kubernetes_context": "plain", "kubernetes_autoscaling": "keda"},
        ["kubernetes_autoscaling is keda", "install KEDA"],
    ),
    "no-metrics": (
        {"kubernetes_context": "plain", "kubernetes_autoscaling": "hpa"},
        ["kubernetes_autoscaling is hpa", "external.metrics.k8s.io/v1beta1", "adapter"],
    ),
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all cases at once."""
    directory = tmp_path_factory.mktemp("preflight")
    venv.create(directory / "bare")
    with serving(ClusterApi()) as plain, serving(ClusterApi("1.28")) as old:
        urls = {"plain": plain.url, "old": old.url, "away": f"http://127.0.0.1:{free_port()}"}
        clusters = {"kubernetes_kubeconfig": str(kubeconfig(directory / "kubeconfig", urls))}
        common = {
            "ansible_python_interpreter": sys.executable,
            "bare_python": str(directory / "bare/bin/python"),
            "kubernetes_directory": str(directory / "none"),
        }
        hosts = {
            name: {**common, **(clusters if "kubernetes_context" in variables else {}), **variables}
            for name, (variables, _) in CASES.items()
        }
        inventory = directory / "hosts.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        result = ansible_playbook(f"--inventory={inventory}", "tests/kubernetes/preflight.yml")
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


def test_tls_for_redis_is_rejected() -> None:
    authority: dict[str, Any] = {"redis_tls_ca": "BEGIN CERTIFICATE", "redis_tls_ca_key": "PRIVATE KEY"}
    result = playbook(**random_secrets(), **authority, redis_tls=True)
    assert result.returncode != 0
    assert "redis_tls is true, but this playbook makes no certificates for pods" in result.stdout


def test_what_only_a_unit_has_is_rejected() -> None:
    result = playbook(**random_secrets(), app_release_sandbox=["MemoryDenyWriteExecute=no"])
    assert result.returncode != 0
    assert "app_release_sandbox is ['MemoryDenyWriteExecute=no'], but containers of localhost" in result.stdout


def test_a_value_that_would_be_ignored_is_rejected(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {localhost: {kubernetes_redis_image: 'redis:8.2'}}}\n")
    result = playbook(f"--inventory={inventory}", **random_secrets())
    assert result.returncode != 0
    assert "The inventory sets kubernetes_redis_image, but playbooks/vars/kubernetes.yml derives it" in result.stdout
