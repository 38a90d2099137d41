"""An application that knows nothing of the platform, in containers: inventories/example-app, as on a host."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from celery_durable.testing import free_port, wait_for
from tests.containers.project import ENGINE, Compose
from tests.support import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROJECT = "compose-shop"
EXAMPLE = REPOSITORY / "inventories/example-app/group_vars/all/main.yml"
NOTE = ["sh", "-c", "echo prepared >> data/prepared"]


class Shop(Compose):
    """The application, with all that an inventory may ask for."""

    def __init__(self, directory: Path) -> None:
        """Prepare to install it into ``directory``."""
        described: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
        self.console_port = free_port()
        self.source = directory / "shop"
        shutil.copytree(REPOSITORY / "examples/shop", self.source)
        described |= {
            "app_release_source": str(self.source),
            "app_release_prepare": [*described["app_release_prepare"], NOTE],
            "app_release_packages": ["gettext-base"],
            # A server that takes its socket from systemd.
            "app_asgi": "",
            "app_command": ["venv/bin/uvicorn", "--fd={fd}", "app.web:api"],
            "celery_worker_pools": [
                {"name": "default", "queues": ["default", "high"]},
                {"name": "reports", "queues": ["reports"], "pool": "asyncio", "concurrency": 4},
            ],
            "console_port": self.console_port,
            "receipt_key": secrets.token_hex(16),
        }
        super().__init__(directory, PROJECT, "172.30.214.0/24", **described)

    def get(self, path: str) -> Any:
        """Return the API's decoded answer."""
        return httpx.get(f"http://127.0.0.1:{self.api_port}{path}", timeout=10).raise_for_status().json()

    def order(self, *articles: str) -> int:
        """Hand in an order; return its number."""
        answer = httpx.post(f"http://127.0.0.1:{self.api_port}/orders", json={"articles": articles}, timeout=10)
        return int(answer.raise_for_status().json()["id"])

    def is_done(self, number: int) -> bool:
        """Tell whether an order has ended well."""
        found = self.get(f"/orders/{number}")
        assert found["status"] != "failed", found
        return bool(found["status"] == "done")

    def metrics(self) -> str:
        """Return what the console shows."""
        headers = {"X-API-Key": self.key}
        return httpx.get(f"http://127.0.0.1:{self.console_port}/metrics", headers=headers).raise_for_status().text

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return self.run(ENGINE, "exec", self.containers(service)[0], *command)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The running project."""
    with Shop(tmp_path_factory.mktemp("shop")).running() as project:
        yield project


def test_an_order_is_done_and_its_events_arrive(shop: Shop) -> None:
    """A migrated database in a shared directory, a chord that a worker sends, a channel in Redis."""
    assert shop.get("/healthz") == {"status": "ok", "env": "production"}
    number = shop.order("tea", "rare", "milk")
    events = httpx.get(f"http://127.0.0.1:{shop.api_port}/orders/{number}/events", timeout=60).text
    assert re.findall(r"data: (\w+)", events)[-1] == "done"
    assert shop.is_done(number)


def test_the_release_is_prepared_once(shop: Shop) -> None:
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", shop.play())
    shop.compose("up", "--detach")
    assert shop.inside("api", "cat", "data/prepared") == "prepared\n"


def test_its_debian_packages_are_there(shop: Shop) -> None:
    assert shop.inside("celery-worker", "sh", "-c", "command -v envsubst").strip() == "/usr/bin/envsubst"


def test_both_pools_answer_and_are_counted(shop: Shop) -> None:
    def counted() -> bool:
        text = shop.metrics()
        queues = [f'celery_queue_length{{queue="{queue}"}}' in text for queue in ("default", "high", "reports")]
        return all([*queues, "celery_workers_alive 2.0" in text, "celery_workers_expected 2.0" in text])

    wait_for(counted, seconds=30)
    assert httpx.get(f"http://127.0.0.1:{shop.console_port}/status").status_code == 401
    page = httpx.get(f"http://127.0.0.1:{shop.console_port}/status", headers={"X-API-Key": shop.key})
    assert page.status_code == 200
    answer = httpx.get(f"http://127.0.0.1:{shop.console_port}/health/celery").json()
    assert {name.split("@")[0] for name in answer["workers"]} == {"default", "reports"}
    assert "custom" in json.dumps(shop.inspect(shop.containers("celery-worker-reports")[0])["Config"]["Cmd"])


def test_beats_tick_arrives(shop: Shop) -> None:
    """Each minute; a pool of event loops writes the report into a shared directory."""
    wait_for(lambda: "celery_beat_active 1.0" in shop.metrics(), seconds=30)
    wait_for(lambda: "report.txt" in shop.inside("api", "ls", "uploads"), seconds=120)
    assert shop.probe(shop.containers("celery-beat")[0])[0]


def test_a_killed_worker_loses_no_order(shop: Shop) -> None:
    articles = [f"article-{number}" for number in range(20)]
    container = shop.containers("celery-worker")[0]
    numbers = [shop.order(*articles) for _ in range(10)]
    wait_for(lambda: shop.get(f"/orders/{numbers[0]}")["status"] == "pricing", seconds=30)
    os.kill(shop.inspect(container)["State"]["Pid"], signal.SIGKILL)
    assert not shop.is_done(numbers[-1])
    for number in numbers:
        wait_for(lambda number=number: shop.is_done(number), seconds=120)  # type: ignore[misc]
    assert shop.compose("exec", "-T", "redis-broker", "redis-cli", "llen", "dead_letters").strip() == "0"


def test_a_release_whose_preparation_fails_changes_no_service(shop: Shop) -> None:
    before = {service: shop.containers(service) for service in ("api", "celery-worker", "celery-beat")}
    (shop.source / "app/new.py").write_text("# another release\n")
    wrong = json.dumps({"app_release_prepare": [["sh", "-c", "echo no table >&2; exit 3"]]})
    output = shop.play(f"--extra-vars={wrong}", check=False)
    assert "no table" in output
    assert re.search(r"localhost +: .*failed=1", output)
    assert {service: shop.containers(service) for service in before} == before
    assert shop.get("/healthz")["status"] == "ok"
    # With its cause removed the same release is prepared and goes live; Redis stays, a former service goes.
    redis = shop.containers("redis")
    labels = [f"--label=com.docker.compose.{key}" for key in (f"project={shop.name}", "service=former")]
    image = shop.inspect(before["api"][0])["Image"]
    shop.run(ENGINE, "run", "--detach", "--network=none", *labels, image, "sleep", "600")
    shop.play()
    assert (shop.containers("redis"), shop.containers("former")) == (redis, [])
    assert shop.inside("api", "cat", "data/prepared") == "prepared\n" * 2
    assert shop.containers("api") != before["api"]
    number = shop.order("tea")
    wait_for(lambda: shop.is_done(number), seconds=60)
