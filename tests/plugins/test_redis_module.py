"""The redis role's own Python: the module redis_live_config against a real server, and the filters for preflight."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme
import yaml

from celery_durable.testing import free_port
from tests.support import REPOSITORY

ROLE = REPOSITORY / "roles/redis"
PASSWORD = "Test-only-" + "pass-0123456789"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


live = load(ROLE / "library" / "redis_live_config.py")
values = load(ROLE / "filter_plugins" / "redis_values.py")


@dataclass
class Server:
    """A redis-server that the test runs."""

    directory: Path
    password: str = PASSWORD
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def config_file(self) -> Path:
        return self.directory / "redis.conf"

    def configure(self, **changes: str) -> None:
        """Write redis.conf with the test's options on top of the common ones."""
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        options = {
            "port": "0",
            "unixsocket": str(self.directory / "s"),
            "dir": str(self.directory),
            "requirepass": self.password,
            "user": f"default on #{digest} ~* &* +@all -flushall -debug",
            "save": '""',
            "maxmemory": "64mb",
            "maxmemory-policy": "allkeys-lru",
            "databases": "16",
            "appendonly": "no",
        }
        options |= {name.replace("_", "-"): value for name, value in changes.items()}
        self.config_file.write_text("# a comment\n\n" + "".join(f"{name} {value}\n" for name, value in options.items()))

    def start(self) -> None:
        log = (self.directory / "log").open("wb")
        self.process = subprocess.Popen(
            ["redis-server", str(self.config_file)], stdout=log, stderr=log, cwd=self.directory
        )
        log.close()
        deadline = time.monotonic() + 10
        while b"eady to accept connections" not in (self.directory / "log").read_bytes():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    def call(self, *words: str) -> Any:
        redis = live.Redis(str(self.directory / "s"), 5)
        redis.call("AUTH", self.password)
        return redis.call(*words)

    def setting(self, name: str) -> str:
        value: str = self.call("CONFIG", "GET", name)[1]
        return value


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A Unix socket's path may have 107 characters at most: keep the directory's name short.
    server = Server(tmp_path_factory.mktemp("r"))
    server.configure()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run(server: Server) -> Callable[..., dict[str, Any]]:
    def run(check_mode: bool = False, **parameters: object) -> dict[str, Any]:
        """The module as Ansible runs it: a process of its own, with the arguments on standard input."""
        arguments = {"config_file": str(server.config_file), "timeout": 10, "_ansible_check_mode": check_mode}
        arguments |= parameters
        result = subprocess.run(
            [sys.executable, str(ROLE / "library" / "redis_live_config.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert PASSWORD not in result.stdout + result.stderr
        assert result.stdout, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        answer.pop("invocation", None)
        return answer

    return run


Run = Callable[..., dict[str, Any]]
UNCHANGED = {"changed": False, "applied": [], "restart_required": False, "reasons": [], "denied": [], "unnamed": []}


def test_a_server_that_runs_its_file_is_left_alone(run: Run) -> None:
    assert run() == UNCHANGED


def test_what_can_be_set_live_is_set_live(server: Server, run: Run) -> None:
    run_id = server.call("INFO", "server")
    server.configure(maxmemory="32mb", maxmemory_policy="noeviction", save="900 1\nsave 300 10")
    result = run()
    assert result["applied"] == ["save", "maxmemory", "maxmemory-policy"]
    assert not result["restart_required"]
    assert server.setting("maxmemory") == str(32 * 1024 * 1024)
    assert server.setting("maxmemory-policy") == "noeviction"
    assert server.setting("save") == "900 1 300 10"
    assert server.call("INFO", "server").split("run_id:")[1][:40] == run_id.split("run_id:")[1][:40]
    assert run() == UNCHANGED


def test_check_mode_only_tells(server: Server, run: Run) -> None:
    server.configure(maxmemory="32mb")
    assert run(check_mode=True)["applied"] == ["maxmemory"]
    assert server.setting("maxmemory") == str(64 * 1024 * 1024)


def test_a_change_by_hand_is_put_back(server: Server, run: Run) -> None:
    server.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    server.call("ACL", "SETUSER", "default", "+flushall")
    assert run()["applied"] == ["maxmemory-policy", "user default"]
    assert server.setting("maxmemory-policy") == "allkeys-lru"
    with pytest.raises(live.RedisError, match="no permissions"):
        server.call("FLUSHALL")


def test_users_are_made_changed_and_removed_while_the_server_runs(server: Server, run: Run) -> None:
    text = server.config_file.read_text()
    reader = f"user reader on #{'0' * 64} %R~news:* (~own:* +set) +get +hget -hget\n"
    server.config_file.write_text(text + reader)
    assert run(check_mode=True)["applied"] == ["user reader"]
    assert server.call("ACL", "GETUSER", "reader") is None
    assert run()["applied"] == ["user reader"]
    assert run() == UNCHANGED
    server.stop()
    server.start()
    assert run() == UNCHANGED
    assert server.call("ACL", "DRYRUN", "reader", "GET", "news:1") == "OK"
    assert server.call("ACL", "DRYRUN", "reader", "SET", "own:1", "x") == "OK"
    assert "no permissions" in server.call("ACL", "DRYRUN", "reader", "SET", "news:1", "x")
    server.config_file.write_text(text + reader.replace("+get", "-get"))
    assert run()["applied"] == ["user reader"]
    server.config_file.write_text(text)
    assert run()["applied"] == ["user reader"]
    assert server.call("ACL", "USERS") == ["default"]


def test_rights_grow_first_and_shrink_in_the_end(server: Server, run: Run) -> None:
    text = server.config_file.read_text()
    old = f"user worker on #{'0' * 64} ~old &old +ping +get (~set:* +sadd) (%R~read +llen)\nuser gone on nopass +ping\n"
    new = f"user worker on #{'1' * 64} ~new -@all +ping +llen (~set:* +sadd)\n"
    server.config_file.write_text(text + old)
    run()

    def may(*command: str) -> bool:
        return bool(server.call("ACL", "DRYRUN", "worker", *command) == "OK")

    server.config_file.write_text(text + new)
    assert run(keep_rights=True)["applied"] == ["user worker"]
    assert may("GET", "old")
    assert may("PUBLISH", "old", "x") is False, "a right that nobody had"
    assert may("LLEN", "read")
    assert may("LLEN", "new")
    assert not may("GET", "new"), "rights of two rules are mixed"
    assert not may("LLEN", "old")
    assert "gone" in server.call("ACL", "USERS")
    # A run that was broken off begins again.
    assert run(keep_rights=True) == UNCHANGED
    assert run(check_mode=True)["applied"] == ["user worker", "user gone"]
    assert run()["applied"] == ["user worker", "user gone"]
    assert not may("GET", "old")
    assert not may("LLEN", "read")
    assert may("SADD", "set:1", "x")
    assert "gone" not in server.call("ACL", "USERS")
    assert run(keep_rights=True) == UNCHANGED
    assert run() == UNCHANGED


def test_rights_stay_while_a_queue_without_a_name_holds_tasks(server: Server, run: Run) -> None:
    text = server.config_file.read_text()
    task = json.dumps({"body": "", "headers": {"task": "x", "id": "1"}, "properties": {"delivery_info": {}}})
    server.call("LPUSH", "celery", task)
    server.call("LPUSH", "1.reply.celery.pidbox", json.dumps({"headers": {}, "properties": {}}))
    # Somebody else's lists, and what is in ours that is no queue.
    server.call("LPUSH", "jobs", "1", "[]")
    server.call("LPUSH", "dead_letters", json.dumps({"id": "1", "queue": "gone", "message": "e30="}))
    server.config_file.write_text(f"{text}user worker on nopass ~gone +llen\n")
    assert run(queues=["celery"])["applied"] == ["user worker"]
    server.config_file.write_text(f"{text}user worker on nopass ~celery +llen\n")
    for key in ("gone", "unacked:default@host:gone", "deferred:gone"):
        server.call("LPUSH", key, task, task)
        told = run(queues=["celery"])
        assert told["unnamed"][0].startswith("The queue 'gone' holds 2 tasks, but no pool")
        assert server.call("ACL", "DRYRUN", "worker", "LLEN", "gone") == "OK"
        server.call("DEL", key)
    assert run(queues=["celery"])["applied"] == ["user worker"]
    assert server.call("ACL", "DRYRUN", "worker", "LLEN", "gone") != "OK"
    assert run(queues=["celery"]) == UNCHANGED


def test_a_new_password_needs_no_restart_while_the_previous_one_is_known(server: Server, run: Run) -> None:
    client = live.Redis(str(server.directory / "s"), 5)
    client.call("AUTH", PASSWORD)
    server.password = PASSWORD[::-1]
    server.configure()
    old, new = (f"#{hashlib.sha256(word.encode()).hexdigest()}" for word in (PASSWORD, server.password))
    server.config_file.write_text(server.config_file.read_text().replace(new, f"{new} {old}"))
    result = run(previous_passwords=[PASSWORD])
    assert result["applied"] == ["requirepass", "user default"]
    assert not result["restart_required"]
    assert client.call("PING") == "PONG"
    for password in (PASSWORD, server.password):
        assert live.Redis(str(server.directory / "s"), 5).call("AUTH", password) == "OK"
    server.configure()
    assert run()["applied"] == ["user default"]
    with pytest.raises(live.RedisError, match="WRONGPASS"):
        live.Redis(str(server.directory / "s"), 5).call("AUTH", PASSWORD)


def test_old_connections_are_ended_on_request(server: Server, run: Run) -> None:
    client = live.Redis(str(server.directory / "s"), 5)
    client.call("AUTH", PASSWORD)
    assert run(disconnect_older_than=60) == UNCHANGED
    assert client.call("PING") == "PONG"
    # -1: the module's own connection is old enough, too, as it is at 0 when a second begins between its two commands.
    ended = run(disconnect_older_than=-1)["applied"]
    assert [line.partition(" from ")[0] for line in ended] == ["connection of default"]
    with pytest.raises(OSError, match=r"closed|pipe"):
        client.call("PING")


def test_what_users_were_denied_is_reported(server: Server, run: Run) -> None:
    with pytest.raises(live.RedisError, match="no permissions"):
        server.call("FLUSHALL")
    with pytest.raises(live.RedisError, match="WRONGPASS"):
        live.Redis(str(server.directory / "s"), 5).call("AUTH", "guess")
    assert run()["denied"] == ["default was denied the command flushall 1 times."]
    assert run(denied_within=0)["denied"] == []


def test_a_denial_after_rights_have_changed_counts_and_one_from_before_does_not(server: Server, run: Run) -> None:
    """The module waits for it, and that wait is no reason to look further back."""
    with pytest.raises(live.RedisError, match="no permissions"):
        server.call("FLUSHALL")
    with server.config_file.open("a") as file:
        file.write("user reader on nopass +ping\n")
    threading.Timer(1, as_reader, [server]).start()
    assert run(denied_within=0, settle=2)["denied"] == ["reader was denied the command get 1 times."]


def as_reader(server: Server) -> None:
    """Do what the user reader may not."""
    redis = live.Redis(str(server.directory / "s"), 5)
    redis.call("AUTH", "reader", "any")
    with pytest.raises(live.RedisError, match="no permissions"):
        redis.call("GET", "x")


def test_an_option_for_the_start_asks_for_a_restart(server: Server, run: Run) -> None:
    server.configure(databases="32", maxmemory="32mb")
    result = run()
    assert result["restart_required"]
    assert result["reasons"] == ["The option databases can only be set at the start."]
    assert result["applied"] == ["maxmemory"]
    server.stop()
    server.start()
    assert run() == UNCHANGED


@pytest.mark.parametrize("to_tls", [True, False])
def test_a_port_changes_between_plain_and_tls_by_a_restart(server: Server, run: Run, to_tls: bool) -> None:
    certificate = server.directory / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    port = str(free_port())
    plain = {"port": port, "tls_port": "0"}
    tls = {"port": "0", "tls_port": port, "tls_cert_file": str(certificate), "tls_key_file": str(certificate)}
    tls["tls_auth_clients"] = "no"
    first, second = (plain, tls) if to_tls else (tls, plain)
    server.stop()
    server.configure(**first)
    server.start()
    assert run() == UNCHANGED
    server.configure(**second)
    result = run()
    assert result["restart_required"]
    assert {"The option port is set at the start.", "The option tls-port is set at the start."} <= {*result["reasons"]}
    assert not result["changed"]
    server.stop()
    server.start()
    assert run() == UNCHANGED


def test_a_new_password_asks_for_a_restart(server: Server, run: Run) -> None:
    server.password = PASSWORD[::-1]
    server.configure()
    result = run()
    assert result["restart_required"]
    assert not result["changed"]
    assert "password" in result["reasons"][0]


def test_a_server_without_a_password_asks_for_a_restart(server: Server, run: Run) -> None:
    server.stop()
    secured = server.config_file.read_text()
    server.config_file.write_text(
        "".join(f"{line}\n" for line in secured.splitlines() if PASSWORD not in line and "user" not in line)
    )
    server.start()
    server.config_file.write_text(secured)
    assert run()["restart_required"]


def test_no_server_asks_for_a_restart(server: Server, run: Run) -> None:
    server.stop()
    result = run()
    assert result["restart_required"]
    assert not result["changed"]


def test_appendonly_switched_on_live_keeps_the_data_over_a_kill(server: Server, run: Run) -> None:
    for number in range(1000):
        server.call("SET", f"key:{number}", "value")
    server.configure(appendonly="yes")
    assert run()["applied"] == ["appendonly"]
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    (server.directory / "s").unlink()
    server.start()
    assert server.call("DBSIZE") == 1000
    assert run() == UNCHANGED


def test_a_value_that_redis_rejects_fails_and_names_the_option(server: Server, run: Run) -> None:
    server.configure(maxmemory_policy="allkeys-newest")
    result = run()
    assert result["failed"]
    assert "maxmemory-policy" in result["msg"]
    assert server.setting("maxmemory-policy") == "allkeys-lru"


def test_an_unknown_option_is_not_passed_over(server: Server, run: Run) -> None:
    server.configure(no_such_option="1")
    assert run()["reasons"] == ["The running server does not know the option no-such-option."]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        ("1048576", 1048576),
        ("1k", 1000),
        ("1KB", 1024),
        ("512mb", 512 * 1024**2),
        ("2gb", 2 * 1024**3),
        ("25%", 1000),
    ],
)
def test_memory_sizes(value: object, expected: int) -> None:
    assert values.redis_bytes(value, 4000) == expected


# Preflight: what a role's defaults and a good password make, and what is wrong with it after one change.

HOST_MEMORY = 4096 * 1024**2
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
DEFAULTS = {name.removeprefix("redis_"): value for name, value in DEFAULTS.items()} | {"password": PASSWORD}


def errors(instances: list[dict[str, Any]], **changes: object) -> list[str]:
    found: list[str] = values.redis_errors(instances, DEFAULTS | changes, HOST_MEMORY)
    return found


def test_defaults_are_accepted() -> None:
    assert errors(DEFAULTS["instances"]) == []


CERTIFICATE, KEY = trustme.CA().cert_pem.bytes().decode(), "-----BEGIN EC PRIVATE KEY-----\nx"


@pytest.mark.parametrize("given", [("", "", ""), ("", "", CERTIFICATE), (CERTIFICATE, KEY, CERTIFICATE)])
def test_certificates_are_accepted(given: tuple[str, str, str]) -> None:
    assert values.redis_tls_errors(*given) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((CERTIFICATE, "", CERTIFICATE), "redis_tls_key must be given too"),
        (("", KEY, ""), "redis_tls_certificate and redis_tls_ca must be given too"),
        ((CERTIFICATE, "/etc/key.pem", CERTIFICATE), "redis_tls_key must be PEM"),
        ((KEY, KEY, CERTIFICATE), "redis_tls_certificate must be PEM"),
    ],
)
def test_certificates_are_rejected(given: tuple[str, str, str], words: str) -> None:
    (found,) = values.redis_tls_errors(*given)
    assert found.startswith(words)
    assert "/etc/key.pem" not in found


