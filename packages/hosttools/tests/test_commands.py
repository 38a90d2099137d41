"""The runbooks' scripts on the host: what they make of answers and sizes."""

import json
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import cast
from urllib.parse import urlsplit

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from hosttools import aof, disk_space, maintenance, process, redis_client, releases, systemd, unexpected_clients
from hosttools import redis_connection as connection
from hosttools import redis_memory as memory
from hosttools.process import Result
from tests.support import REPOSITORY


@pytest.fixture
def answering() -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives one connection the answers of a list, one for each command."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                for answer in answers:
                    peer.recv(4096)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], answers


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([b"+OK\r\n", b"+PONG\r\n"], ""),
        ([b"-WRONGPASS invalid\r\n"], "auth"),
        ([b"-ERR max number of clients reached\r\n"], "maxclients"),
        ([b"+OK\r\n", b"-LOADING Redis is loading\r\n"], "loading"),
        ([b""], "ping"),
    ],
)
def test_the_first_broken_hop_is_named(answering: tuple[int, list[bytes]], answers: list[bytes], cause: str) -> None:
    port, given = answering
    given += answers
    assert connection.hops(urlsplit(f"redis://worker:x@127.0.0.1:{port}/0"))[0] == cause


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert connection.hops(urlsplit(f"redis://worker:x@127.0.0.1:{port}/0"))[0] == "refused"


def test_a_name_without_an_address() -> None:
    assert connection.hops(urlsplit("redis://worker:x@nowhere.invalid:6380/0"))[0] == "resolve"


@pytest.mark.parametrize("text", ["lots", "512", "900000gb"])
def test_a_size_that_cannot_be_is_rejected(text: str) -> None:
    with pytest.raises(SystemExit, match="maxmemory is"):
        memory.size(text)


def test_a_size_is_understood() -> None:
    assert memory.size("64mb") == 64 * 1024**2


def test_failed_logins_are_known_by_their_lines() -> None:
    api = r'{"message": "127.0.0.1:1 - \"GET /metrics HTTP/1.1\" 401", "line": 401}'
    flower = '{"message": "401 GET /flower (127.0.0.1) 1ms"}'
    served = r'{"message": "127.0.0.1:1 - \"GET /metrics HTTP/1.1\" 200", "line": 401}'
    assert len(unexpected_clients.LOGIN.findall("\n".join([api, flower, served]))) == 2


@pytest.mark.parametrize(
    ("sources", "action"),
    [({"a": "1", "b": "1"}, "finish"), ({"a": "2", "b": "1"}, "rollback"), ({"a": "1"}, "rollback")],
)
def test_a_release_that_starts_elsewhere_is_installed_again(sources: dict[str, str], action: str) -> None:
    """Only ``a`` cannot start it; alone on the release before, it would be half of a deployment."""
    causes = [{"cause": "source", "what": what, "subject": name, "previous": "r"} for name, what in sources.items()]
    causes.append({"cause": "broken", "what": "a: no venv", "subject": "a"})
    loader = DataLoader()
    play = loader.load_from_file(str(REPOSITORY / "playbooks/runbooks/failed_deploy.yml"), trusted_as_template=True)[0]
    templar = Templar(loader=loader, variables={**play["vars"], "runbook_causes": causes})
    assert templar.template(play["vars"]["runbook_action"]) == action


