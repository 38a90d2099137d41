"""Plays the API server of a Kubernetes cluster: what `kubectl apply` and Ansible ask of it.

It keeps objects, rejects what a real one rejects (unknown fields and kinds, a namespace that is not there, pods that
the namespace's Pod Security level forbids), fills in a default, and says that everything is ready. Nothing runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import uvicorn
import yaml
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from celery_durable.testing import free_port, wait_for

Manifest = dict[str, Any]

# Kinds by group and version; what lives in no namespace has a plus sign.
KINDS = {
    "v1": ["+Namespace", "ConfigMap", "PersistentVolumeClaim", "Secret", "Service"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "batch/v1": ["Job"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
}
KEDA = {"keda.sh/v1alpha1": ["ScaledObject", "TriggerAuthentication"]}


def plural(kind: str) -> str:
    """Return a kind's name in paths."""
    name = kind.removeprefix("+").lower()
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}es" if name.endswith("ss") else f"{name}s"


def not_restricted(pod: Manifest) -> list[str]:
    """Return what the profile "restricted" forbids in a pod.

    Source: kubernetes.io/docs/concepts/security/pod-security-standards
    """
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("runAsUser") == 0:
        found.append("runAsNonRoot")
    if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("seccompProfile")
    allowed = {
        "name",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [f"volume {volume['name']}" for volume in pod.get("volumes", []) if not set(volume) <= allowed]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("allowPrivilegeEscalation")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or set(own["capabilities"].get("add", [])) - {
            "NET_BIND_SERVICE"
        }:
            found.append("capabilities")
        found += [f"hostPort {port['hostPort']}" for port in container.get("ports", []) if "hostPort" in port]
    return found


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def kubeconfig(file: Path, urls: dict[str, str]) -> Path:
    """Write a file with a context for each cluster, the first of them the current one; return the file."""
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": next(iter(urls)),
                "clusters": [{"name": name, "cluster": {"server": url}} for name, url in urls.items()],
                "users": [{"name": "any", "user": {"token": "any"}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": "any"}} for name in urls],
            }
        )
    )
    return file


