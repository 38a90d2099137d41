"""The manifests: current, valid in every supported Kubernetes, without findings, and saying what they should."""

from __future__ import annotations

import filecmp
import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from durable_console.web.prometheus import Snapshot, _Queue
from tests.kubernetes.conftest import Rendered
from tests.kubernetes.manifests import (
    DEPLOY,
    ROOT,
    VERSIONS,
    Manifest,
    connections,
    named,
    overlay,
    random_secrets,
    reaches,
    read,
    render,
    workloads,
)

pytestmark = pytest.mark.timeout(300)

# As many values changed as one rendering can have.
CHANGED: dict[str, Any] = {
    "app_name": "other",
    "celery_worker_pools": [
        {"name": "default", "concurrency": 2},
        {"name": "slow", "queues": ["slow", "nightly"], "pool": "threads"},
    ],
    "task_routes": {"tasks.report": "slow", "tasks.sum": "nightly"},
    "task_time_limit": 300,
    "task_soft_time_limit": 280,
    "kubernetes_worker_pool_replicas": {"slow": 2},
    "kubernetes_image": "registry.example.com/other-backend:7",
    "kubernetes_storage_class": "fast",
    "kubernetes_autoscaling": "keda",
    "kubernetes_ingress_tls_secret": "",
    "kubernetes_monitoring_namespace": "monitoring",
    "worker_egress": [
        {"name": "database", "to": ["10.0.0.5", "fd00::/64"], "ports": [5432]},
        {"name": "everything there", "to": ["192.168.7.0/24"], "protocol": "udp"},
    ],
    "kubernetes_existing_secrets": {"api": "from-the-vault"},
    "app_has_metrics": False,
    "app_asgi": "",
    "app_command": ["venv/bin/hypercorn", "--bind=fd://{fd}", "proj:$(APP)"],
    "app_release_prepare": [["venv/bin/alembic", "upgrade", "head of $(all)"], ["true"]],
    "app_release_shared": {"media/uploads": "uploads", "data": "data"},
    "celery_beat": True,
    "celery_beat_log_level": "warning",
    "stack_ip_allow": ["localhost", "10.0.0.5"],
    "console_port": 8011,
}
VARIANTS = ["default", "changed", "local", "production", "hpa"]


@pytest.fixture(scope="module")
def manifests(rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """All variants: rendered by Ansible, and built by Kustomize."""
    changed = tmp_path_factory.mktemp("changed")
    render(changed, **random_secrets(), **CHANGED)
    made = {}
    for name, directory in (("default", rendered.directory), ("changed", changed)):
        assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}
        made[name] = read(*sorted(directory.iterdir()))
    for name in ("local", "production"):
        made[name] = overlay(name, tmp_path_factory.mktemp(name))
    made["hpa"] = overlay("production", tmp_path_factory.mktemp("hpa"), component="hpa")
    return made


def test_the_base_is_what_the_role_renders(tmp_path: Path) -> None:
    render(tmp_path, **yaml.safe_load((DEPLOY / "base-variables.yml").read_text()))
    generated = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {
        path.relative_to(DEPLOY)
        for folder in ("base", "components", "secret-files")
        for path in (DEPLOY / folder).rglob("*")
        if path.is_file()
    }
    assert generated == committed
    differing = [path for path in generated if not filecmp.cmp(tmp_path / path, DEPLOY / path, shallow=False)]
    assert differing == [], "run: make kubernetes-base"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_kubernetes_takes_them(manifests: dict[str, list[Manifest]], variant: str, version: str) -> None:
    checked = [each for each in manifests[variant] if not each["apiVersion"].startswith("keda.sh/")]
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert len(checked) > 20


def test_a_wrong_field_would_be_seen(manifests: dict[str, list[Manifest]]) -> None:
    pod = workloads(manifests["default"])["api"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "replica": 2}}, VERSIONS[-1], strict=True)