def below(root: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script see ``root`` as the host's root directory."""
    monkeypatch.setattr(module, "Path", lambda path: root / str(path).lstrip("/"))


@pytest.mark.parametrize("content", ["", "redis://", "redis://worker:x@host:none/0"])
def test_a_secret_that_is_no_url_is_supplied_again(content: str, tmp_path: Path) -> None:
    """A name that has no address would be repaired by hand."""
    for file in connection.URLS:
        (tmp_path / file).write_text(content)
    assert {cause.cause for cause in connection.service("h", "worker", tmp_path)} == {"auth"}


def test_the_primary_is_asked_of_the_sentinels(answering: tuple[int, list[bytes]], tmp_path: Path) -> None:
    port, given = answering
    given += [b"+OK\r\n", b"*2\r\n$8\r\n10.0.0.2\r\n$4\r\n6380\r\n"]
    secrets = tmp_path / "secrets/worker"
    secrets.mkdir(parents=True)
    (tmp_path / "backend.env").write_text("DURABLE_BROKER_PRIMARY='broker'\nDURABLE_RESULTS_PRIMARY='main'\n")
    (secrets / "SENTINEL_PASSWORD").write_text("password\n")
    # The first one is away.
    urls = [f"sentinel://worker:x@127.0.0.1:{number}/0" for number in (1, port)]
    (secrets / "CELERY_BROKER_URL").write_text(";".join(urls))
    assert redis_client.through_sentinels(secrets / "CELERY_BROKER_URL") == "redis://worker:x@10.0.0.2:6380/0"


def test_sentinels_that_are_all_away_are_the_cause(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets/worker"
    secrets.mkdir(parents=True)
    (tmp_path / "backend.env").write_text("DURABLE_BROKER_PRIMARY='broker'\nDURABLE_RESULTS_PRIMARY='main'\n")
    for file in connection.URLS:
        (secrets / file).write_text("sentinel://worker:x@127.0.0.1:1/0")
    assert [cause.cause for cause in connection.service("h", "worker", secrets)] == ["sentinels"]


def test_what_keeps_a_redis_from_starting_is_read_in_its_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "etc/redis").mkdir(parents=True)
    (tmp_path / "etc/redis/redis-broker.conf").write_text("")
    line = "Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup of your AOF file"
    said = {"systemctl": "failed", "journalctl": f"9:M 27 Nov 2026 07:00:00.000 # {line}\nMain process exited\n"}
    below(tmp_path, redis_client, monkeypatch)
    monkeypatch.setattr(process, "run", lambda *command, **_: Result(0, said.get(command[0], "")))
    (cause,) = connection.instance("h", "broker", "6380")
    assert cause.cause == "data"
    assert line in cause.what


def test_an_authority_that_is_missing_is_supplied_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rediss://worker:x@127.0.0.1:{server.getsockname()[1]}/0?ssl_ca_certs=/nowhere/ca.crt"
        assert connection.hops(urlsplit(url))[0] == "tls"


def test_only_the_brokers_host_judges_the_brokers_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker's host may be smaller."""
    monkeypatch.setattr(sys, "argv", ["redis_memory", "--host=w", "--maxmemory=900000gb"])
    memory.main()
    assert json.loads(capsys.readouterr().out) == []


class FakeRedis:
    """An instance that notes what it is told."""

    wanted_policy = "allkeys-lru"

    def __init__(self, name: str, *, broker: bool) -> None:
        """Have thrown keys away."""
        self.name, self.is_broker, self.told = name, broker, list[tuple[str, ...]]()

    def info(self) -> dict[str, str]:
        """Return as much as is asked for."""
        return {"maxmemory_policy": "allkeys-lru", "evicted_keys": "7"}

    def databases(self) -> list[str]:
        """Hold nothing."""
        return []

    def call(self, *words: str) -> list[str]:
        """Take a note."""
        self.told.append(words)
        return []


def test_what_says_that_results_were_evicted_is_kept() -> None:
    """result_not_found.yml reads it: without it an evicted result counts as never accepted."""
    for name, broker in (("main", False), ("broker", True)):
        redis = FakeRedis(name, broker=broker)
        list(memory.repair(cast("memory.Server", redis), 0, "3600"))
        assert (("CONFIG", "RESETSTAT") in redis.told) is broker


def test_one_redis_for_all_gets_the_brokers_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "Server", FakeRedis)
    monkeypatch.setattr(sys, "argv", ["redis_memory", "--host=h", "--redis=main", "--maxmemory=64mb", "--repair"])
    memory.main()
    assert "the limit is 64 MB" in capsys.readouterr().out