class ClusterApi:
    """The objects of one cluster, and the server that gives access to them."""

    def __init__(self, version: str = "1.37", *, keda: bool = False, job_ends: str = "Complete") -> None:
        """Begin with the kinds of this version, and of KEDA if it is there, and without an object; each Job ends so."""
        self.job_ends = job_ends
        self.version = version
        self.kinds = {**KINDS, **(KEDA if keda else {})}
        # By plural, namespace (empty: none) and name.
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.url = ""

    def admit(self, manifest: Manifest, namespace: str) -> Manifest:
        """Reject what a real server rejects; return the object as it is kept."""
        if namespace and ("namespaces", "", namespace) not in self.objects:
            raise HTTPException(404, f'namespaces "{namespace}" not found')
        if not manifest["apiVersion"].startswith("keda.sh/"):
            try:
                kubernetes_validate.validate(
                    {key: value for key, value in manifest.items() if key != "status"}, self.version, strict=True
                )
            except kubernetes_validate.ValidationError as error:
                raise HTTPException(422, error.message) from error
        if template := manifest.get("spec", {}).get("template"):
            labels = self.objects["namespaces", "", namespace]["metadata"].get("labels", {})
            if labels.get("pod-security.kubernetes.io/enforce") == "restricted" and (
                found := not_restricted(template["spec"])
            ):
                raise HTTPException(403, f'violates PodSecurity "restricted": {", ".join(found)}')
            if manifest["kind"] == "Job":
                manifest["status"] = {"conditions": [{"type": self.job_ends, "status": "True"}]}
        if template and manifest["kind"] != "Job":
            # Defaults that nobody has asked for must not look like changes the next time.
            manifest["spec"].setdefault("revisionHistoryLimit", 10)
            replicas = manifest["spec"].setdefault("replicas", 1)
            counts = dict.fromkeys(
                ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "currentReplicas"), replicas
            )
            manifest["status"] = {"observedGeneration": 1, "currentRevision": "1", "updateRevision": "1", **counts}
        manifest["metadata"] |= {"uid": "1", "resourceVersion": "1", "generation": 1}
        return manifest

    def discovery(self, version: str) -> Manifest:
        """Return the kinds of a group and version."""
        verbs = ["create", "delete", "get", "list", "patch", "update"]
        resources = [
            {
                "name": plural(kind),
                "singularName": "",
                "namespaced": kind[0] != "+",
                "kind": kind.removeprefix("+"),
                "verbs": verbs,
            }
            for kind in self.kinds[version]
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}

    def application(self) -> FastAPI:
        """Return the server."""
        app = FastAPI()
        groups = [
            {"name": version.split("/")[0], "versions": [entry], "preferredVersion": entry}
            for version in self.kinds
            if "/" in version
            for entry in [{"groupVersion": version, "version": version.split("/")[1]}]
        ]

        @app.exception_handler(HTTPException)
        async def rejected(_: Request, error: HTTPException) -> JSONResponse:
            reason = {404: "NotFound", 409: "AlreadyExists", 422: "Invalid", 403: "Forbidden"}[error.status_code]
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": error.detail,
                "reason": reason,
            }
            return JSONResponse({**status, "code": error.status_code, "metadata": {}}, error.status_code)

        @app.get("/version")
        async def version() -> Manifest:
            major, minor = self.version.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{self.version}.0"}

        @app.get("/api")
        async def core() -> Manifest:
            return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}

        @app.get("/apis")
        async def others() -> Manifest:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

        @app.get("/api/v1")
        async def core_kinds() -> Manifest:
            return self.discovery("v1")

        @app.get("/apis/{group}/{version}")
        async def kinds(group: str, version: str) -> Manifest:
            return self.discovery(f"{group}/{version}")

        for root in ("/api/{version}", "/apis/{group}/{version}"):
            app.add_api_route(
                f"{root}/namespaces/{{namespace}}/{{kind}}", self.create, methods=["POST"], status_code=201
            )
            app.add_api_route(f"{root}/namespaces/{{namespace}}/{{kind}}/{{name}}", self.get)
            app.add_api_route(f"{root}/namespaces/{{namespace}}/{{kind}}/{{name}}", self.patch, methods=["PATCH"])
            app.add_api_route(f"{root}/{{kind}}", self.create, methods=["POST"], status_code=201)
            app.add_api_route(f"{root}/{{kind}}/{{name}}", self.get)
            app.add_api_route(f"{root}/{{kind}}/{{name}}", self.patch, methods=["PATCH"])
        return app

    async def create(self, request: Request, kind: str, namespace: str = "") -> Manifest:
        """Keep a new object."""
        manifest = await request.json()
        key = (kind, namespace, manifest["metadata"]["name"])
        if key in self.objects:
            raise HTTPException(409, f'{kind} "{key[2]}" already exists')
        admitted = self.admit(manifest, namespace)
        if "dryRun" not in request.query_params:
            self.objects[key] = admitted
        return admitted

    async def get(self, kind: str, name: str, namespace: str = "") -> Manifest:
        """Return an object."""
        if (kind, namespace, name) not in self.objects:
            raise HTTPException(404, f'{kind} "{name}" not found')
        return self.objects[kind, namespace, name]

    async def patch(self, request: Request, kind: str, name: str, namespace: str = "") -> Manifest:
        """Change an object. A strategic patch is merged like any other, so lists are replaced as a whole."""
        changed = self.admit(merge(await self.get(kind, name, namespace), await request.json()), namespace)
        if "dryRun" not in request.query_params:
            self.objects[kind, namespace, name] = changed
        return changed


@contextlib.contextmanager
def serving(cluster: ClusterApi) -> Iterator[ClusterApi]:
    """Let a cluster's server run on a port of the loopback interface."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(cluster.application(), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, seconds=10)
    cluster.url = f"http://127.0.0.1:{port}"
    try:
        yield cluster
    finally:
        server.should_exit = True
        thread.join()
