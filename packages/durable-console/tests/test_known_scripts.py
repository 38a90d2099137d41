"""The Lua that clients of Redis may run: which scripts a release knows, and what happens where Redis lacks them."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from celery.backends import redis as celery_backend
from kombu.transport import redis as kombu_redis
from redis.lock import Lock

from celery_durable import scripts
from durable_console.known_scripts import registered
from durable_console.known_scripts import scripts as found_in
from tests.support import REPOSITORY, Api, Program, RedisServer, load_plugin, start_worker, wait_until

# What a client of the platform may do with scripts, beside everything that it needs for its work.
RULES = ["+@all", "-@scripting", "+evalsha", "+script|exists"]
PASSWORD = "Test-only-" + "pass-0123456789"


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """Return the scripts of this release, as its interpreter prints them."""
    printed = subprocess.run(
        [sys.executable, "-m", "durable_console.known_scripts", "app"], capture_output=True, check=True, cwd=REPOSITORY
    )
    scripts: dict[str, str] = json.loads(printed.stdout)
    return scripts


def test_every_script_of_the_installed_packages_is_known(known: dict[str, str]) -> None:
    ours = [text for text in vars(scripts).values() if _is_lua(text)]
    celerys = [text for name, text in vars(celery_backend).items() if name.endswith("_LUA")]
    kombus = [vars(kombu_redis)[name] for name in ("REFRESH_BINDING", "SWEEP_BINDINGS")]
    locks = [text for name, text in vars(Lock).items() if name.startswith("LUA_")]
    assert len(ours) >= 12
    assert len(celerys) >= 3
    assert len(locks) == 3
    assert {*ours, *celerys, *kombus, *locks} <= set(known.values())
    assert all(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() == name for name, text in known.items())


def _is_lua(value: object) -> bool:
    return isinstance(value, str) and "redis.call" in value


def test_no_script_of_ours_goes_another_way() -> None:
    for file in (*REPOSITORY.glob("app/**/*.py"), *REPOSITORY.glob("packages/*/src/**/*.py")):
        assert not re.search(r"\.eval\(|\"EVAL\"|\.fcall\(", file.read_text()), file


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("client.register_script('return 1')", ["return 1"]),
        ("client.register_script(script='return 1')", ["return 1"]),
        ("TEXT = 'return 1'\ndef f(c):\n    return c.register_script(TEXT)", ["return 1"]),
        ("TEXT: str = 'return 1'\nX = register_script(TEXT)", ["return 1"]),
        ("class A:\n    T = 'return 1'\n    def f(self, c):\n        self.t = c.register_script(self.T)", ["return 1"]),
        ("client.register_script(read())", []),
        ("client.register_script()", []),
        ("other('return 1')", []),
    ],
)
def test_what_a_module_registers(source: str, texts: list[str]) -> None:
    assert list(registered(source)) == texts


def test_lua_files_of_the_application_are_known_and_those_of_packages_are_not(tmp_path: Path) -> None:
    for name in ("app/deep/own.lua", "packages/foreign.lua"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"return '{name}'")
    (tmp_path / "packages/template.py").write_text("{{ register_script }}'")
    (tmp_path / "packages/latin.py").write_bytes(b"register_script('\xe9')")
    assert list(found_in([*(tmp_path / "app").rglob("*.lua")], [], [tmp_path / "packages"]).values()) == [
        "return 'app/deep/own.lua'"
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Redis with a user that may run known scripts alone."""
    server = RedisServer(tmp_path / "redis")
    server.client(0).acl_setuser(
        "service", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], commands=RULES
    )
    yield server
    server.stop()


def as_service(server: RedisServer) -> dict[str, str]:
    """Return the variables that make our programs log in with a name."""
    urls = server.environment(0, 1)
    return {name: url.replace(f":{server.password}", f"service:{PASSWORD}") for name, url in urls.items()}


def denied(server: RedisServer) -> list[object]:
    """Return what the user was denied."""
    return [entry["object"] for entry in server.client(0).acl_log()]


@pytest.mark.integration
def test_known_scripts_are_all_that_a_service_needs(server: RedisServer, known: dict[str, str], tmp_path: Path) -> None:
    admin = server.client(0)
    for name, text in known.items():
        assert admin.script_load(text) == name
    worker = start_worker(tmp_path / "worker.log", as_service(server), app="faulty_worker")
    api = Api(tmp_path / "api.log", as_service(server))
    try:
        api.wait_for(api.enqueue({"key": "value"}, **{"Idempotency-Key": "one"}), "SUCCESS")
        code = "from faulty_worker import *; from celery import chord"
        code += "; print(chord([sleeping.s(0), sleeping.s(0)])(collect.s()).get(timeout=20))"
        sender = Program([sys.executable, "-c", code], tmp_path / "chord.log", as_service(server))
        assert sender.process.wait(30) == 0, worker.output()
        assert sender.output().strip() == "['done', 'done']"
        with redis_py.Redis.from_url(as_service(server)["CELERY_BROKER_URL"]).lock("app:lock", timeout=5) as lock:
            lock.extend(5)
        assert denied(server) == []
    finally:
        api.stop()
        worker.stop()


