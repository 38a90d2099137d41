"""The application of inventories/example-app runs unchanged, with the inventory's variables instead of its `.env`."""

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support import REPOSITORY, Program, Stack, free_port, wait_until

SOURCE = REPOSITORY / "examples/shop"
INVENTORY = REPOSITORY / "inventories/example-app"
VARIABLES: dict[str, Any] = yaml.safe_load((INVENTORY / "group_vars/all/main.yml").read_text())
LOCK = SOURCE / "requirements.lock"


@pytest.fixture(scope="session")
def python() -> Path:
    """A Python with what the application's lock file names, as a release has it; made once, in 10 s."""
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = REPOSITORY / ".cache/example-app" / digest
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", place], check=True)
            pip = [sys.executable, "-m", "pip", f"--python={place}/bin/python", "install", "--quiet"]
            subprocess.run([*pip, "--require-hashes", "--only-binary=:all:", f"--requirement={LOCK}"], check=True)
            (place / "complete").touch()
    return place / "bin/python"


class Shop:
    """The application on a Redis and a database of its own, started as the units start it."""

    def __init__(self, stack: Stack, directory: Path, python: Path) -> None:
        """Migrate its database."""
        self.stack, self.directory, self.python = stack, directory, python
        self.shared = {
            **stack.redis.environment(0, 1),
            **{name: stack.redis.url(1) for name in VARIABLES["app_redis_variables"]},
            **VARIABLES["app_settings"],
            **VARIABLES["app_secrets"]["all"],
            "DATABASE_URL": f"sqlite:///{directory}/shop.sqlite3",
            "UPLOAD_DIRECTORY": str(directory / "uploads"),
            "PRICE_SECONDS": "0.5",
            "PYTHONPATH": str(REPOSITORY / "packages/celery-durable/src"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        assert self.start("-m", "alembic", "upgrade", "head").process.wait(30) == 0
        assert (directory / "shop.sqlite3").exists()

    def start(self, *command: str, **env: str) -> Program:
        """Start one of its programs in its directory, with a process group of its own."""
        log = self.directory / f"program-{len(self.stack.workers)}.log"
        shell = ["setsid", "env", "--chdir", str(SOURCE), str(self.python), *command]
        program = Program(shell, log, {**self.shared, **env}, stderr=subprocess.STDOUT)
        self.stack.workers.append(program)
        return program

    def worker(self) -> Program:
        """Start a worker of all queues, which is ready."""
        queues = ",".join(VARIABLES["app_queues"])
        command = ["-A", VARIABLES["app_celery"], "worker", "-Q", queues, "-c", "2", "-n", "w@host", "-l", "info"]
        program = self.start("-m", "celery_durable", *command, RECEIPT_KEY="a key of workers")
        program.wait_for_output("ready.")
        return program

    def api(self) -> httpx.Client:
        """Start the API; return a client of it."""
        port = str(free_port())
        uvicorn = [str(self.python), "-m", "uvicorn", VARIABLES["app_asgi"], "--port", port]
        self.start("-m", "celery_durable", "exec", "--", *uvicorn).wait_for_output("Uvicorn running")
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)


@pytest.fixture
def shop(stack: Stack, tmp_path: Path, python: Path) -> Shop:
    """Somebody else's application."""
    return Shop(stack, tmp_path, python)


def order(api: httpx.Client, *articles: str) -> int:
    """Hand in an order and return its number."""
    answer = api.post("/orders", json={"articles": articles})
    assert answer.status_code == 201, answer.text
    number: int = answer.json()["id"]
    return number


def is_done(api: httpx.Client, number: int, total: int) -> bool:
    """Tell whether an order has ended well."""
    answer = api.get(f"/orders/{number}").json()
    assert answer["status"] != "failed"
    return bool(answer["status"] == "done" and answer["total"] == total)


@pytest.mark.integration
def test_orders_are_done_with_the_inventorys_variables(shop: Shop) -> None:
    """A chord with a task that is retried, routes, events by its own channel, and a base class that writes failures."""
    shop.worker()
    api = shop.api()
    assert api.get(VARIABLES["app_ready_path"]).json() == {"status": "ok", "env": "production"}
    assert api.get("/docs").status_code == 404

    number = order(api, "tea", "rare", "milk")
    with api.stream("GET", f"/orders/{number}/events") as events:
        seen = [line.removeprefix("data: ") for line in events.iter_lines() if line]
    assert seen[-1] == "done"
    assert is_done(api, number, 11)

    lost = order(api, "tea", "unknown")
    wait_until(lambda: api.get(f"/orders/{lost}").json()["status"] == "failed")
    assert api.post("/reports").status_code == 202
    wait_until((shop.directory / "uploads/report.txt").exists)
    assert (shop.directory / "uploads/report.txt").read_text() == "done 1\nfailed 1\n"
    assert not (SOURCE / "dev.sqlite3").exists()


@pytest.mark.integration
def test_no_order_is_lost_by_a_killed_worker(shop: Shop) -> None:
    api = shop.api()
    first = shop.worker()
    numbers = [order(api, "tea", "bread", "milk") for _ in range(4)]
    wait_until(lambda: api.get(f"/orders/{numbers[0]}").json()["status"] == "pricing")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait(10)
    assert not all(is_done(api, number, 12) for number in numbers)
    shop.worker()
    for number in numbers:
        wait_until(lambda number=number: is_done(api, number, 12), 60)  # type: ignore[misc]
    assert shop.stack.redis.client(0).llen("dead_letters") == 0


def test_the_inventory_says_what_the_application_has() -> None:
    assert all((SOURCE / path).exists() for path in VARIABLES["app_release_paths"])
    assert ".env" not in VARIABLES["app_release_paths"]
    module, _, name = VARIABLES["app_asgi"].partition(":")
    assert re.search(rf"^{name} = ", (SOURCE / f"{module.replace('.', '/')}.py").read_text(), re.MULTILINE)
    jobs = (SOURCE / f"{VARIABLES['app_celery'].replace('.', '/')}.py").read_text()
    assert re.findall(r"Queue\(\"(\w+)\"\)", jobs) == VARIABLES["app_queues"]
    assert f'task_default_queue="{VARIABLES["app_default_queue"]}"' in jobs
    pools = [queue for pool in VARIABLES["celery_worker_pools"] for queue in pool["queues"]]
    assert sorted(pools) == sorted(VARIABLES["app_queues"])


def test_ansible_finds_one_host_in_the_inventory() -> None:
    """A directory of sources beside hosts.yml would be read as lists of hosts."""
    command = ["ansible-inventory", "-i", str(INVENTORY), "--list", "--export"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert list(yaml.safe_load(listed.stdout)["_meta"]["hostvars"]) == ["app1"]
    assert "WARNING" not in listed.stderr


def test_the_application_knows_nothing_of_the_platform() -> None:
    source = "".join(file.read_text() for file in SOURCE.rglob("*") if file.is_file() and file.suffix != ".pyc")
    assert re.findall(r"(?i)celery.durable|typesafe|durable_|celery_loader|app\.agents|app\.main", source) == []


def test_its_lock_has_hashes_and_names_no_index() -> None:
    lines = [line.strip() for line in LOCK.read_text().splitlines()]
    assert [line for line in lines if not re.match(r"[\w.-]+==\S+ |--hash=sha256:[0-9a-f]{64}", line)] == []