def test_a_redis_that_hangs_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(redis_client, "local", lambda *_: redis_client.Redis(silent()))
    below(tmp_path, redis_client, monkeypatch)
    (tmp_path / "etc/redis").mkdir(parents=True)
    (tmp_path / "etc/redis/redis.conf").write_text("requirepass x\n")
    for ask in (
        lambda: memory.Server("main", broker=True),
        lambda: list(unexpected_clients.redis("h", "main", set())),
        lambda: aof.client("main", "INFO"),
    ):
        with pytest.raises(SystemExit, match=r"Redis main does not answer.*: timed out"):
            ask()


def silent() -> socket.socket:
    """Return a connection on which nobody answers."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.1)
    threading.Timer(5, theirs.close).start()
    return ours


def test_data_that_is_away_or_nobodys_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(redis_client, "DATA", tmp_path)
    monkeypatch.setattr(systemd, "active", lambda *_: "active")
    monkeypatch.setattr(aof, "client", lambda *_: "")
    (gone,) = aof.look("h", "broker")
    assert (gone.cause, gone.what) == ("lost", f"h: {tmp_path}/broker is not there")

    def nobody(_: int) -> pwd.struct_passwd:
        raise KeyError("getpwuid(): uid not found: 4711")

    (tmp_path / "broker").mkdir()
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (foreign,) = aof.look("h", "broker")
    assert foreign.cause == "rights"
    assert "belongs to the user number" in foreign.what


def test_what_is_removed_is_a_rotated_log_and_never_a_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below(tmp_path, disk_space, monkeypatch)
    log = tmp_path / "var/log"
    (log / "postgresql-9.6").mkdir(parents=True)
    for name in ("syslog", "syslog.1", "dpkg.log.2.gz"):
        (log / name).touch()
    assert {path.name for path in disk_space.removable("typesafe", 3)} == {"syslog.1", "dpkg.log.2.gz"}


def test_the_live_release_stays_where_opt_is_a_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    below(tmp_path, disk_space, monkeypatch)
    (tmp_path / "opt").symlink_to(tmp_path / "srv")
    for number, name in enumerate(("live", "b", "c", "d")):
        release = tmp_path / "srv/typesafe/releases" / name
        release.mkdir(parents=True)
        subprocess.run(["touch", f"--date=@{1000 + number}", str(release)], check=True)
    (tmp_path / "srv/typesafe/backend").symlink_to(tmp_path / "srv/typesafe/releases/live")
    assert [path.name for path in disk_space.removable("typesafe", 3)] == ["b"]


def test_settings_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    below(tmp_path, releases, monkeypatch)
    monkeypatch.setattr(process, "run", lambda *_, **__: Result())
    (tmp_path / "opt/typesafe/backend").mkdir(parents=True)
    causes = list(releases.look("h", "typesafe", ["typesafe-api"], []))
    assert "h: /etc/typesafe/backend.env is missing" in [cause.what for cause in causes]
    assert "typesafe-api is " in causes[-1].what


def test_a_log_line_that_was_cut_in_two_is_counted_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    below(tmp_path, maintenance, monkeypatch)
    cut = '00:00", "level": "ERROR", "message": "x"}\n'
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(0, cut * maintenance.RECURRING))
    ((good, what),) = maintenance.errors("typesafe")
    assert not good
    assert f"{maintenance.RECURRING} times" in what


def test_a_file_system_in_memory_fills_up_too(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    table = tmp_path / "mounts"
    table.write_text(
        f"overlay / overlay rw 0 0\ndrill /usr tmpfs rw 0 0\n/dev/sdb /opt ext4 rw 0 0\nproc /proc proc rw 0 0\n"
        f"tmpfs /run tmpfs rw 0 0\ntmpfs {kept} tmpfs rw 0 0\n/dev/sda /etc/hosts ext4 rw 0 0\n"
        f"/dev/sr0 /usr/bin iso9660 ro 0 0\n"
    )
    assert disk_space.mounts(table) == ["/", "/opt", "/usr"]