@pytest.mark.integration
def test_a_service_waits_for_scripts_and_never_loads_them(
    server: RedisServer, known: dict[str, str], tmp_path: Path
) -> None:
    """Redis was restarted, and its administrator loads them a moment later; or site.yml does."""
    admin = server.client(0)
    worker = Program(
        [sys.executable, "-m", "celery", "-A", "faulty_worker", "worker", "-c", "1", "-n", "test@%h"],
        tmp_path / "worker.log",
        as_service(server),
    )
    api = Api(tmp_path / "api.log", as_service(server))
    try:
        wait_until(lambda: scripts.MISSING in worker.output())
        response = api.client.post("/tasks/enqueue", json={"data": {"key": "value"}})
        assert response.status_code == 503, response.text
        assert scripts.MISSING in api.program.output()
        for text in known.values():
            admin.script_load(text)
        api.wait_for(api.enqueue({"key": "value"}), "SUCCESS", timeout=20)

        admin.script_flush()
        assert api.client.post("/tasks/enqueue", json={"data": {"key": "value"}}).status_code == 503
        for text in known.values():
            admin.script_load(text)
        api.wait_for(api.enqueue({"key": "value"}), "SUCCESS", timeout=20)
        assert worker.process.poll() is None, worker.output()
        assert denied(server) == []
    finally:
        api.stop()
        worker.stop()


@pytest.mark.integration
def test_without_a_name_clients_load_what_is_missing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    worker = start_worker(tmp_path / "worker.log", server.environment(0, 1))
    api = Api(tmp_path / "api.log", server.environment(0, 1))
    try:
        for _ in range(2):
            server.client(0).script_flush()
            api.wait_for(api.enqueue({"key": "value"}), "SUCCESS", timeout=20)
    finally:
        api.stop()
        worker.stop()
        server.stop()


def test_a_missing_script_is_said_in_one_sentence() -> None:
    assert scripts.MISSING.count(".") == scripts.MISSING.count("site.yml") + 1
    assert len(scripts.MISSING.split()) <= 25


@pytest.mark.integration
def test_loaded_scripts_survive_becoming_a_replica_and_a_primary(tmp_path: Path) -> None:
    primary = RedisServer(tmp_path / "primary")
    replica = RedisServer(tmp_path / "replica", password=primary.password, masterauth=primary.password)
    try:
        name = replica.client(0).script_load("return 1")
        replica.client(0).replicaof("127.0.0.1", primary.port)
        wait_until(lambda: replica.client(0).info("replication").get("master_link_status") == "up")
        assert replica.client(0).script_exists(name) == [True]
        other = replica.client(0).script_load("return 2")  # as after its restart, while it is one
        replica.client(0).replicaof("NO", "ONE")
        assert replica.client(0).script_exists(name, other) == [True, True]
    finally:
        replica.stop()
        primary.stop()


@pytest.mark.integration
def test_a_host_gives_redis_its_scripts_after_each_start(known: dict[str, str], tmp_path: Path) -> None:
    """The program of the role redis that systemd starts, with other places and without its change of user."""
    text = (REPOSITORY / "roles/redis/files/redis-load-scripts").read_text()
    places = {
        '"$(id -u)" = 0': '"$(id -u)" = nobody',
        "/etc/redis/redis$suffix.conf": f"{tmp_path}/redis/redis.conf",
        "/run/redis$suffix/redis-server.sock": f"{tmp_path}/socket",
        "/usr/local/share/redis-scripts": f"{tmp_path}/scripts",
    }
    for place, other in places.items():
        assert place in text
        text = text.replace(place, other)

    def loader() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-s", "broker"], input=text, capture_output=True, text=True, check=False)

    values = load_plugin("roles/redis/filter_plugins/redis_values.py")
    files = values.redis_script_files(list(known.values()), str(tmp_path / "scripts"))
    assert [Path(file["path"]).stem for file in files] == sorted(known)
    server = RedisServer(tmp_path / "redis", unixsocket=f"{tmp_path}/socket")
    try:
        assert (loader().returncode, loader().stdout) == (0, "")  # nothing to load
        (tmp_path / "scripts").mkdir()
        for file in files:
            Path(file["path"]).write_text(file["content"])
        assert loader().stdout.startswith(f"{len(known)} scripts, ")
        assert all(server.client(0).script_exists(*known))
        assert loader().stdout == ""
        server.stop()
        server.start()
        assert loader().stdout.startswith(f"{len(known)} scripts, ")

        broken = tmp_path / "scripts" / f"{'0' * 40}.lua"
        broken.write_text("this is no Lua")
        tried = loader()
        assert tried.returncode == 1
        assert f"Redis does not take {broken}: ERR Error compiling script" in tried.stderr
        assert server.password not in tried.stderr
    finally:
        server.stop()
    assert "Could not connect" in loader().stderr


