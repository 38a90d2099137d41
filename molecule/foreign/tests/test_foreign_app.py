"""An application that knows nothing of the platform, installed by site.yml: it works, and has the guarantees."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import EPHEMERAL, PROJECT, Process, ask, security_exposure
from testinfra.host import Host

from celery_durable.testing import wait_for

Converge = Callable[..., subprocess.CompletedProcess[str]]
URL = "http://127.0.0.1:8000"
CONSOLE = "http://127.0.0.1:8010"
RELEASE = "/opt/shop/backend"
STATE = "/var/lib/shop"
UNITS = (
    "redis-server",
    "redis-server@broker",
    "redis-server@data",
    "shop-celery",
    "shop-celery-reports",
    "shop-beat",
    "shop-api",
    "shop-console",
    "shop-flower",
    "prometheus",
)
INSTANCES = {6379: "/etc/redis/redis.conf", 6380: "/etc/redis/redis-broker.conf", 6381: "/etc/redis/redis-data.conf"}


class Shop:
    """The application's API, spoken to from its own host, and what lies behind it."""

    def __init__(self, host: Host) -> None:
        """Speak from ``host``."""
        self.host = host

    def get(self, path: str) -> Any:
        """Return the decoded answer of a request that must succeed."""
        return json.loads(self.host.check_output(f"curl -sS --fail --max-time 10 {URL}{path}"))

    def order(self, *articles: str, times: int = 1) -> list[int]:
        """Hand in the same order some times and return their numbers."""
        post = "curl -sS --fail --max-time 10 -w '\\n' -H 'Content-Type: application/json'"
        body = json.dumps({"articles": articles})
        answers = self.host.check_output(f"for i in $(seq {times}); do {post} -d '{body}' {URL}/orders || exit; done")
        return [json.loads(answer)["id"] for answer in answers.splitlines()]

    def status(self, number: int) -> str:
        """Return what has become of an order."""
        return str(self.get(f"/orders/{number}")["status"])

    def is_done(self, number: int, total: int) -> bool:
        """Tell whether an order has ended well."""
        found = self.get(f"/orders/{number}")
        assert found["status"] != "failed", found
        return (found["status"], found["total"]) == ("done", total)

    def rows(self, query: str) -> list[list[Any]]:
        """Ask its database."""
        code = f"import json, sqlite3; database = sqlite3.connect('{STATE}/data/shop.sqlite3'); "
        code += f"print(json.dumps(database.execute('{query}').fetchall()))"
        found: list[list[Any]] = json.loads(self.host.check_output(f'python3 -c "{code}"'))
        return found

    def journal(self, unit: str) -> str:
        """Return what a unit has logged."""
        return str(self.host.check_output(f"journalctl --no-pager --unit {unit}"))


@pytest.fixture
def shop(host: Host) -> Shop:
    """The application."""
    return Shop(host)


