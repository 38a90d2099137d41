"""What the module redis_sentinel_config writes, Sentinel takes; what Sentinel makes of it is no difference."""

import hashlib
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import Program, RedisServer, free_port, load_plugin, wait_until

pytestmark = pytest.mark.integration

module = load_plugin("roles/redis_sentinel/library/redis_sentinel_config.py")
PASSWORD = secrets.token_hex(8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """What is watched."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


def settings(directory: Path, port: int) -> dict[str, Any]:
    """Return general options."""
    general = {"port": port, "bind": "127.0.0.1 -::1", "dir": directory, "logfile": '""'}
    hashed = hashlib.sha256(PASSWORD.encode()).hexdigest()
    own = {"user": f"default on sanitize-payload #{hashed} ~* &* +@all", "sentinel sentinel-pass": PASSWORD}
    # What roles/redis_sentinel/vars/main.yml gives it, whose order Sentinel does not keep.
    rules = "+ping +info +client|setname +sentinel|masters +sentinel|ckquorum +sentinel|sentinels +sentinel|slaves"
    own["user exporter"] = f"on sanitize-payload #{hashed} resetchannels -@all {rules}"
    return {**general, **own, "sentinel announce-ip": "127.0.0.1"}


def watched(server: RedisServer, seconds: int = 5) -> dict[str, dict[str, Any]]:
    """Return what is watched, by name."""
    options = {"auth-pass": server.password, "down-after-milliseconds": seconds * 1000}
    return {"broker": {"host": "127.0.0.1", "port": server.port, "options": options}}


def test_what_sentinel_has_rewritten_is_no_difference(server: RedisServer, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "sentinel.conf"
    options = settings(tmp_path, port)
    module.save(file, module.wanted([], options, watched(server), 2))
    sentinel = Program(["redis-server", str(file), "--sentinel"], tmp_path / "log")
    client = redis.Redis(port=port, password=PASSWORD, decode_responses=True)

    def sees() -> bool:
        try:
            state: Any = client.sentinel_master("broker")
        except redis.ConnectionError:
            return False
        return bool(state["is_master"] and not state["is_sdown"])

    wait_until(sees)
    client.execute_command("SENTINEL", "FLUSHCONFIG")  # type: ignore[no-untyped-call]
    sentinel.stop(signal.SIGKILL)
    now = module.parse(file.read_text())
    assert ["sentinel", "myid"] in [words[:2] for words in now]
    assert not module.differs(now, module.wanted(now, options, watched(server), 2))
    assert module.differs(now, module.wanted(now, options, watched(server, seconds=7), 2))
    assert module.differs(now, module.wanted(now, {**options, "sentinel sentinel-pass": "another"}, watched(server), 2))
    assert module.differs(now, module.wanted(now, options, {}, 2))
    fewer = {**options, "user exporter": options["user exporter"].replace(" +ping", "")}
    assert module.differs(now, module.wanted(now, fewer, watched(server), 2))


def test_what_sentinel_has_learned_stays(server: RedisServer) -> None:
    now = module.parse(
        "sentinel myid 1\nsentinel monitor broker 10.0.0.9 6380 2\nsentinel known-replica broker 10.0.0.1 6380\n"
        "sentinel monitor gone 10.0.0.9 1 2\nsentinel known-replica gone 10.0.0.1 1\nuser default on #x ~* +@all\n"
    )
    target = module.wanted(now, {}, watched(server), 3)
    assert ["sentinel", "monitor", "broker", "10.0.0.9", "6380", "3"] in target
    assert ["sentinel", "known-replica", "broker", "10.0.0.1", "6380"] in target
    assert ["sentinel", "myid", "1"] in target
    assert not [words for words in target if "gone" in words or words[0] == "user"]
