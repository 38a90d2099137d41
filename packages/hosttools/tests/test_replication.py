"""What the doctor finds about how Redis servers and sentinels stand to one another."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult

import pytest

from hosttools import findings, redis_client, replication, systemd
from hosttools.doctor import rights
from hosttools.redis_client import Redis
from tests.support import REPOSITORY, load_plugin

filters = load_plugin("roles/stack/filter_plugins/stack_doctor.py")

OWN, SECOND, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
SENTINELS = [f"{address}:26379" for address in (OWN, SECOND, THIRD)]
GIVEN = replication.Installation(OWN, [OWN, SECOND, THIRD], SENTINELS, 1, 5, "")
ONLINE = "slave{}:ip={},port=6380,state=online,offset=1,lag={}\n"
BOTH = ONLINE.format(0, SECOND, 1) + ONLINE.format(1, THIRD, 0)


class World:
    """What the host's commands say."""

    def __init__(self) -> None:
        """All is well: this host has the primary."""
        self.replication = f"role:master\nconnected_slaves:2\n{BOTH}"
        self.named = dict.fromkeys((OWN, SECOND, THIRD), f"{OWN}\n6380")
        self.quorum = "OK 3 usable Sentinels. Quorum and failover authorization can be reached"
        self.log = ""
        self.known = {"sentinels": [f"{SECOND}:26379", f"{THIRD}:26379"], "replicas": [f"{SECOND}:6380"]}

    def journal(self, *_: str) -> str:
        """Return the log of Redis."""
        return self.log

    def there(self, sentinel: str, _: str, *words: str) -> list[str] | None:
        """Answer as one of the sentinels whom it takes for the primary."""
        assert words == ("GET-MASTER-ADDR-BY-NAME", "broker")
        return self.named[sentinel.partition(":")[0]].split() or None

    def here(self, verb: str, _: str) -> object:
        """Answer as this host's sentinel."""
        if verb == "CKQUORUM":
            return self.quorum
        return [
            ["name", peer, "ip", peer.partition(":")[0], "port", peer.partition(":")[2], "flags", "s"]
            for peer in self.known[verb.lower()]
        ]

    def info(self, _: str) -> dict[str, str]:
        """Return how this host's server is replicated."""
        return dict(line.split(":", 1) for line in self.replication.splitlines())

    def follows(self, host: str, link: str = "up") -> None:
        """Make this host's server a replica."""
        self.replication = f"role:slave\nmaster_host:{host}\nmaster_port:6380\nmaster_link_status:{link}\n"

    def name(self, host: str, *sentinels: str) -> None:
        """Let sentinels, or all, name another primary."""
        self.named |= dict.fromkeys(sentinels or self.named, f"{host}\n6380" if host else "")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A host whose answers a test changes."""
    made = World()
    for name, answer in (("there", made.there), ("here", made.here), ("replication", made.info)):
        monkeypatch.setattr(replication, name, answer)
    monkeypatch.setattr(systemd, "journal", made.journal)
    return made


def found() -> list[Any]:
    """Return what is found on the host."""
    answers = replication.named(GIVEN, "broker")
    return [*replication.server(GIVEN, "broker", "6380", answers), *replication.sentinel(GIVEN, "broker", answers)]


def test_nothing_is_wrong_with_a_primary_and_its_replicas(world: World) -> None:
    assert found() == []
    world.follows(SECOND)
    world.name(SECOND)
    assert found() == []


def test_a_second_primary_is_told(world: World) -> None:
    world.name(SECOND)
    (two,) = found()
    assert two.what == f"Redis broker is a primary, but the sentinels name {SECOND}:6380: split brain"
    assert (two.cause, two.primary, two.runbook) == ("follow", f"{SECOND}:6380", "RedisSplitBrain")


def test_a_primary_without_replicas_is_read_only(world: World) -> None:
    world.replication = "role:master\nconnected_slaves:1\n" + ONLINE.format(0, SECOND, 40)
    (read_only,) = found()
    assert "is read-only (NOREPLICAS): it has 0 replicas that are up to date, not 10.0.0.2, 10.0.0.3" in read_only.what
    assert read_only.severity == findings.CRITICAL


@pytest.mark.parametrize(
    ("replicas", "page", "words"),
    [
        (ONLINE.format(0, SECOND, 1), "RedisReplicaMissing", "10.0.0.3 do not follow it"),
        (ONLINE.format(0, SECOND, 1) + ONLINE.format(1, THIRD, 30), "RedisReplicaLags", "10.0.0.3 are behind"),
    ],
)
def test_a_replica_that_is_missing_or_late_is_named(world: World, replicas: str, page: str, words: str) -> None:
    world.replication = f"role:master\n{replicas}"
    (missing,) = found()
    assert (missing.severity, missing.runbook) == (findings.WARNING, page)
    assert words in missing.what


@pytest.mark.parametrize(
    ("line", "cause", "layer"),
    [
        (
            "Unable to AUTH to MASTER: -WRONGPASS invalid username-password pair or user is disabled.",
            "password",
            "REDIS",
        ),
        ("Can't handle RDB format version 12", "version", "REDIS"),
        ("Write error or short write writing to the DB dump file: No space left on device", "disk", "REDIS"),
        ("Error condition on socket for SYNC: Connection refused", "link", "REACH"),
        ("Timeout connecting to the MASTER...", "link", "REACH"),
        ("nothing that is known", "link", "REACH"),
        ("CONFIG REWRITE failed: Read-only file system", "link", "REACH"),
    ],
)
def test_why_a_replica_does_not_reach_its_primary_is_told(world: World, line: str, cause: str, layer: str) -> None:
    world.follows(SECOND, "down")
    world.name(SECOND)
    world.log = f"712:S 27 Nov 2026 07:00:00.000 # {line}\n712:S 27 Nov 2026 07:00:01.000 * Connecting to MASTER\n"
    (down,) = found()
    assert (down.cause, down.layer) == (cause, getattr(findings, layer))
    assert (line in down.what) is (not line.startswith(("nothing", "CONFIG REWRITE")))


def test_a_replica_of_the_wrong_server_is_told(world: World) -> None:
    world.follows(THIRD)
    world.name(SECOND)
    (wrong,) = found()
    assert wrong.what == f"Redis broker follows {THIRD}:6380, the sentinels name {SECOND}:6380"
    assert (wrong.cause, wrong.primary) == ("follow", f"{SECOND}:6380")


def test_a_replica_that_should_be_the_primary_is_told(world: World) -> None:
    world.follows(SECOND)
    (nobody,) = found()
    assert (nobody.cause, nobody.runbook) == ("promote", "RedisNoPrimary")


def test_without_a_majority_the_silent_sentinels_are_named(world: World) -> None:
    world.name("", SECOND, THIRD)
    world.quorum = "NOQUORUM 1 usable Sentinels. Not enough available Sentinels to reach the majority"
    server, sentinel = found()
    assert server.what.endswith("(silent: 10.0.0.2:26379, 10.0.0.3:26379)")
    assert "NOQUORUM 1 usable Sentinels" in sentinel.what
    assert server.runbook == sentinel.runbook == "SentinelsNoQuorum"


def test_a_sentinel_that_disagrees_is_told(world: World) -> None:
    world.name(THIRD, OWN)
    assert [finding.cause for finding in found()] == ["reset"]


def test_peers_that_are_no_more_are_named(world: World) -> None:
    world.known["sentinels"].append("10.0.0.9:26379")
    world.known["replicas"].append("10.0.0.8:6380")
    sentinels, replicas = found()
    assert sentinels.what.endswith("the inventory has not: 10.0.0.9:26379")
    assert replicas.what.endswith("the inventory has not: 10.0.0.8:6380")
    assert {sentinels.cause, replicas.cause} == {"reset"}


def test_a_sentinel_that_is_silent_is_told(world: World) -> None:
    world.quorum = ""
    assert [finding.runbook for finding in found()] == ["SentinelsMissing"]


def test_a_host_without_redis_finds_nothing() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "hosttools", "replication", "--address="],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"


def test_every_page_that_is_named_exists() -> None:
    source = Path(replication.__file__).read_text()
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("*.md")}
    named = {
        word for word in source.replace('"', " ").replace(",", " ").split() if word.startswith(("Redis", "Sentinels"))
    }
    assert {"RedisSplitBrain", "SentinelsNoQuorum"} <= named & pages


def test_the_doctor_tells_it_with_the_rest() -> None:
    told = {"severity": 1, "what": "split brain", "runbook": "RedisSplitBrain", "layer": 4, "cause": "follow"}
    host = {"inventory_hostname": "a", "doctor_examined": {"stdout": "[]"}}
    host |= {"doctor_replication": {"rc": 0, "stdout": json.dumps([told])}}
    assert filters.doctor_sentences(filters.doctor_findings([host])) == [
        "CRITICAL a: split brain -> docs/runbooks/RedisSplitBrain.md"
    ]


def test_settings_of_replication_are_compared_and_no_password_is_told(tmp_path: Path) -> None:
    config = tmp_path / "redis.conf"
    config.write_text("repl-backlog-size 64mb\nmasterauth secret-of-replicas\nmasteruser replication\n")

    class Connection:
        def call(self, *words: str) -> object:
            values = {"repl-backlog-size": "67108864", "masterauth": "another", "masteruser": "replication"}
            return [words[2], values[words[2]]] if words[2] in values else []

    assert list(rights.settings("broker", config, cast("Redis", Connection()))) == []


@pytest.mark.parametrize(("name", "database"), [("CELERY_BROKER_URL", "/0"), ("REDIS_URL", "")])
def test_a_client_reaches_the_primary_through_sentinels(
    name: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "secrets/api").mkdir(parents=True)
    secret = folder / name
    secret.write_text("sentinel://api:pw@a:1/0;sentinel://api:pw@b:1/0\n")
    (folder / "SENTINEL_PASSWORD").write_text("sentinels-password\n")
    (tmp_path / "backend.env").write_text("DURABLE_BROKER_PRIMARY='broker'\nDURABLE_RESULTS_PRIMARY='main'\n")
    away: list[str] = ["a"]

    @contextlib.contextmanager
    def opened(url: SplitResult) -> Iterator[socket.socket]:
        if url.hostname in away:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"+OK\r\n*2\r\n$8\r\n10.0.0.2\r\n$4\r\n6380\r\n")
            yield ours

    monkeypatch.setattr(redis_client, "opened", opened)
    assert redis_client.through_sentinels(secret) == f"redis://api:pw@10.0.0.2:6380{database}"
    away.append("b")
    with pytest.raises(ConnectionError, match="none of the sentinels a:1, b:1 names a primary"):
        redis_client.through_sentinels(secret)
