"""What the rendered units say, and that systemd and supervisor are told the same."""

from __future__ import annotations

import configparser
import secrets
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.render.rendering import render

CHANGED: dict[str, Any] = {
    "celery_worker_concurrency": 7,
    "log_level": "warning",
    "task_time_limit": "300",  # as -e task_time_limit=300 gives it
    "task_soft_time_limit": 280,
    "task_default_rate_limit": "100/m",
    "groq_api_key": secrets.token_hex(16),
}


FOREIGN: dict[str, Any] = {
    "app_name": "shop",
    "app_release_source": "/nowhere/shop",
    "app_celery": "shop.jobs",
    "app_asgi": "shop.web:app",
    "app_queues": ["default", "high"],
    "app_default_queue": "default",
    "app_settings": {"SHOP_ENV": "production", "LIMITS": {"a": 1}},
    "app_secrets": {"all": {"DATABASE_URL": "x"}, "worker": {"RECEIPT_KEY": "y"}},
    "app_redis_variables": {"CACHE_URL": "results"},
    "app_release_shared": {"uploads": "uploads"},
    "app_release_sandbox": ["MemoryDenyWriteExecute=no"],
}
REDIS_ADDRESSES = {
    "127.0.0.1": "localhost",
    "10.1.2.3": "localhost 10.1.2.3",
    "fd00::7": "localhost fd00::7",
    "redis.internal": "localhost any",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "changed": CHANGED,
    "renamed": {"app_name": "other"},
    "foreign": FOREIGN,
    "factory": {**FOREIGN, "app_asgi": "shop.web:create_app()"},
    "wsgi-factory": {
        **FOREIGN,
        "app_asgi": "",
        "app_wsgi": "shop.wsgi:create_app()",
        "__stack_services_here": ["operator", "api"],
    },
    "own-data": {**FOREIGN, "app_redis_variables": {"CACHE_URL": "data", "CACHE_HOST": "data.host"}},
    "schedule-in-a-database": {**FOREIGN, "celery_beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler"},
    "wsgi": {**FOREIGN, "app_asgi": "", "app_wsgi": "shop.wsgi"},
    "another-server": {**FOREIGN, "app_asgi": "", "app_command": ["venv/bin/daphne", "--fd", "{fd}", "shop.asgi:app"]},
    "open-flower": {"flower_bind": "0.0.0.0"},  # noqa: S104 - what the rule is about
    "console-for-others": {**FOREIGN, "console_bind": "10.1.2.3"},
    "broker-elsewhere": {"redis_broker_host": "10.1.2.3"},
    "closed": {"worker_egress": [{"name": "database", "to": ["10.9.0.0/16"], "ports": [5432]}]},
    **{f"redis-{number}": {"redis_host": host} for number, host in enumerate(REDIS_ADDRESSES)},
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All templates, with each set of variables."""
    return render("render.yml", VARIANTS, tmp_path_factory.mktemp("rendered"))


def service(directory: Path, unit: str) -> dict[str, list[str]]:
    """Return the [Service] section of a unit: each key with all its values."""
    values: dict[str, list[str]] = {}
    text = (directory / unit).read_text().replace("\\\n", " ")
    for line in text.split("[Service]")[1].split("\n[")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(" ".join(value.split()))
    return values


def program(directory: Path) -> dict[str, str]:
    """Return supervisor's section of the default pool."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(directory / "supervisor.conf")
    return dict(parser["program:typesafe-celery-worker"])


def test_a_stop_waits_for_the_hard_limit_and_what_follows_under_both_supervisions(rendered: dict[str, Path]) -> None:
    for limit, directory in ((60, rendered["default"]), (300, rendered["changed"])):
        # Phase one ends 5 s after the hard limit, phase two takes up to 10 s (worker/lifecycle.py, config.py).
        needed = limit + 5 + 10
        unit = service(directory, "worker.service")
        assert int(unit["TimeoutStopSec"][0]) > needed
        assert int(program(directory)["stopwaitsecs"]) > needed
        assert int(service(directory, "supervisor.service.conf")["TimeoutStopSec"][0]) > int(unit["TimeoutStopSec"][0])


def test_a_stop_reaches_the_main_process_alone(rendered: dict[str, Path]) -> None:
    directory = rendered["default"]
    assert service(directory, "worker.service")["KillMode"] == ["mixed"]
    assert (program(directory)["stopsignal"], program(directory)["stopasgroup"]) == ("TERM", "false")
    assert program(directory)["killasgroup"] == "true"


def test_both_supervisions_start_the_same_worker(rendered: dict[str, Path]) -> None:
    directory = rendered["changed"]
    under_systemd = service(directory, "worker.service")["ExecStart"][0].replace("@%H", "@HOST")
    under_supervisor = " ".join(program(directory)["command"].split()).replace("@%(host_node_name)s", "@HOST")
    sandbox = "/usr/local/sbin/worker-sandbox typesafe typesafe /etc/typesafe/secrets/worker "
    assert under_supervisor.startswith(sandbox)
    under_supervisor = under_supervisor.removeprefix(sandbox)
    assert under_systemd == under_supervisor
    assert "--concurrency=7" in under_systemd
    assert "--loglevel=warning" in under_systemd


def test_the_settings_reach_worker_and_api_alike(rendered: dict[str, Path]) -> None:
    directory = rendered["changed"]
    settings = (directory / "backend.env").read_text()
    for line in ("TASK_TIME_LIMIT='300'", "TASK_SOFT_TIME_LIMIT='280'", "TASK_DEFAULT_RATE_LIMIT='100/m'"):
        assert line in settings
    for unit in ("worker.service", "api.service"):
        assert service(directory, unit)["WorkingDirectory"] == ["/opt/typesafe/backend"]
    # Celery imports from the working directory first: the application's code must not be there.
    assert service(directory, "flower.service")["WorkingDirectory"] == ["/opt/typesafe/platform"]


def test_secrets_reach_the_units_as_credentials_alone(rendered: dict[str, Path]) -> None:
    directory = rendered["changed"]
    for unit, name, secret in (
        ("worker.service", "worker", "GROQ_API_KEY"),
        ("api.service", "api", "BACKEND_API_KEY"),
        ("flower.service", "flower", "CELERY_BROKER_URL"),
    ):
        assert f"{secret}:/etc/typesafe/secrets/{name}/{secret}" in service(directory, unit)["LoadCredential"]
    assert "GROQ_API_KEY" not in (directory / "api.service").read_text()
    for file in directory.iterdir():
        assert CHANGED["groq_api_key"] not in file.read_text()
        assert "redis://" not in file.read_text()


def test_another_application_needs_another_inventory_only(rendered: dict[str, Path]) -> None:
    directory = rendered["renamed"]
    for file in directory.iterdir():
        assert "typesafe" not in file.read_text()
    assert service(directory, "worker.service")["User"] == ["other"]
    assert service(directory, "api.service")["User"] == ["other-api"]


def test_an_application_that_knows_nothing_gets_all_by_its_environment(rendered: dict[str, Path]) -> None:
    directory = rendered["foreign"]
    worker, api = service(directory, "worker.service"), service(directory, "api.service")
    assert worker["ExecStart"][0].startswith("/opt/shop/backend/venv/bin/celery-durable -A shop.jobs worker ")
    assert "--queues=default,high" in worker["ExecStart"][0]
    start = "/opt/shop/backend/venv/bin/celery-durable exec -- /opt/shop/backend/venv/bin/uvicorn shop.web:app --fd 3 "
    assert api["ExecStart"][0].startswith(start)
    for unit in (worker, api):
        assert unit["EnvironmentFile"] == ["/etc/shop/backend.env"]
        assert unit["UnsetEnvironment"] == ["SECRETS_DIRECTORY"]
        assert "DURABLE_SIGNING_KEY:" in " ".join(unit["LoadCredential"])
    for text in ("CACHE_URL", "DATABASE_URL"):
        assert all(text in " ".join(unit["LoadCredential"]) for unit in (worker, api))
    assert "RECEIPT_KEY" in " ".join(worker["LoadCredential"])
    assert "RECEIPT_KEY" not in " ".join(api["LoadCredential"])
    sandbox = (directory / "sandbox.conf").read_text()
    assert sandbox.index("MemoryDenyWriteExecute=yes") < sandbox.index("MemoryDenyWriteExecute=no")
    assert "ReadWritePaths=-/var/lib/shop" in sandbox
    under_supervisor = configparser.ConfigParser(interpolation=None)
    under_supervisor.read(directory / "supervisor.conf")
    assert ". /etc/shop/backend.env" in under_supervisor["program:shop-celery-worker"]["command"]


def test_an_application_meets_no_variable_that_it_does_not_know(rendered: dict[str, Path]) -> None:
    """The sample's own are called like those of many applications: RATE_LIMIT, LOG_LEVEL, ENVIRONMENT."""
    names = {
        line.partition("=")[0]
        for line in (rendered["foreign"] / "backend.env").read_text().splitlines()
        if line[:1].isupper()
    }
    own = {name for name in names if not name.startswith(("DURABLE_", "FLOWER_"))}
    assert own == {"SECRETS_DIRECTORY", "SHOP_ENV", "LIMITS"}
    credentials = service(rendered["foreign"], "api.service")["LoadCredential"]
    given = {credential.partition(":")[0] for credential in credentials}
    own = {name for name in given if not name.startswith(("DURABLE_", "CELERY_"))}
    assert own == {"CACHE_URL", "DATABASE_URL"}


def test_other_servers_take_the_same_socket(rendered: dict[str, Path]) -> None:
    (gunicorn,) = service(rendered["wsgi"], "api.service")["ExecStart"]
    assert " -- /opt/shop/backend/venv/bin/gunicorn shop.wsgi --bind fd://3 " in gunicorn
    (daphne,) = service(rendered["another-server"], "api.service")["ExecStart"]
    assert daphne.endswith(" -- /opt/shop/backend/venv/bin/daphne --fd 3 shop.asgi:app")


def test_a_factory_is_called(rendered: dict[str, Path]) -> None:
    (uvicorn,) = service(rendered["factory"], "api.service")["ExecStart"]
    assert "/venv/bin/uvicorn --factory shop.web:create_app --fd 3 " in uvicorn
    (gunicorn,) = service(rendered["wsgi-factory"], "api.service")["ExecStart"]
    assert "/venv/bin/gunicorn shop.wsgi:create_app() --bind fd://3 " in gunicorn


@pytest.mark.parametrize(
    ("application", "is_good"),
    [("web", True), ("web:app.wsgi", True), ("web:create_app()", True), ("web:gone()", False)],
)
def test_the_check_of_a_release_loads_the_web_application(
    rendered: dict[str, Path], tmp_path: Path, application: str, is_good: bool
) -> None:
    """The program between the quotes of NAME-admin --check, which must be one word of the shell for any application."""
    script = (rendered["wsgi-factory"] / "admin").read_text()
    assert script.rstrip().endswith("""' 'shop.wsgi:create_app()'\n    ;;\nesac""")
    subprocess.run(["sh", "-n", rendered["wsgi-factory"] / "admin"], check=True)
    program = script.partition("venv/bin/python -c '\n")[2].partition("'")[0]
    (tmp_path / "web.py").write_text("application = create_app = lambda: None\nclass app: wsgi = None\n")
    command = [sys.executable, "-c", program, application]
    assert (subprocess.run(command, cwd=tmp_path, check=False).returncode == 0) == is_good


def test_beat_reads_its_schedule_where_the_inventory_says(rendered: dict[str, Path]) -> None:
    assert "--scheduler" not in (rendered["foreign"] / "beat.service").read_text()
    (beat,) = service(rendered["schedule-in-a-database"], "beat.service")["ExecStart"]
    assert beat.endswith(" --scheduler=django_celery_beat.schedulers:DatabaseScheduler")


def test_an_application_with_a_redis_of_its_own_reaches_it(rendered: dict[str, Path]) -> None:
    assert "CACHE_HOST:/etc/shop/secrets/worker/CACHE_HOST" in str(service(rendered["own-data"], "worker.service"))
    (after,) = [line for line in (rendered["own-data"] / "worker.service").read_text().splitlines() if "After=" in line]
    assert "redis-server@data.service" in after


def test_limits_follow_from_what_runs(rendered: dict[str, Path]) -> None:
    small, big = rendered["default"], rendered["changed"]
    assert service(small, "worker.service")["TasksMax"] == ["320"]  # two processors, four tasks at once
    assert service(big, "worker.service")["TasksMax"] == ["512"]
    assert service(small, "api.service")["MemoryMax"] == ["640M"]
    assert service(small, "flower.service")["MemoryMax"] == ["456M"]
    for unit in ("worker.service", "api.service"):
        assert service(small, unit)["OOMPolicy"] == ["continue"]


@pytest.mark.parametrize(("number", "addresses"), list(enumerate(REDIS_ADDRESSES.values())))
def test_api_and_flower_reach_redis_wherever_it_is(rendered: dict[str, Path], number: int, addresses: str) -> None:
    for unit in ("api.service", "flower.service"):
        assert service(rendered[f"redis-{number}"], unit)["IPAddressAllow"] == [addresses]


@pytest.mark.parametrize(
    ("variant", "addresses"),
    [
        ("default", {"127.0.0.1/32"}),
        ("redis-1", {"10.1.2.3/32"}),
        ("redis-2", {"fd00::7/128"}),
        ("redis-3", {"0.0.0.0/0", "::/0"}),
        ("broker-elsewhere", {"127.0.0.1/32", "10.1.2.3/32"}),
        ("closed", {"127.0.0.1/32", "10.9.0.0/16"}),
    ],
)
def test_a_worker_reaches_redis_the_resolvers_and_what_the_inventory_names(
    rendered: dict[str, Path], variant: str, addresses: set[str]
) -> None:
    unit = service(rendered[variant], "worker.service")
    assert set(unit["IPAddressAllow"][0].split()) - {"10.7.7.53/32"} == addresses
    assert ("10.7.7.53/32" in unit["IPAddressAllow"][0]) == (variant != "redis-3")
    if variant == "closed":
        assert unit["IPAddressDeny"] == ["any"]
        return
    denied = [ip_network(network) for network in unit["IPAddressDeny"][0].split()]
    for closed in ("127.0.0.1", "169.254.169.254", "::1", "fd00::7", "fe80::1", "::ffff:0:a9fe:a9fe", "200:9::2"):
        assert any(ip_address(closed) in network for network in denied), closed
    for public in ("192.0.32.8", "2001:500:88:200::8"):
        assert not any(ip_address(public) in network for network in denied), public


def test_the_console_of_an_application_has_its_own_rights_alone(rendered: dict[str, Path]) -> None:
    unit = service(rendered["foreign"], "console.service")
    assert unit["User"] == ["shop-console"]
    assert unit["ExecStart"] == ["/opt/shop/platform/venv/bin/durable-console serve --bind=127.0.0.1 --port=8010"]
    assert unit["WorkingDirectory"] == ["/opt/shop/platform"]
    given = {credential.partition(":")[0] for credential in unit["LoadCredential"]}
    assert {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "BACKEND_API_KEY", "DURABLE_CONTROL_KEY"} <= given
    assert given & {"DURABLE_SIGNING_KEY", "TASK_SIGNING_KEY", "DATABASE_URL", "RECEIPT_KEY"} == set()
    assert unit["IPAddressAllow"] == ["localhost"]
    assert "IPAddressDeny" not in service(rendered["console-for-others"], "console.service")


def test_flower_that_others_reach_has_no_list_of_addresses(rendered: dict[str, Path]) -> None:
    assert "IPAddressDeny" not in service(rendered["open-flower"], "flower.service")
