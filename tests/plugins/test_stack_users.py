"""The URLs that the stack gives to its clients are those that the application understands."""

from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from celery_durable.address import RedisAddress
from celery_durable.testing import RedisServer
from tests.support import REPOSITORY, load_plugin

stack_users = load_plugin("roles/stack/filter_plugins/stack_users.py")
PASSWORDS = {"worker": "a/b:c@d;e"}


def test_one_server() -> None:
    urls = stack_users.redis_urls(PASSWORDS, "redis.example:6379", "redis.example:6380", "/ca.crt")["worker"]
    address = RedisAddress.parse(urls["CELERY_BROKER_URL"])
    assert (address.servers, address.sentinel, address.tls) == ((("redis.example", 6380),), False, True)
    assert (address.username, address.password, address.database) == ("worker", PASSWORDS["worker"], 0)
    assert RedisAddress.parse(urls["CELERY_RESULT_BACKEND"]).servers == (("redis.example", 6379),)


def test_sentinels() -> None:
    sentinels = ["10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26380"]
    urls = stack_users.sentinel_urls(PASSWORDS, sentinels, PASSWORDS["worker"], "/ca.crt")["worker"]
    assert urls["SENTINEL_PASSWORD"] == PASSWORDS["worker"]
    address = RedisAddress.parse(urls["CELERY_RESULT_BACKEND"])
    assert address.servers == (("10.0.0.1", 26379), ("10.0.0.2", 26379), ("10.0.0.3", 26380))
    assert (address.sentinel, address.tls, address.ca_file, address.database) == (True, True, "/ca.crt", 1)
    assert (address.username, address.password) == ("worker", PASSWORDS["worker"])
    assert not RedisAddress.parse(
        stack_users.sentinel_urls(PASSWORDS, sentinels, PASSWORDS["worker"])["worker"]["REDIS_URL"]
    ).tls


@pytest.mark.parametrize("user", ["worker", "api"])
def test_libraries_of_the_application_work_in_its_own_redis(tmp_path: Path, user: str) -> None:
    """A lock's script, a cache that is cleared, a channel of any name; the server itself stays the administrator's."""
    rules = yaml.safe_load((REPOSITORY / "roles/stack/vars/main/redis_users.yml").read_text())["__stack_data_rules"]
    (found,) = stack_users.redis_users({user: {"data": rules}, "flower": {"broker": rules}}, ["data"], {user: "pw"}, {})
    server = RedisServer(tmp_path / "redis")
    try:
        administrator: Any = server.client(0)
        administrator.execute_command("ACL", "SETUSER", user, "on", ">pw", *found["rules"])
        for command in [*found["may"], *found["may_not"]]:
            answer = administrator.execute_command("ACL", "DRYRUN", user, *command.split())
            assert (answer == "OK") == (command in found["may"]), command
        client: Any = redis.Redis.from_url(f"redis://{user}:pw@127.0.0.1:{server.port}")
        with client.lock("a lock", timeout=5):
            client.set("any key", 1, ex=5)
        with client.pubsub() as channel:
            channel.subscribe("d1b8e4")
            assert client.publish("d1b8e4", "done") == 1
        client.flushdb()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.config_get("requirepass")
    finally:
        server.stop()
