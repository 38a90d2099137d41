"""One inventory means the same on every target: settings, limits, concurrency, policies, versions."""

from __future__ import annotations

import base64
import configparser
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.render.rendering import render
from tests.support import REPOSITORY, load_plugin

HOST_MEMORY = 4096 * 1024**2  # tests/render/targets.yml
# Far from all defaults, so that a value of its own would show.
VARIABLES: dict[str, Any] = {
    "task_soft_time_limit": 280,
    "task_time_limit": "300",  # as -e task_time_limit=300 gives it
    "task_default_rate_limit": "100/m",
    "result_expires": 7200,
    "log_level": "warning",
    "queue_max_length": 77,
    "celery_worker_concurrency": 7,
    "celery_worker_pools": [
        {"name": "default", "pool": "asyncio", "processes": 3},
        {"name": "slow", "queues": ["slow"], "concurrency": 2},
    ],
    "celery_worker_memory_max": "25%",
    "celery_worker_watchdog_seconds": 33,
    "api_processes": 3,
    "api_graceful_stop_seconds": 21,
    "flower_max_tasks": 4321,
    "stack_redis_maxmemory": "10%",
    "groq_api_key": "of-groq",
}
# An application that asks for all that it can ask for.
EXAMPLE = REPOSITORY / "inventories/example-app/group_vars/all/main.yml"
SHOP: dict[str, Any] = {
    **yaml.safe_load(EXAMPLE.read_text()),
    "app_release_source": str(REPOSITORY / "examples/shop"),
    "receipt_key": "of-receipts",
    "app_release_packages": ["libpq5", "gettext-base=0.23.1-2"],
    "app_asgi": "",
    "app_command": ["venv/bin/hypercorn", "--bind=fd://{fd}", "app.web:api", "--root-path=$HOME"],
    "celery_beat_memory_max": "300M",
    "celery_beat_log_level": "warning",
    "console_port": 8011,
}
# Where a process listens, what supervises it, whom it believes: that is what targets differ in.
OF_THE_TARGET = {"--fd", "--host", "--port", "--address", "--db", "--hostname", "--forwarded-allow-ips"}
REDIS_OPTIONS = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "databases",
    "maxclients",
    "user",
)
memory_bytes = load_plugin("roles/stack/filter_plugins/stack_containers.py").memory_bytes


@dataclass
class Effective:
    """What a target makes of the inventory; None where it has no such thing."""

    settings: dict[str, str]
    worker: list[str]  # its command
    worker_stop_seconds: int
    worker_watchdog_seconds: int
    secrets: dict[str, set[str]] | None  # part -> names
    api: list[str] | None = None
    flower: list[str] | None = None
    stop_seconds: dict[str, int] | None = None
    memory: dict[str, int] | None = None
    processes: dict[str, int] | None = None
    redis: dict[str, dict[str, list[str]]] | None = None  # instance -> option -> values


def command(line: str | list[str]) -> list[str]:
    """Return a command's words without what belongs to the target, options and values joined, in a fixed order."""
    words = shlex.split(line) if isinstance(line, str) else line
    programs = {"celery", "durable-flower", "uvicorn"}
    begin = words.index(next(word for word in words if word.split("/")[-1] in programs))
    joined = re.sub(r"(?<= )(--[a-z-]+) (?!-)", r"\1=", " ".join(words[begin:]))
    program, *options = joined.split()
    return [program.split("/")[-1], *sorted(option for option in options if option.split("=")[0] not in OF_THE_TARGET)]


def redis(file: Path) -> dict[str, list[str]]:
    """Return the options of a redis.conf that decide what Redis keeps, and whom it lets in.

    Where systemd does not give Redis its scripts, a client does, whose user may do nothing else.
    """
    lines = [line.partition(" ") for line in file.read_text().splitlines() if not line.startswith("user loader ")]
    return {option: [value for name, _, value in lines if name == option] for option in REDIS_OPTIONS}


def env_file(directory: Path) -> dict[str, str]:
    """Return the settings that a host's services read."""
    lines = re.findall(r"^([A-Z_]+)='(.*)'$", (directory / "backend.env").read_text(), re.MULTILINE)
    return {name: value for name, value in lines if name != "SECRETS_DIRECTORY"}