@pytest.mark.integration
def test_a_keeper_gives_redis_its_scripts_again_after_a_restart(known: dict[str, str], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", user=f"loader on >{PASSWORD} +ping +select +script|load +script|exists")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, url in server.environment(0, 1).items():
        (secrets / name).write_text(url.replace(f":{server.password}", f"loader:{PASSWORD}") + "\n")
    env = {"SECRETS_DIRECTORY": str(secrets), "WORKER_HEARTBEAT_FILE": str(tmp_path / "heartbeat")}
    keeper = Program(
        [sys.executable, "-m", "durable_console.script_keeper"], tmp_path / "log", env, stderr=subprocess.STDOUT
    )

    def all_are_there() -> bool:
        return all(server.client(0).script_exists(*known))

    try:
        wait_until(all_are_there, timeout=30)
        server.stop()
        wait_until(lambda: "gets no scripts" in keeper.output())
        server.start()
        wait_until(all_are_there)
        assert (tmp_path / "heartbeat").exists()
        assert PASSWORD not in keeper.output()
    finally:
        keeper.stop()
        server.stop()


# Every way to bring or remove Lua; EVALSHA alone runs what others have loaded.
LUA_OF_ONES_OWN = [
    *(["EVAL", "return 1", "1"], ["EVAL_RO", "return 1", "1"], ["FCALL", "own", "1"], ["FCALL_RO", "own", "1"]),
    *(["SCRIPT", "LOAD", "return 1"], ["SCRIPT", "FLUSH"], ["SCRIPT", "DEBUG", "YES"]),
    *(["FUNCTION", "LOAD", "#!lua name=own"], ["FUNCTION", "RESTORE", "x"], ["FUNCTION", "DELETE", "own"]),
    *(["FUNCTION", "FLUSH"], ["MODULE", "LOAD", "/srv/x.so"], ["DEBUG", "SLEEP", "9"]),
]


@pytest.mark.attack("rules of Redis: evalsha of loaded scripts alone")
@pytest.mark.integration
@pytest.mark.parametrize("name", ["typesafe-secrets-redis", "typesafe-secrets-redis-broker"])
def test_no_user_of_the_platform_runs_lua_of_its_own(name: str, tmp_path: Path) -> None:
    """The users as the roles render them, with each key that their rules name."""
    config = (REPOSITORY / "deploy/kubernetes/secret-files" / name / "redis.conf").read_text()
    server = RedisServer(tmp_path / "redis")
    try:
        admin: Any = server.client(0)
        for line in config.splitlines():
            if not line.startswith("user "):
                continue
            _, user, *rules = line.split()
            user = user.replace("default", "administrator")
            admin.execute_command("ACL", "SETUSER", user, *_joined(rules))
            keys = {"", *re.findall(r"~([^\s)]+)", line)}
            for words in LUA_OF_ONES_OWN:
                if user in ("administrator", "loader") and words[:2] == ["SCRIPT", "LOAD"]:
                    continue  # they give Redis the scripts, and may not run one
                for key in keys if words[-1] == "1" else [""]:
                    answer = admin.execute_command(
                        "ACL", "DRYRUN", user, *words, *([key.replace("*", "1")] if key else [])
                    )
                    assert answer != "OK", (user, words, key)
            may_kill = user in ("administrator", "operator")
            for words in (["SCRIPT", "KILL"], ["FUNCTION", "KILL"]):
                assert (admin.execute_command("ACL", "DRYRUN", user, *words) == "OK") == may_kill, (user, words)
        assert admin.execute_command("ACL", "DRYRUN", "administrator", "EVALSHA", "x", "0") != "OK"
    finally:
        server.stop()


def _joined(rules: list[str]) -> list[str]:
    """Return the rules with selectors as one word each."""
    words = re.findall(r"\([^)]*\)|\S+", " ".join(rules))
    return [word for word in words if word != "+client|setinfo"]  # Redis 7.0 does not know it