def redis(host: Host, port: int, command: str) -> str:
    """Ask one Redis instance something, with the password that its own configuration names."""
    login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {INSTANCES[port]})"
    return str(host.check_output(f"{login}; redis-cli -p {port} {command}"))


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_up(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.usefixtures("host")  # so that it runs where it stands
def test_the_doctor_finds_nothing() -> None:
    command = [
        "ansible-playbook",
        f"--inventory={EPHEMERAL / 'inventory'}",
        str(PROJECT / "playbooks/diagnose/doctor.yml"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout
    # The test hosts' clock is that of the machine, which may be unsynchronized.
    assert set(re.findall(r"-> docs/runbooks/(\w+)\.md", run.stdout)) <= {"ClockWrong"}, run.stdout


def test_an_order_is_done(host: Host, shop: Shop, secret: Callable[[str], str]) -> None:
    """A chord whose task is retried, sent by a worker; events over a channel of its own; a secret of workers."""
    (number,) = shop.order("tea", "rare", "milk")
    events = host.check_output(f"curl -sSN --max-time 30 {URL}/orders/{number}/events")
    assert re.findall(r"data: (\w+)", events)[-1] == "done"
    assert shop.is_done(number, 11)
    receipt = hmac.new(secret("receipt_key").encode(), str(number).encode(), hashlib.sha256).hexdigest()[:8]
    wait_for(lambda: f"receipt of order {number}: {receipt}" in shop.journal("shop-celery"), "the receipt", 30)


def test_a_task_that_fails_for_good_is_written_into_its_order(shop: Shop) -> None:
    (number,) = shop.order("tea", "unknown")
    wait_for(lambda: shop.status(number) == "failed", "the failure", 30)


def test_reports_have_a_worker_of_their_own(host: Host, shop: Shop) -> None:
    task = json.loads(host.check_output(f"curl -sS --fail -X POST {URL}/reports"))["task"]
    wait_for(lambda: task in shop.journal("shop-celery-reports"), "the report's worker", 30)
    wait_for(lambda: host.file(f"{STATE}/uploads/report.txt").exists, "the report", 30)
    assert task not in shop.journal("shop-celery")


def test_flower_sees_both_workers(host: Host) -> None:
    login = '-u "$(cat /etc/shop-flower/FLOWER_BASIC_AUTH)"'

    def seen() -> bool:
        page = host.check_output(f"curl -sS {login} 'http://127.0.0.1:5555/flower/workers?json=1'")
        return all(f"{pool}@foreign-host" in page for pool in ("default", "reports"))

    wait_for(seen, "both workers", 30)


def test_its_own_redis_keeps_what_it_holds_over_a_restart(host: Host, shop: Shop) -> None:
    """CACHE_URL is data: the worker reads a price there and writes another one, nothing of it beside the results."""
    redis(host, 6381, "SET shop:price:gift 40")
    for article in ("wrap", "bow"):
        (number,) = shop.order("gift", article)
        wait_for(partial(shop.is_done, number, 40 + len(article)), f"the order with a {article}", 30)
        host.run_expect([0], "systemctl restart redis-server@data")
        prices = redis(host, 6381, f"MGET shop:price:gift shop:price:{article}")
        assert prices.split() == ["40", str(len(article))]
    assert redis(host, 6379, "EXISTS shop:price:gift shop:price:bow") == "0"


@pytest.mark.parametrize("user", ["flower", "operator", "console"])
def test_only_the_application_enters_its_own_redis(host: Host, user: str) -> None:
    url = f"/etc/shop/secrets/{user}/CELERY_BROKER_URL"
    login = f"export REDISCLI_AUTH=$(sed 's|.*//[^:]*:\\([^@]*\\)@.*|\\1|' {url}); redis-cli --user {user}"
    assert host.check_output(f"{login} -p 6380 PING") == "PONG"
    assert "NOAUTH" in host.run(f"{login} -p 6381 PING").stdout
    assert "NOAUTH" in host.run("redis-cli -p 6381 PING").stdout
    # The last test wants a log without what this one has been denied.
    assert re.findall(r"^username\n(.*)", redis(host, 6381, "ACL LOG"), re.MULTILINE) == [user]
    redis(host, 6381, "ACL LOG RESET")


# What the platform runs beside the application


def arguments(host: Host, unit: str) -> list[str]:
    """Return the command line of a unit's main process, as the kernel has it."""
    return str(host.check_output(f"tr '\\0' '\\n' < /proc/{Process(host, unit).pid}/cmdline")).splitlines()


@pytest.mark.parametrize("unit", ["shop-flower", "shop-console"])
def test_the_platforms_services_run_from_its_own_environment(host: Host, unit: str) -> None:
    version = host.check_output("readlink /opt/shop/platform")
    assert version.startswith("/opt/shop/platform-releases/")
    interpreter, program, *_ = arguments(host, unit)
    assert interpreter.startswith(f"{version}/venv/bin/python")
    assert program.startswith("/opt/shop/platform/venv/bin/durable-")
    assert host.check_output(f"readlink /proc/{Process(host, unit).pid}/cwd") == version


def test_the_release_holds_none_of_it(host: Host) -> None:
    for package in ("flower", "durable_console"):
        tried = host.run(f"cd / && {RELEASE}/venv/bin/python -c 'import {package}'")
        assert f"No module named '{package}'" in tried.stderr
    assert not host.file("/opt/shop/console").exists


def test_operators_commands_need_no_release(host: Host) -> None:
    """Three in the morning: the packages of the application are damaged."""
    packages = host.check_output(f"echo {RELEASE}/venv/lib/python3*/site-packages")
    admin = "/usr/local/sbin/shop-admin"
    host.run_expect([0], f"mv {packages} {packages}.away")
    try:
        assert host.run(f"{admin} --check").failed
        assert "default: " in host.check_output(f"{admin} queues list")
        assert host.check_output(f"{admin} dead-letters list") == "0 dead letters."
        assert "default@foreign-host" in host.check_output(f"{admin} inspect ping --timeout=5")
        assert "default@foreign-host has run" in host.check_output(f"{admin} canary --node default@foreign-host")
    finally:
        host.run_expect([0], f"mv {packages}.away {packages}")


# The application has none of this itself


def look(host: Host, path: str, key: str) -> tuple[int, str]:
    """Return what the console answers to a key, which no command shows: sudo logs each."""
    file = f"/etc/shop/secrets/console/{key}"
    login = f"sed 's/.*/header = \"Authorization: Bearer &\"/' {file}"
    answer = host.check_output(f"{login} | curl -sS --max-time 10 -w '\\n%{{http_code}}' -K - {CONSOLE}{path}")
    body, _, status = answer.rpartition("\n")
    return int(status), body


def test_the_console_is_as_tightly_sandboxed_as_the_rest(host: Host) -> None:
    assert security_exposure(host, "shop-console.service") <= 1.5
    assert host.check_output("systemctl show --value --property=User shop-console") == "shop-console"


def test_queues_and_workers_are_counted_for_who_has_a_key(host: Host, shop: Shop) -> None:
    (number,) = shop.order("tea")
    wait_for(lambda: shop.is_done(number, 3), "the order", 30)
    assert host.check_output(f"curl -sS -o /dev/null -w '%{{http_code}}' {CONSOLE}/metrics") == "401"

    def counted() -> bool:
        status, page = look(host, "/metrics", "METRICS_API_KEY")
        assert status == 200
        queues = [f'celery_queue_length{{queue="{queue}"}}' in page for queue in ("default", "high", "reports")]
        workers = ["celery_workers_alive 2.0" in page, "celery_workers_expected 2.0" in page]
        done = re.search(r'celery_tasks_ended_total\{outcome="succeeded",task="[^"]+"\} [1-9]', page)
        return all([*queues, *workers, done])

    wait_for(counted, "queues, workers and tasks in /metrics", 30)


def test_the_monitoring_key_opens_no_page_for_people(host: Host) -> None:
    assert look(host, "/status", "METRICS_API_KEY")[0] == 401
    status, page = look(host, "/status", "BACKEND_API_KEY")
    assert status == 200
    shown = ("Console", "default", "high", "reports", "default@foreign-host", "reports@foreign-host")
    assert [word for word in shown if word not in page] == []


def test_the_console_says_which_workers_answer(host: Host) -> None:
    answer = json.loads(host.check_output(f"curl -sS --fail --max-time 10 {CONSOLE}/health/celery"))
    assert (answer["status"], answer["workers"]) == ("healthy", ["default@foreign-host", "reports@foreign-host"])


def test_prometheus_scrapes_it_and_alertmanager_reaches_its_page(host: Host) -> None:
    def scraped() -> bool:
        found = [
            ask(host, f"query?query={name}")["result"] for name in ("up%7Bjob=%22console%22%7D", "celery_workers_alive")
        ]
        return [float(series["value"][1]) for result in found for series in result] == [1, 2]

    wait_for(scraped, "the console in Prometheus", 90)
    wait_for(lambda: "Alertmanager was heard" in look(host, "/status", "BACKEND_API_KEY")[1], "the watchdog", 120)


def test_a_killed_worker_loses_no_order(host: Host, shop: Shop) -> None:
    articles = [f"article-{number}" for number in range(20)]
    before = Process(host, "shop-celery").pid
    numbers = shop.order(*articles, times=10)
    wait_for(lambda: shop.status(numbers[0]) == "pricing", "the first order", 30)
    host.run_expect([0], "systemctl kill --kill-whom=all --signal=KILL shop-celery")
    assert shop.status(numbers[-1]) != "done"
    total = sum(map(len, articles))
    for number in numbers:
        wait_for(lambda number=number: shop.is_done(number, total), f"order {number}", 90)  # type: ignore[misc]
    assert Process(host, "shop-celery").pid != before
    assert redis(host, 6380, "LLEN dead_letters") == "0"


def test_the_inventory_wins_over_the_sources_own_env_file(host: Host, shop: Shop) -> None:
    """The source's .env says development, another database and a Redis without a password."""
    assert (PROJECT / "examples/shop/.env").exists()
    assert host.check_output(f"find -L {RELEASE}/ -maxdepth 2 -name .env") == ""
    assert shop.get("/healthz") == {"status": "ok", "env": "production"}
    assert host.check_output(f"find {RELEASE}/ {STATE} -name 'dev.sqlite3*'") == ""
    assert shop.rows("select count(*) from orders") > [[0]]


def test_the_release_holds_what_the_inventory_lists(host: Host) -> None:
    paths = host.check_output(f"ls -A {RELEASE}/").split()
    assert {"app", "alembic.ini", "migrations", "venv", "data", "uploads"} <= set(paths)
    assert {"requirements.in", "requirements.lock"} & set(paths) == set()


# Secrets


@pytest.fixture
def canaries(host: Host, name: str) -> str:
    """Write all secrets of this run into a file on the host, as patterns for grep, without a trace in any command."""
    made = [file.read_text().split()[0] for file in (EPHEMERAL / "secrets").iterdir()]
    assert len(made) >= 8
    put = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", name, "install", "-m", "600", "/dev/stdin"]
    subprocess.run([*put, "/run/canaries"], input="\n".join(made) + "\n", text=True, check=True)
    assert host.file("/run/canaries").mode == 0o600
    return "/run/canaries"


def test_units_journal_and_readable_files_hold_no_secret(host: Host, canaries: str) -> None:
    assert host.run(f"grep -rlF -f {canaries} /etc/systemd /usr/lib/systemd /etc/shop/*.env").stdout == ""
    assert host.run(f"journalctl --no-pager --all | grep -cF -f {canaries}").stdout.strip() == "0"
    assert host.run(f"cd /proc; grep -alF -f {canaries} [0-9]*/cmdline 2>/dev/null").stdout == ""
    find = "find / -xdev -type f -perm -o+r -not -path '/proc/*' -not -path '/sys/*' -print0"
    assert host.run(f"{find} | xargs -0 -r grep -lF -f {canaries} 2>/dev/null").stdout == ""


def test_a_secret_of_workers_is_for_workers(host: Host) -> None:
    assert host.run("sudo -u shop cat /etc/shop/secrets/worker/RECEIPT_KEY").succeeded
    assert host.run("sudo -u shop-api cat /etc/shop/secrets/worker/RECEIPT_KEY").failed
    assert not host.file("/etc/shop/secrets/api/RECEIPT_KEY").exists
    for service, user in (("worker", "shop"), ("api", "shop-api")):
        file = host.file(f"/etc/shop/secrets/{service}/DATABASE_URL")
        assert (file.user, file.group, file.mode) == ("root", user, 0o640)


def test_beat_sends_what_is_due(host: Host, shop: Shop) -> None:
    """Each minute; by now one has passed since the installation."""

    def sent() -> bool:
        return "report" in redis(host, 6380, "--raw HGETALL durable:beat_runs:shop").splitlines()

    wait_for(sent, "a run that beat has claimed", 90)
    wait_for(lambda: "Sending due task report" in shop.journal("shop-beat"), "beat's log", 30)


def test_a_beat_that_is_stopped_is_told(host: Host) -> None:
    def firing() -> set[str]:
        alerts = ask(host, "query?query=ALERTS%7Balertstate=%22firing%22%7D")["result"]
        return {alert["metric"]["alertname"] for alert in alerts}

    def active(figure: float) -> bool:
        return f"celery_beat_active {figure}" in look(host, "/metrics", "METRICS_API_KEY")[1]

    wait_for(lambda: active(1.0), "the lease in /metrics", 30)
    host.check_output("systemctl stop shop-beat")
    try:
        wait_for(lambda: active(0.0), "the lack of a lease in /metrics", 30)
        if "SHORT_RUN" not in os.environ:
            wait_for(lambda: "BeatMissing" in firing(), "the alert", 150)
    finally:
        host.check_output("systemctl start shop-beat")
    wait_for(lambda: active(1.0), "the lease in /metrics", 30)


# What outlives a release


def test_another_release_migrates_once_and_finds_what_was_there(
    host: Host, shop: Shop, converge: Converge, tmp_path: Path
) -> None:
    before = host.check_output(f"readlink {RELEASE}")
    orders = shop.rows("select count(*) from orders")
    # Not the report, which beat has written anew each minute.
    host.run_expect([0], f"sudo -u shop sh -c 'echo of an earlier release > {STATE}/uploads/kept.txt'")
    assert shop.rows("select version_num from alembic_version") == [["0001"]]

    source = tmp_path / "shop"
    shutil.copytree(PROJECT / "examples/shop", source, ignore=shutil.ignore_patterns("__pycache__", ".cache"))
    (source / "migrations/versions/0002_customer.py").write_text(
        '"""Whose order it is."""\n\nimport sqlalchemy as sa\nfrom alembic import op\n\n'
        'revision = "0002"\ndown_revision = "0001"\n\n\n'
        'def upgrade() -> None:\n    op.add_column("orders", sa.Column("customer", sa.String))\n'
    )
    new = {"app_release_source": str(source), "app_release_cache": str(PROJECT / ".cache/releases")}
    deployed = converge(**new)
    assert deployed.returncode == 0, deployed.stdout[-4000:]
    assert host.check_output(f"readlink {RELEASE}") != before
    assert shop.rows("select version_num from alembic_version") == [["0002"]]
    assert shop.rows("select count(*) from orders where customer is null") == orders
    assert host.file(f"{RELEASE}/uploads/kept.txt").content_string == "of an earlier release\n"
    (number,) = shop.order("tea")
    wait_for(lambda: shop.is_done(number, 3), "an order of the new release", 30)

    again = converge(**new)
    assert again.returncode == 0, again.stdout[-4000:]
    assert re.findall(r"changed=(?!0 )\d+", again.stdout) == []


@pytest.mark.parametrize("port", INSTANCES)
def test_redis_has_denied_the_application_nothing(host: Host, port: int) -> None:
    """Last: its own keys, channels and queues, chords and retries have all been used by now."""
    assert redis(host, port, "ACL LOG") == ""