def test_two_instances_are_accepted() -> None:
    broker = {"name": "broker", "port": 6380, "maxmemory_policy": "noeviction", "save": [], "bind": ["*"]}
    assert errors([{"name": "main"}, broker]) == []


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short-Pass1",
        "abcabcabcabcabcabcabc",
        "your_strong_password_here",
        "has space in it 1234",
        "has'quote0123456789",
        'has"quote0123456789',
        "has\\backslash0123456",
        "not-ascii-\u00fc-0123456789",
        "newline-0123456789ab\n",
    ],
)
def test_a_weak_password_is_rejected_and_not_shown(password: str) -> None:
    found = errors([{"name": "main"}], password=password)
    assert len(found) == 1
    assert found[0].startswith("redis_password of instance main is too weak")
    assert not password or password not in found[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"port": 0}, "redis_port of instance main is 0, and it must be from 1 to 65535."),
        ({"port": 65536}, "redis_port of instance main is 65536,"),
        ({"maxclients": 65001}, "redis_maxclients of instance main is 65001, and it must be from 64 to 65000."),
        ({"databases": 0}, "redis_databases of instance main is 0,"),
        ({"bind": []}, "redis_bind of instance main is [], and it must be a list of at least one address."),
        ({"bind": ["127.0.0.1 ::1"]}, "redis_bind of instance main is"),
        ({"maxmemory": "lots"}, 'redis_maxmemory of instance main is "lots", and it must be bytes'),
        ({"maxmemory": "1.5gb"}, 'redis_maxmemory of instance main is "1.5gb", and it must be bytes'),
        ({"maxmemory": "2tb"}, 'redis_maxmemory of instance main is "2tb", and it must be bytes'),
        ({"maxmemory": "-1"}, 'redis_maxmemory of instance main is "-1", and it must be bytes'),
        (
            {"maxmemory": 0},
            "redis_maxmemory of instance main is 0, and it must be from 1mb to the host's memory, 4096mb",
        ),
        ({"maxmemory": "500kb"}, 'redis_maxmemory of instance main is "500kb", and it must be from 1mb'),
        ({"maxmemory": "5gb"}, 'redis_maxmemory of instance main is "5gb", and it must be from 1mb'),
        ({"maxmemory": "101%"}, 'redis_maxmemory of instance main is "101%", and it must be from 1mb'),
        ({"save": ["900"]}, 'redis_save of instance main is ["900"], and it must be a list of "SECONDS CHANGES"'),
        ({"save": ["0 1"]}, 'redis_save of instance main is ["0 1"],'),
        ({"disabled_commands": ["FLUSHALL"]}, 'redis_disabled_commands of instance main is ["FLUSHALL"],'),
        ({"extra_settings": {"port": 1}}, 'redis_extra_settings of instance main is ["port"], and it must be without'),
    ],
)
def test_a_bad_value_is_rejected_in_one_sentence(change: dict[str, object], sentence: str) -> None:
    for found in (errors([{"name": "main"}], **change), errors([{"name": "main"} | change])):
        assert len(found) == 1
        assert found[0].startswith(sentence)


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ({"name": "default"}, "redis_users of instance main has the names default,"),
        ({"name": "Reader"}, "redis_users of instance main has the names Reader,"),
        ({"passwords": []}, "redis_users of instance main gives reader a password that is too weak"),
        ({"passwords": ["short"]}, "redis_users of instance main gives reader a password that is too weak"),
        ({"rules": ["+get\nuser x on"]}, "redis_users of instance main gives reader the rules"),
        ({"rules": ["nopass"]}, "redis_users of instance main gives reader the rules"),
        ({"rules": [">secret"]}, "redis_users of instance main gives reader the rules"),
    ],
)
def test_a_bad_user_is_rejected_in_one_sentence(user: dict[str, Any], sentence: str) -> None:
    good = {"name": "reader", "passwords": [PASSWORD], "rules": ["%R~news:*", "+get"]}
    assert errors([{"name": "main", "users": [good]}]) == []
    found = errors([{"name": "main", "users": [good | user]}])
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_rules_that_redis_is_too_old_for_are_left_out() -> None:
    rules = ["~*", "+client|setname", "+client|setinfo"]
    assert values.redis_rules(rules, "7.0.15") == "~* +client|setname"
    assert values.redis_rules(rules, "8.0.2") == "~* +client|setname +client|setinfo"


@pytest.mark.parametrize(
    ("instances", "sentence"),
    [
        ([], "redis_instances is empty,"),
        ([{"name": "main"}, {"name": "main", "port": 1}], "redis_instances has the names main, main,"),
        ([{"name": "Main"}], "redis_instances has the names Main,"),
        ([{"name": "a/b"}], "redis_instances has the names a/b,"),
        (
            [{"name": "main"}, {"name": "broker"}],
            "redis_instances has main on 6379, broker on 6379 (port, else redis_port),",
        ),
        (
            [{"name": "main", "maxmemory": "3gb"}, {"name": "broker", "port": 6380, "maxmemory": "2gb"}],
            "redis_instances may use 5120mb together",
        ),
    ],
)
def test_instances_that_do_not_fit_together_are_rejected(instances: list[dict[str, Any]], sentence: str) -> None:
    found = errors(instances)
    assert len(found) == 1
    assert found[0].startswith(sentence)
