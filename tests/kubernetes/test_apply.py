"""The manifests are applied, by the playbook and by kubectl; in the place of a cluster is cluster_api.py."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.cluster_api import ClusterApi, kubeconfig, plural, serving
from tests.kubernetes.conftest import Rendered
from tests.kubernetes.manifests import ROOT, Manifest, overlay, playbook, random_secrets, read, workloads

# The cluster is a server of our own, and each manifest a program.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(540)]


@pytest.fixture
def cluster() -> Iterator[ClusterApi]:
    """A cluster with KEDA and nothing else in it."""
    with serving(ClusterApi(keda=True)) as cluster:
        yield cluster


@pytest.fixture
def config(cluster: ClusterApi, tmp_path: Path) -> Path:
    """What leads there."""
    return kubeconfig(tmp_path / "kubeconfig", {"test": cluster.url})


def kubectl(config: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `kubectl apply`; the cluster checks the fields, as a real one does, but has no list of them for kubectl."""
    command = ["kubectl", "apply", "--validate=false", *arguments]
    env = {**os.environ, "KUBECONFIG": str(config)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def keys(manifests: list[Manifest]) -> set[tuple[str, str, str]]:
    """Return where a cluster keeps these."""
    return {
        (plural(each["kind"]), each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in manifests
    }


def test_the_playbook_applies_everything_and_then_nothing(cluster: ClusterApi, config: Path, tmp_path: Path) -> None:
    values = random_secrets()
    variables = {
        **values,
        "kubernetes_directory": str(tmp_path / "manifests"),
        "kubernetes_kubeconfig": str(config),
        "kubernetes_context": "test",
        "kubernetes_autoscaling": "keda",
    }
    tried = playbook("--check", **variables)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert cluster.objects == {}

    first = playbook(**variables)
    assert first.returncode == 0, first.stdout + first.stderr
    assert set(cluster.objects) == keys(read(*sorted((tmp_path / "manifests").iterdir())))
    flat = [*values.pop("redis_user_passwords").values(), *values.values()]
    assert not any(value in first.stdout + first.stderr for value in flat)

    second = playbook(**variables)
    assert re.search(r"localhost +: ok=\d+ +changed=0 .*failed=0", second.stdout), second.stdout + second.stderr


def test_kubectl_applies_what_the_playbook_has_written(cluster: ClusterApi, config: Path, rendered: Rendered) -> None:
    directory = rendered.directory
    # README's command.
    result = kubectl(config, "-f", directory / "namespace.yml", "-f", directory)
    assert result.returncode == 0, result.stderr
    assert set(cluster.objects) == keys(read(*sorted(directory.iterdir())))


def test_kubectl_applies_an_overlay(cluster: ClusterApi, config: Path, tmp_path: Path) -> None:
    manifests = overlay("production", tmp_path)
    result = kubectl(config, "-k", tmp_path / "deploy/overlays/production")
    assert result.returncode == 0, result.stderr
    assert set(cluster.objects) == keys(manifests)


def test_a_pod_that_wants_more_would_be_rejected(config: Path, tmp_path: Path, rendered: Rendered) -> None:
    directory = rendered.directory
    assert kubectl(config, "-f", directory / "namespace.yml").returncode == 0
    api = workloads(read(directory / "api.yml"))["api"]
    pod = api["spec"]["template"]["spec"]
    pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    (tmp_path / "api.yml").write_text(yaml.safe_dump(api))
    result = kubectl(config, "-f", tmp_path / "api.yml")
    assert 'violates PodSecurity "restricted": allowPrivilegeEscalation' in result.stderr
    pod["seccomp"] = "RuntimeDefault"
    (tmp_path / "api.yml").write_text(yaml.safe_dump(api))
    result = kubectl(config, "-f", tmp_path / "api.yml")
    assert "seccomp" in result.stderr
    assert result.returncode != 0


SHOP = yaml.safe_load((ROOT / "inventories/example-app/group_vars/all/main.yml").read_text()) | {
    "app_release_source": str(ROOT / "examples/shop"),
    "receipt_key": "of-receipts",
    "kubernetes_image": "registry.example.com/shop-backend:1",
    "kubernetes_context": "test",
}


@pytest.mark.long
def test_another_application_is_prepared_and_then_applied(cluster: ClusterApi, config: Path, tmp_path: Path) -> None:
    variables = {**SHOP, **random_secrets(), "kubernetes_kubeconfig": str(config)}
    variables["kubernetes_directory"] = str(tmp_path / "manifests")
    first = playbook(**variables)
    assert first.returncode == 0, first.stdout + first.stderr
    there = [(kind, name) for kind, _, name in cluster.objects]
    (job,) = [name for kind, name in there if kind == "jobs"]
    assert there.index(("jobs", job)) < there.index(("statefulsets", "celery-worker"))
    for wanted in ("celery-beat", "console", "api"):
        assert ("deployments", wanted) in there
    second = playbook(**variables)
    assert re.search(r"localhost +: ok=\d+ +changed=0 .*failed=0", second.stdout), second.stdout + second.stderr


def test_nothing_follows_a_preparation_that_fails(tmp_path: Path) -> None:
    with serving(ClusterApi(job_ends="Failed")) as cluster:
        config = kubeconfig(tmp_path / "kubeconfig", {"test": cluster.url})
        variables = {**SHOP, **random_secrets(), "kubernetes_kubeconfig": str(config)}
        result = playbook(**variables, kubernetes_directory=str(tmp_path / "manifests"))
    assert result.returncode != 0
    assert "has not succeeded, and nothing after it was applied" in result.stdout
    assert ("statefulsets", "shop", "celery-worker") not in cluster.objects