def test_the_policy_scanner_finds_nothing(manifests: dict[str, list[Manifest]], tmp_path: Path) -> None:
    command = [str(ROOT / ".cache/checkov/bin/checkov"), "--config-file=tests/kubernetes/checkov.yml"]
    for variant in ("changed", "local", "production"):
        file = tmp_path / f"{variant}.yml"
        # A cluster on one machine takes the image that was built last.
        file.write_text(yaml.safe_dump_all(manifests[variant]).replace("typesafe-backend:latest", "typesafe-backend:1"))
        command.append(f"--file={file}")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_secret_that_is_named_is_there(manifests: dict[str, list[Manifest]], variant: str) -> None:
    all_of_them = manifests[variant]
    wanted = {
        volume["secret"]["secretName"]
        for workload in workloads(all_of_them).values()
        for volume in workload["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    for authentication in named(all_of_them, "TriggerAuthentication").values():
        wanted |= {reference["name"] for reference in authentication["spec"]["secretTargetRef"]}
    there = set(named(all_of_them, "Secret"))
    if variant in {"local", "hpa"}:
        # Made for KEDA in any case.
        there -= {name for name in there if name.startswith("typesafe-secrets-autoscaler")}
    assert wanted == there | ({"from-the-vault"} if variant == "changed" else set())


def test_secrets_are_files_and_nowhere_else(rendered: Rendered) -> None:
    values = dict(rendered.secrets)
    flat = [*values.pop("redis_user_passwords").values(), *values.values()]
    for file in rendered.directory.iterdir():
        if file.name != "secrets.yml":
            assert not any(value in file.read_text() for value in flat), file
    for workload in workloads(read(*rendered.directory.iterdir())).values():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert all("valueFrom" not in variable for variable in container.get("env", []))
            assert all("secretRef" not in source for source in container.get("envFrom", []))


def test_an_overlays_secrets_fit_together(tmp_path: Path) -> None:
    overlay("local", tmp_path)
    directory = tmp_path / "deploy/overlays/local/secrets"
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    assert not any("PLACEHOLDER" in path.read_text() for path in files.values())
    assert {path.stat().st_mode & 0o777 for name, path in files.items() if "/" in name} == {0o600}
    for service, folder in (("worker", "typesafe-secrets"), ("api", "typesafe-secrets-api")):
        url = files[f"{folder}/CELERY_BROKER_URL"].read_text()
        match = re.fullmatch(rf"redis://{service}:([A-Za-z0-9]+)@redis-broker:6380/0", url)
        assert match
        rules = files["typesafe-secrets-redis-broker/redis.conf"].read_text()
        assert f"user {service} on #{hashlib.sha256(match[1].encode()).hexdigest()} " in rules
    key = files["typesafe-secrets-api/BACKEND_API_KEY"].read_text()
    assert files["typesafe-secrets-autoscaler/API_KEY"].read_text() == key


def test_who_may_talk_to_whom(manifests: dict[str, list[Manifest]]) -> None:
    clients = ("celery-worker", "api", "flower", "script-keeper")
    assert connections(manifests["production"]) == {
        (client, server, port) for client in clients for server, port in (("redis", 6379), ("redis-broker", 6380))
    }


PRIVATE = (
    *("10.0.0.5", "172.31.255.1", "192.168.7.9", "100.100.100.200", "127.0.0.1", "0.0.0.0", "169.254.169.254"),  # noqa: S104
    *("224.0.0.1", "::1", "fd00::5", "fe80::1", "fd00:ec2::254", "::ffff:10.0.0.5", "64:ff9b::10.0.0.5"),
)


def test_a_task_reaches_the_public_internet_on_443_and_what_the_inventory_names(
    manifests: dict[str, list[Manifest]],
) -> None:
    for public in ("8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"):
        assert reaches(manifests["default"], "celery-worker", public, 443)
        assert not reaches(manifests["default"], "celery-worker", public, 80)
        assert not reaches(manifests["default"], "celery-worker", public, 443, "UDP")
        assert not reaches(manifests["changed"], "celery-worker", public, 443)
    for address in PRIVATE:
        assert not reaches(manifests["default"], "celery-worker", address, 443)
    named_targets = [("10.0.0.5", 5432, "TCP"), ("fd00::7", 5432, "TCP"), ("192.168.7.9", 65535, "UDP")]
    assert all(reaches(manifests["changed"], "celery-worker", *target) for target in named_targets)
    others = [("10.0.0.6", 5432, "TCP"), ("10.0.0.5", 443, "TCP"), ("192.168.7.9", 80, "TCP")]
    assert not any(reaches(manifests["changed"], "celery-worker", *target) for target in others)


@pytest.mark.parametrize("pod", ["api", "flower", "redis"])
def test_nobody_else_leaves_the_cluster(manifests: dict[str, list[Manifest]], pod: str) -> None:
    for address in (*PRIVATE, "8.8.8.8"):
        assert not reaches(manifests["production"], pod, address, 443)


def test_who_is_let_in_from_other_namespaces(manifests: dict[str, list[Manifest]]) -> None:
    namespaces = {
        variant: {
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for policy in named(manifests[variant], "NetworkPolicy").values()
            for rule in policy["spec"].get("ingress", [])
            for peer in rule["from"]
            if "namespaceSelector" in peer
        }
        for variant in VARIANTS
    }
    assert namespaces["default"] == {"ingress-nginx"}
    assert namespaces["production"] == {"ingress-nginx", "keda"}
    assert namespaces["changed"] == {"ingress-nginx", "keda", "monitoring"}


def test_an_autoscaler_has_the_workers_for_itself(manifests: dict[str, list[Manifest]]) -> None:
    for variant, kind in (("production", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler"), ("default", "")):
        scalers = {
            name for each in ("ScaledObject", "HorizontalPodAutoscaler") for name in named(manifests[variant], each)
        }
        assert scalers == ({"celery-worker"} if kind else set())
        assert ("replicas" in workloads(manifests[variant])["celery-worker"]["spec"]) == (not kind)
        for scaler in named(manifests[variant], kind).values():
            target = scaler["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) == ("StatefulSet", "celery-worker")


def test_keda_asks_for_what_the_api_shows(manifests: dict[str, list[Manifest]]) -> None:
    registry = CollectorRegistry()
    registry.register(_Queue(Snapshot(up=True, lengths={}, oldest={"celery": 1, "slow": 2, "nightly": 3})))
    shown = {
        f'{sample.name}{{queue="{sample.labels["queue"]}"}}'
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if "queue" in sample.labels
    }
    asked = []
    for variant in ("production", "changed"):
        for scaled in named(manifests[variant], "ScaledObject").values():
            for trigger in scaled["spec"]["triggers"]:
                assert trigger["type"] == "metrics-api"
                # What KEDA's scaler reads (kedacore/keda, pkg/scalers/metrics_api_scaler.go); all are strings.
                assert set(trigger["metadata"]) == {
                    *("url", "format", "valueLocation", "targetValue", "authMode", "method", "keyParamName"),
                }
                assert all(isinstance(value, str) for value in trigger["metadata"].values())
                assert trigger["authenticationRef"]["name"] in named(manifests[variant], "TriggerAuthentication")
                asked.append(trigger["metadata"]["valueLocation"])
    assert len(asked) == 4
    assert set(asked) <= shown


def test_another_application_needs_another_inventory_only(manifests: dict[str, list[Manifest]]) -> None:
    assert "typesafe" not in yaml.safe_dump_all(
        [each for each in manifests["changed"] if each["kind"] not in {"Secret", "Ingress"}]
    )
    assert set(workloads(manifests["changed"])) == {
        *("redis", "redis-broker", "celery-worker", "celery-worker-slow", "api", "flower", "script-keeper"),
        *("celery-beat", "console"),
    }


APPLICATION = ("celery-worker", "celery-worker-slow", "celery-beat", "api")


def test_a_release_is_prepared_by_a_job_of_its_own_name(manifests: dict[str, list[Manifest]]) -> None:
    ((name, job),) = named(manifests["changed"], "Job").items()
    assert re.fullmatch("prepare-[0-9a-f]{10}", name)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["sh", "-ec", "venv/bin/alembic upgrade 'head of $$(all)'; true"]
    assert job["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] == "from-the-vault"
    assert not named(manifests["default"], "Job")


def test_shared_directories_are_volumes_of_all_that_runs_its_code(manifests: dict[str, list[Manifest]]) -> None:
    changed = manifests["changed"]
    assert set(named(changed, "PersistentVolumeClaim")) == {"shared-data", "shared-uploads"}
    having = set()
    for name, workload in (workloads(changed) | named(changed, "Job")).items():
        pod = workload["spec"]["template"]["spec"]
        mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
        if {"/var/lib/other/data", "/var/lib/other/uploads"} <= mounts:
            assert {"shared-data", "shared-uploads"} <= claims
            having.add(name)
    assert having == {*APPLICATION, *named(changed, "Job")}


def test_beat_and_a_command_are_the_inventorys(manifests: dict[str, list[Manifest]]) -> None:
    pods = {name: each["spec"]["template"]["spec"] for name, each in workloads(manifests["changed"]).items()}
    beat, worker, api = (pods[name] for name in ("celery-beat", "celery-worker", "api"))
    assert beat["containers"][0]["args"] == [
        *("celery-durable", "-A", "app.agents.worker", "beat", "--pidfile=", "--loglevel=warning"),
    ]
    assert beat["volumes"][0] == worker["volumes"][0]
    assert named(manifests["changed"], "ConfigMap")["other-settings"]["data"]["DURABLE_BEAT"] == "other"
    assert api["containers"][0]["args"] == [
        *("python", "-I", "-m", "celery_durable.listen", "8000"),
        *("venv/bin/hypercorn", "--bind=fd://3", "proj:$$(APP)"),
    ]


def test_the_console_is_where_metrics_are_asked_for(manifests: dict[str, list[Manifest]]) -> None:
    changed = manifests["changed"]
    urls = {
        trigger["metadata"]["url"]
        for scaled in named(changed, "ScaledObject").values()
        for trigger in scaled["spec"]["triggers"]
    }
    assert urls == {"http://console.other.svc:8011/metrics"}
    policies = named(changed, "NetworkPolicy")
    for name in ("autoscaler", "console"):
        assert policies[name]["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "console"
        assert policies[name]["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8011}]
    assert ("console", "redis-broker", 6380) in connections(changed)


def test_the_api_reaches_what_the_inventory_names(manifests: dict[str, list[Manifest]]) -> None:
    assert reaches(manifests["changed"], "api", "10.0.0.5", 5432)
    assert not reaches(manifests["changed"], "api", "10.0.0.6", 5432)
    for target in (("10.0.0.5", 5432), ("fd00::7", 5432)):
        assert reaches(manifests["changed"], "celery-beat", *target)