def unit(directory: Path, name: str) -> dict[str, list[str]]:
    """Return the lines of a unit, by their names."""
    values: dict[str, list[str]] = {}
    for key, value in re.findall(
        r"^(\w+)=(.*)$", (directory / f"{name}.service").read_text().replace("\\\n", ""), re.MULTILINE
    ):
        values.setdefault(key, []).append(value)
    return values


def systemd(directory: Path) -> Effective:
    """Read the units."""
    units = {part: unit(directory, part) for part in ("worker", "api", "flower")}
    return Effective(
        settings=env_file(directory),
        worker=command(units["worker"]["ExecStart"][0]),
        worker_stop_seconds=int(units["worker"]["TimeoutStopSec"][0]),
        worker_watchdog_seconds=int(units["worker"]["WatchdogSec"][0]),
        secrets={part: {line.split(":")[0] for line in lines["LoadCredential"]} for part, lines in units.items()},
        api=command(units["api"]["ExecStart"][0]),
        flower=command(units["flower"]["ExecStart"][0]),
        stop_seconds={part: int(lines["TimeoutStopSec"][0]) for part, lines in units.items()},
        memory={part: memory_bytes(lines["MemoryMax"][0], HOST_MEMORY) for part, lines in units.items()},
        processes={part: int(lines["TasksMax"][0]) for part, lines in units.items()},
        redis={name: redis(directory / f"host-{name}.conf") for name in ("main", "broker")},
    )


def supervisor(directory: Path) -> Effective:
    """Read supervisor's program; it runs workers alone."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(directory / "supervisor.conf")
    program = parser["program:typesafe-celery-worker"]
    watchdog = re.search(r'WORKER_WATCHDOG_SECONDS="(\d+)"', program["environment"])
    assert watchdog
    return Effective(
        settings=env_file(directory),
        worker=command(program["command"]),
        worker_stop_seconds=int(program["stopwaitsecs"]),
        worker_watchdog_seconds=int(watchdog[1]),
        secrets=None,
    )


def compose(directory: Path) -> Effective:
    """Read compose.yaml."""
    project = yaml.safe_load((directory / "compose.yaml").read_text())
    services = {
        "worker": project["services"]["celery-worker"],
        **{part: project["services"][part] for part in ("api", "flower")},
    }
    settings = project["x-settings"]
    for service in services.values():
        assert settings.items() <= service["environment"].items()
    stop_seconds = {part: int(service["stop_grace_period"].rstrip("s")) for part, service in services.items()}
    return Effective(
        settings={name: value.replace("$$", "$") for name, value in settings.items() if name != "SECRETS_DIRECTORY"},
        worker=command(services["worker"]["command"]),
        worker_stop_seconds=stop_seconds["worker"],
        worker_watchdog_seconds=int(services["worker"]["environment"]["WORKER_WATCHDOG_SECONDS"]),
        secrets={part: {secret["target"] for secret in service["secrets"]} for part, service in services.items()},
        api=command(services["api"]["command"]),
        flower=command(services["flower"]["command"]),
        stop_seconds=stop_seconds,
        memory={part: service["mem_limit"] for part, service in services.items()},
        processes={part: service["pids_limit"] for part, service in services.items()},
        redis={name: redis(directory / f"compose-{name}.conf") for name in ("main", "broker")},
    )


def kubernetes(directory: Path) -> Effective:
    """Read the manifests. Memory and processes are each pod's, and so not the host's."""
    manifests = [each for file in (directory / "kubernetes").iterdir() for each in yaml.safe_load_all(file.read_text())]
    named = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    pods = {
        part: named[kind, name]["spec"]["template"]["spec"]
        for part, kind, name in (
            ("worker", "StatefulSet", "celery-worker"),
            ("api", "Deployment", "api"),
            ("flower", "Deployment", "flower"),
        )
    }
    containers = {part: pod["containers"][0] for part, pod in pods.items()}
    watchdog = {each["name"]: each["value"] for each in containers["worker"]["env"]}["WORKER_WATCHDOG_SECONDS"]
    # Before TERM the API goes on answering until balancers know.
    drain = int(containers["api"]["lifecycle"]["preStop"]["exec"]["command"][1])
    stop_seconds = {part: pod["terminationGracePeriodSeconds"] for part, pod in pods.items()}
    stop_seconds["api"] -= drain
    for name, instance in (("redis", "main"), ("redis-broker", "broker")):
        encoded = named["Secret", f"typesafe-secrets-{name}"]["data"]["redis.conf"]
        (directory / f"kubernetes-{instance}.conf").write_bytes(base64.b64decode(encoded))
    return Effective(
        settings=named["ConfigMap", "typesafe-settings"]["data"],
        worker=command(containers["worker"]["args"]),
        worker_stop_seconds=stop_seconds["worker"],
        worker_watchdog_seconds=int(watchdog),
        secrets={
            part: set(named["Secret", pod["volumes"][0]["secret"]["secretName"]]["data"]) for part, pod in pods.items()
        },
        # A process more is a pod more.
        api=command([*containers["api"]["args"], f"--workers={named['Deployment', 'api']['spec']['replicas']}"]),
        flower=command(containers["flower"]["args"]),
        stop_seconds=stop_seconds,
        redis={instance: redis(directory / f"kubernetes-{instance}.conf") for instance in ("main", "broker")},
    )


# Each target is compared with systemd, field by field, where it has the field. A new target is one more function here.
TARGETS: dict[str, Callable[[Path], Effective]] = {
    "systemd": systemd,
    "supervisor": supervisor,
    "compose": compose,
    "kubernetes": kubernetes,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All targets of the sample and of the other application, rendered once."""
    return render("targets.yml", {"inventory": VARIABLES, "shop": SHOP}, tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="module")
