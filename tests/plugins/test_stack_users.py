"""The URLs that the stack gives to its clients are those that the application understands."""

from celery_durable.address import RedisAddress
from tests.support import load_plugin

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