def rendered(both: dict[str, Path]) -> Path:
    """Those of the sample."""
    return both["inventory"]


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "systemd"])
@pytest.mark.parametrize("field", [field.name for field in fields(Effective)])
def test_a_target_means_what_systemd_means(rendered: Path, target: str, field: str) -> None:
    here, there = (getattr(TARGETS[name](rendered), field) for name in (target, "systemd"))
    if field == "settings":  # who counts the workers differs
        here, there = (
            {name: value for name, value in side.items() if not name.endswith("WORKERS_EXPECTED")}
            for side in (here, there)
        )
    if here is not None:
        assert here == there


def test_the_inventory_reaches_the_targets(rendered: Path) -> None:
    """What all agree in is what the inventory says, and no default."""
    effective = systemd(rendered)
    assert (effective.settings["TASK_SOFT_TIME_LIMIT"], effective.settings["TASK_TIME_LIMIT"]) == ("280", "300")
    assert effective.worker_stop_seconds > 300
    assert effective.worker_watchdog_seconds == 33
    assert "--concurrency=7" in effective.worker
    assert effective.memory is not None
    assert effective.memory["worker"] == HOST_MEMORY // 4
    assert effective.redis is not None
    assert effective.redis["main"]["maxmemory-policy"] == ["allkeys-lru"]
    assert effective.redis["broker"]["maxmemory-policy"] == ["noeviction"]
    assert effective.redis["broker"]["maxmemory"] == [str(HOST_MEMORY // 10)]


def test_one_version_runs_everywhere_in_compose(rendered: Path) -> None:
    project = yaml.safe_load((rendered / "compose.yaml").read_text())
    services = project["services"]
    images = {services[name]["image"] for name in ("celery-worker", "api", "flower")}
    (image,) = images
    assert re.fullmatch(r"localhost/typesafe-backend:0123456789ab-cdef01234567-[0-9a-f]{8}", image)
    assert project["x-app"]["build"]["args"]["VERSION"] == "0123456789ab"
    assert services["redis"]["image"] == services["redis-broker"]["image"]


def test_no_secret_is_in_what_everybody_may_read(rendered: Path) -> None:
    text = (rendered / "compose.yaml").read_text()
    for secret in ("of-groq", "api-key", "signing-key", "flower-password", "redis-password", "redis://"):
        assert secret not in text


def test_each_pool_of_workers_is_a_service_that_redis_lets_at_its_queues(rendered: Path) -> None:
    slow = yaml.safe_load((rendered / "compose.yaml").read_text())["services"]["celery-worker-slow"]["command"]
    assert {"--queues=slow", "--concurrency=2", "--hostname=slow@%h"} <= set(slow)
    (worker,) = [rules for rules in compose(rendered).redis["broker"]["user"] if rules.startswith("worker ")]  # type: ignore[index]
    assert "~slow" in worker.split()


def test_a_pool_of_event_loops_is_the_librarys_on_every_target(rendered: Path) -> None:
    files = ["worker.service", "supervisor.conf", "compose.yaml", "kubernetes/workers.yml"]
    for text in ((rendered / name).read_text() for name in files):
        assert text.count("--pool=custom") == 1
        assert re.search(r"CELERY_CUSTOM_WORKER_POOL\W+(value: ?.)?celery_durable.worker.asyncio_pool:TaskPool", text)
        assert re.search(r"DURABLE_POOL_PROCESSES\W+(value: ?.)?3", text)


@pytest.fixture(scope="module")
def shop(both: dict[str, Path]) -> dict[str, Any]:
    """The other application's compose.yaml."""
    project: dict[str, Any] = yaml.safe_load((both["shop"] / "compose.yaml").read_text())
    return project


APPLICATION = ("celery-worker", "celery-worker-reports", "celery-beat", "api")


def test_another_application_is_prepared_once_before_all_that_runs_its_code(shop: dict[str, Any]) -> None:
    services = shop["services"]
    assert set(services) == {*APPLICATION, "redis", "redis-broker", "console", "flower", "script-keeper", "prepare"}
    waiting = {
        name
        for name, service in services.items()
        if service.get("depends_on", {}).get("prepare") == {"condition": "service_completed_successfully"}
    }
    assert waiting == set(APPLICATION)
    prepare = services["prepare"]
    *way, script = prepare["command"]
    assert way == ["celery-durable", "exec", "--", "sh", "-ec"]
    assert prepare["restart"] == "no"
    marker = "/var/lib/shop-prepared/0123456789ab"
    assert script.splitlines() == [
        f"if [ ! -e {marker} ]; then",
        "venv/bin/alembic upgrade head; chmod 660 data/shop.sqlite3",
        f": > {marker}",
        "fi",
    ]
    assert {"source": "api_DATABASE_URL", "target": "DATABASE_URL"} in prepare["secrets"]


def test_shared_directories_are_volumes_of_all_that_runs_its_code(shop: dict[str, Any]) -> None:
    wanted = {"shared-data:/var/lib/shop/data", "shared-uploads:/var/lib/shop/uploads"}
    having = {name for name, service in shop["services"].items() if wanted <= set(service.get("volumes", []))}
    assert having == {*APPLICATION, "prepare"}
    assert {"shared-data", "shared-uploads", "prepared", "flower"} <= set(shop["volumes"])
    arguments = shop["x-app"]["build"]["args"]
    assert arguments["SHARED"] == "data=data uploads=uploads"
    assert arguments["PACKAGES"] == "libpq5 gettext-base=0.23.1-2"


def test_beat_is_a_service_with_a_workers_rights(shop: dict[str, Any]) -> None:
    beat, worker = (shop["services"][name] for name in ("celery-beat", "celery-worker"))
    assert beat["command"] == ["celery-durable", "-A", "app.jobs", "beat", "--pidfile=", "--loglevel=warning"]
    assert beat["environment"]["DURABLE_BEAT"] == "shop"
    assert (beat["secrets"], beat["networks"]) == (worker["secrets"], ["workers"])
    assert beat["mem_limit"] == 300 * 1024**2


def test_a_command_gets_its_socket_and_compose_replaces_nothing_in_it(shop: dict[str, Any]) -> None:
    assert shop["services"]["api"]["command"] == [
        *("python", "-I", "-m", "celery_durable.listen", "8000", "celery-durable", "exec", "--"),
        *("venv/bin/hypercorn", "--bind=fd://3", "app.web:api", "--root-path=$$HOME"),
    ]


def test_an_application_without_metrics_has_a_console(shop: dict[str, Any], both: dict[str, Path]) -> None:
    console = shop["services"]["console"]
    assert console["command"] == ["durable-console", "serve", "--bind=0.0.0.0", "--port=8011"]
    assert console["ports"] == ["127.0.0.1:8011:8011"]
    for directory in both.values():
        users = {rules.split()[0] for rules in redis(directory / "compose-broker.conf")["user"]}
        assert ("console" in users) == (directory.name == "shop")
