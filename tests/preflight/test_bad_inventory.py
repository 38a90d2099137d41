"""Every wrong value is rejected before anything is changed, in a sentence that names variable, value and rule."""

from __future__ import annotations

import pytest

from tests.preflight.cases import REDIS_USERS, Case, preflight_errors_of_many

# One run checks all of them.
pytestmark = pytest.mark.timeout(600)
ROUTES = {"task_routes": {"app.agents.tasks.report": "slow"}}
POOLS = {"celery_worker_pools": [{"name": "default"}, {"name": "slow", "queues": ["slow"]}]}
# An application that has no description of its own.
FOREIGN = {"app_release_source": "/nowhere/shop", "app_celery": "shop.jobs", "app_asgi": "shop.web:app"}
WEAK = "aaaaaaaaaaaaaaaaaaaa"
CASES = {
    "no-password": Case({"redis_password": None}, ["redis_password", "required"]),
    "short-password": Case({"redis_password": "k3P9zQ"}, ["redis_password", "16"], hidden="k3P9zQ"),
    "monotonous-password": Case({"redis_password": WEAK}, ["redis_password", "8"], hidden=WEAK),
    "no-redis-users": Case({"redis_user_passwords": None}, ["redis_user_passwords", "required"]),
    "a-redis-user-without-a-password": Case(
        {"redis_user_passwords": dict.fromkeys(REDIS_USERS[1:], "k3P9zQ-k3P9zQ-longer")}, ["worker", "required"]
    ),
    "weak-password-of-a-redis-user": Case(
        {"redis_user_passwords": {**{user: f"{user}-k3P9zQ-k3P9zQ" for user in REDIS_USERS}, "worker": WEAK}},
        ["redis_users", "worker", "too weak"],
        hidden=WEAK,
    ),
    "request-limit": Case({"rate_limit": "100 per second"}, ["rate_limit", "100 per second", "1000/second"]),
    "redis-in-clear": Case(
        {"redis_bind": ["127.0.0.1", "10.0.0.9"], "private_network": False},
        [
            "Redis of redis-in-clear would listen beyond the loopback address without TLS",
            "redis_tls",
            "private_network",
        ],
    ),
    "redis-at-an-address-of-another-host": Case(
        {"redis_bind": ["127.0.0.1", "10.0.0.9"]}, ["redis_bind", "10.0.0.9", "(10.0.0.8)"], {"addresses": ["10.0.0.8"]}
    ),
    "api-at-an-address-of-another-host": Case(
        {"api_bind": "[fd00::9]"}, ["api_bind", "fd00::9", "(10.0.0.8)"], {"addresses": ["10.0.0.8"]}
    ),
    "addresses-of-this-host-and-one-that-may-lack": Case(
        {"redis_bind": ["127.0.0.1", "-::1", "10.0.0.8", "-10.0.0.9"], "flower_bind": "127.0.0.2"},
        [],
        {"addresses": ["10.0.0.8"]},
    ),
    "redis-on-loopback": Case({"redis_bind": ["127.0.0.1", "-::1"], "private_network": False}, []),
    "redis-at-one-address-twice": Case(
        {"redis_bind": ["127.0.0.1", "10.0.0.9", "-10.0.0.9"]}, ["redis_bind", "10.0.0.9", "once"]
    ),
    "redis-at-all-addresses-and-one": Case(
        {"redis_bind": ["*", "127.0.0.1"]}, ["redis_bind", "'*'", "same port twice"]
    ),
    "redis-at-all-addresses-of-ipv6-and-one": Case({"redis_bind": ["127.0.0.1", "::", "-::1"]}, ["redis_bind", "'::'"]),
    "redis-at-too-many-addresses": Case(
        {"redis_bind": [f"127.0.0.{number}" for number in range(1, 18)]}, ["redis_bind", "17 addresses", "16"]
    ),
    "redis-where-nobody-looks": Case(
        {"redis_bind": ["10.0.0.9", "-::1"]},
        ["redis_bind of redis-where-nobody-looks", "redis_host (127.0.0.1)", "add that"],
    ),
    "redis-beyond-the-host-alone": Case(
        {"redis_bind": ["127.0.0.1"], "redis_host": "10.0.0.9"}, ["redis_host (10.0.0.9)"]
    ),
    "redis-at-the-private-address-alone": Case({"redis_bind": ["10.0.0.9"], "redis_host": "10.0.0.9"}, []),
    "redis-without-a-second-database": Case({"redis_databases": 1}, ["redis_databases is 1", "at least 2"]),
    "redis-at-all-addresses": Case({"redis_bind": ["*", "-::*"]}, []),
    "no-api-key": Case({"backend_api_key": None}, ["backend_api_key", "required"]),
    "weak-api-key": Case({"backend_api_key": "Ab3-" * 3}, ["backend_api_key is too weak", "16"], hidden="Ab3-" * 3),
    "weak-control-key": Case({"control_signing_key": "k3P9zQab"}, ["control_signing_key", "32"], hidden="k3P9zQab"),
    "one-key-for-both": Case(
        dict.fromkeys(("task_signing_key", "control_signing_key"), "k3P9zQab" * 5),
        ["control_signing_key is the same as task_signing_key", "take another"],
        hidden="k3P9zQab",
    ),
    "weak-signing-key": Case({"task_signing_key": "k3P9zQab"}, ["task_signing_key", "32"], hidden="k3P9zQab"),
    # Redis would take an empty password for its administrator's.
    "empty-former-password": Case(
        {"previous_secrets": {"redis_password": ""}}, ["previous_secrets.redis_password", "16"]
    ),
    "empty-former-password-of-a-user": Case(
        {"previous_secrets": {"redis_user_passwords": {"worker": ""}}}, ["redis_user_passwords.worker", "16"]
    ),
    "former-passwords-of-nobody": Case(
        {"previous_secrets": {"redis_user_passwords": "k3P9zQ"}}, ["redis_user_passwords", "map users"], hidden="k3P9zQ"
    ),
    # With which no worker would start.
    "weak-former-signing-key": Case(
        {"previous_secrets": {"task_signing_key": "k3P9zQab"}}, ["task_signing_key", "32"], hidden="k3P9zQab"
    ),
    "weak-former-api-key": Case(
        {"previous_secrets": {"backend_api_key": "k3P9zQab"}}, ["backend_api_key", "16"], hidden="k3P9zQab"
    ),
    "former-api-keys-in-a-list": Case(
        {"previous_secrets": {"backend_api_key": ["k3P9zQab" * 2]}}, ["backend_api_key", "text"], hidden="k3P9zQab"
    ),
    "former-password-that-is-a-number": Case(
        {"previous_secrets": {"flower_password": 1234567890123456}}, ["flower_password", "text"], hidden="1234567890"
    ),
    "no-former-key-for-monitoring": Case({"previous_secrets": {"metrics_api_key": ""}}, []),
    "unknown-former-secret": Case({"previous_secrets": {"api_key": "x"}}, ["previous_secrets", "backend_api_key"]),
    "no-flower-password": Case({"flower_password": None}, ["flower_password"]),
    "weak-flower-password": Case({"flower_password": "Fl0wer-pw"}, ["flower_password", "16"], hidden="Fl0wer-pw"),
    "unknown-supervision": Case(
        {"celery_worker_supervision": "runit"}, ["celery_worker_supervision", "runit", "supervisor"]
    ),
    "systemd-where-it-does-not-run": Case(
        {"celery_worker_supervision": "systemd"}, ["celery_worker_supervision", "sysvinit"], {"service_mgr": "sysvinit"}
    ),
    "concurrency-zero": Case({"celery_worker_concurrency": 0}, ["celery_worker_concurrency", "is 0", "at least 1"]),
    "concurrency-no-number": Case({"celery_worker_concurrency": "many"}, ["celery_worker_concurrency", "many", "int"]),
    "pool-concurrency-zero": Case(
        {"celery_worker_pools": [{"name": "slow", "concurrency": 0}]},
        ["celery_worker_concurrency", "'slow'", "at least 1"],
    ),
    "two-pools-of-one-name": Case(
        {"celery_worker_pools": [{"name": "a"}, {"name": "a"}]}, ["celery_worker_pools", "once"]
    ),
    "pool-whose-name-names-no-file": Case({"celery_worker_pools": [{"name": "a" * 64}]}, ["celery_worker_pools", "63"]),
    "pool-asyncio-without-a-process": Case(
        {"celery_worker_pools": [{"name": "a", "pool": "asyncio", "processes": 0}]},
        ["pool 'a' 0 processes", "at least 1"],
    ),
    "processes-of-a-pool-that-has-none-to-share": Case(
        {"celery_worker_pools": [{"name": "a", "processes": 2}]}, ["pool 'a' processes", "asyncio"]
    ),
    "pool-asyncio": Case({"celery_worker_pools": [{"name": "a", "pool": "asyncio", "processes": 2}]}, []),
    "pool-without-queues": Case({"celery_worker_pools": [{"name": "a", "queues": []}]}, ["celery_worker_pools", "'a'"]),
    "worker-memory-without-unit": Case(
        {"celery_worker_memory_max": "512"}, ["celery_worker_memory_max is '512'", "M, G"]
    ),
    "address-that-is-a-name": Case(
        {"stack_ip_allow": ["redis.internal"]}, ["stack_ip_allow", "redis.internal", "names"]
    ),
    "egress-to-a-name": Case(
        {"worker_egress": [{"name": "db", "to": ["db.internal"], "ports": [5432]}]},
        ["'db' of worker_egress", "db.internal", "10.0.0.5"],
    ),
    "egress-without-a-name": Case({"worker_egress": [{"ports": [443]}]}, ["missing", "name", "worker_egress"]),
    "egress-to-no-port": Case({"worker_egress": [{"name": "db", "ports": [0]}]}, ["'db' of worker_egress", "port 0"]),
    "egress-by-another-protocol": Case({"worker_egress": [{"name": "vpn", "protocol": "esp"}]}, ["esp", "tcp, udp"]),
    "egress-that-is-a-text": Case({"worker_egress": "443"}, ["worker_egress", "dict"]),
    "worker-memory-too-small": Case({"celery_worker_memory_max": "1M"}, ["celery_worker_memory_max is 1M", "128M"]),
    "api-memory-too-small": Case({"api_memory_max": "1M"}, ["api_memory_max is 1M", "128M"]),
    "memory-in-percent": Case({"api_memory_max": "5%"}, []),
    "concurrency-without-end": Case(
        {"celery_worker_pools": [{"name": "all", "concurrency": 100_000}]}, ["'all' is 100000", "at most 1000"]
    ),
    "coroutines-without-end": Case(
        {"celery_worker_pools": [{"name": "a", "pool": "asyncio", "concurrency": 2001}]},
        ["'a' is 2001", "at most 2000", "asyncio"],
    ),
    "coroutines-as-many-as-possible": Case(
        {"celery_worker_pools": [{"name": "a", "pool": "asyncio", "concurrency": 2000}]}, []
    ),
    "flower-in-the-place-of-the-api": Case({"flower_url_prefix": "tasks"}, ["flower_url_prefix is 'tasks'", "choose"]),
    "host-without-a-firewall": Case(
        {"hardening_disabled_modules": ["dccp", "nf_tables"]},
        ["hardening_disabled_modules", "nf_tables", "remove it"],
    ),
    "one-password-for-all": Case(
        {"redis_user_passwords": dict.fromkeys(REDIS_USERS, "k3P9zQ-k3P9zQ-longer")},
        ["redis_user_passwords", "one password", "make secrets"],
        hidden="k3P9zQ",
    ),
    "redis-for-one-client": Case({"redis_maxclients": 1}, ["maxclients", "1", "from 64"]),
    "watchdog-too-short": Case({"celery_worker_watchdog_seconds": 1}, ["celery_worker_watchdog_seconds is 1", "10"]),
    "limits-the-wrong-way-round": Case(
        {"task_soft_time_limit": 61}, ["task_soft_time_limit is 61", "task_time_limit is 60", "below"]
    ),
    "limits-equal": Case({"task_time_limit": 55}, ["task_soft_time_limit is 55", "task_time_limit is 55"]),
    "results-expire-too-early": Case({"result_expires": 30}, ["result_expires is 30", "60"]),
    "queue-length-zero": Case({"queue_max_length": 0}, ["queue_max_length is 0", "at least 1"]),
    "memory-share-that-is-no-number": Case({"broker_max_memory_share": True}, ["broker_max_memory_share is True"]),
    "memory-share-in-percent": Case({"broker_max_memory_share": 80}, ["broker_max_memory_share is 80", "at most 1"]),
    "rate-limit": Case(
        {"task_default_rate_limit": "100 per minute"}, ["task_default_rate_limit", "100 per minute", "100/m"]
    ),
    "log-level": Case({"log_level": "loud"}, ["log_level", "loud", "debug"]),
    "nothing-allowed": Case({"stack_ip_allow": []}, ["stack_ip_allow is empty", "any"]),
    "list-that-is-a-text": Case({"stack_ip_allow": "10.0.0.9"}, ["stack_ip_allow is the text", "like [10.0.0.9]"]),
    "queues-that-are-a-text": Case(
        {"celery_worker_pools": [{"name": "a", "queues": "slow"}]}, ["pool 'a'", "queues 'slow'", "like [slow]"]
    ),
    "pool-without-a-name": Case(
        {"celery_worker_pools": [{"concurrency": 2}]}, ["missing", "name", "celery_worker_pools"]
    ),
    "pools-that-are-a-text": Case({"celery_worker_pools": "default"}, ["celery_worker_pools is the text 'default'"]),
    "password-that-is-a-number": Case(
        {"redis_password": 1234567890123456}, ["redis_password is a number", "quotes"], hidden="1234567890123456"
    ),
    "key-of-a-provider-that-is-true": Case({"groq_api_key": True}, ["groq_api_key is true or false", "quotes"]),
    "user-password-that-is-a-number": Case(
        {"redis_user_passwords": dict.fromkeys(REDIS_USERS, 1234567890123456)},
        ["redis_user_passwords.worker is a number"],
        hidden="1234567890123456",
    ),
    "password-of-a-user-that-is-empty": Case(
        {"redis_user_passwords": {**dict.fromkeys(REDIS_USERS, "k3P9zQ-k3P9zQ-longer"), "worker": None}},
        ["redis_user_passwords.worker is no text", "make secrets"],
    ),
    "unknown-topology": Case({"redis_topology": "cluster"}, ["redis_topology", "cluster", "split"]),
    "unknown-eviction-policy": Case(
        {"redis_maxmemory_policy": "lru"}, ["redis_maxmemory_policy", "lru", "allkeys-lru"]
    ),
    "option-of-the-role-in-capitals": Case(
        {"redis_extra_settings": {"MaxMemory": "1gb"}}, ["redis_extra_settings", "MaxMemory", "sets itself"]
    ),
    "option-without-a-value": Case(
        {"redis_extra_settings": {"activedefrag": None}}, ["redis_extra_settings", "activedefrag", "one line of text"]
    ),
    "option-with-a-list": Case(
        {"redis_extra_settings": {"client-output-buffer-limit": ["normal 0 0 0"]}}, ["redis_extra_settings", "normal 0"]
    ),
    "option-of-two-lines": Case(
        {"redis_extra_settings": {"hz": "10\nprotected-mode no"}}, ["redis_extra_settings", "hz", "one line of text"]
    ),
    "option-that-is-unknown": Case(
        {"redis_extra_settings": {"hzz": 20}}, ["redis_extra_settings", "hzz", "is hz meant?"]
    ),
    "option-without-its-form": Case(
        {"redis_extra_settings": {"slowlog-max-len": "many"}},
        ["redis_extra_settings", "slowlog-max-len", "a number from 0"],
    ),
    "unknown-command": Case(
        {"redis_disabled_commands": ["flushal"]}, ["redis_disabled_commands", "is flushall meant?"]
    ),
    "command-of-hostile-form": Case({"redis_disabled_commands": ["x -@all"]}, ["redis_disabled_commands", "x -@all"]),
    "command-that-services-need": Case({"redis_disabled_commands": ["lpush"]}, ["redis_disabled_commands", "lpush"]),
    "command-that-the-role-needs": Case(
        {"redis_disabled_commands": ["acl|list"]}, ["redis_disabled_commands", "acl|list"]
    ),
    "more-commands": Case({"redis_disabled_commands": ["flushall", "config|rewrite", "monitor", "sort"]}, []),
    "option-that-is-empty": Case({"redis_extra_settings": {"notify-keyspace-events": "", "hz": 20}}, []),
    "tls-without-an-authority": Case({"redis_tls": True}, ["redis_tls is true", "redis_tls_ca", "make secrets"]),
    "authority-that-is-none": Case(
        {"redis_tls": True, "redis_tls_ca": "BEGIN CERTIFICATE", "redis_tls_ca_key": "PRIVATE KEY"},
        ["redis_tls_ca holds no certificate", "PEM"],
    ),
    "certificate-without-tls": Case(
        dict.fromkeys(("redis_tls_ca", "redis_tls_certificate"), "-----BEGIN CERTIFICATE-----\nx"),
        ["redis_tls_certificate", "redis_tls is false"],
    ),
    "memory-larger-than-the-host": Case({"stack_redis_maxmemory": "8gb"}, ["maxmemory", "8gb", "4096"]),
    "memory-that-is-no-size": Case({"stack_redis_maxmemory": "lots"}, ["maxmemory", "lots"]),
    "api-and-flower-on-one-port": Case({"flower_port": 8000}, ["same port", "api_port 8000", "flower_port 8000"]),
    "api-and-redis-on-one-port": Case({"api_port": 6380}, ["same port", "redis 6380", "api_port 6380"]),
    "api-and-sshd-on-one-port": Case({"api_port": 22}, ["same port", "sshd (firewall_ssh_port) 22", "api_port 22"]),
    # systemd takes no such number.
    "port-with-a-zero-before-it": Case({"api_port": "08000"}, ["api_port is '08000'", "whole number"]),
    "port-that-is-none": Case({"api_port": 70000}, ["api_port is 70000", "65535"]),
    "address-that-is-none": Case({"api_bind": "everywhere"}, ["api_bind", "everywhere", "IP address"]),
    "address-of-no-interface": Case(
        {"api_bind": "{{ ansible_facts.eth9.ipv4.address }}"}, ["api_bind names a variable or fact", "does not have"]
    ),
    "address-of-no-interface-in-a-list": Case(
        {"redis_bind": ["127.0.0.1", "{{ ansible_facts.eth9.ipv4.address }}"]}, ["redis_bind names a variable or fact"]
    ),
    "setting-with-a-quote": Case({"app_environment": "it's"}, ["app_environment", "it's", "quotes"]),
    "no-release-to-go-back-to": Case({"app_release_keep": 1}, ["app_release_keep is 1", "at least 2"]),
    "name-that-names-no-user": Case({"app_name": "Type Safe"}, ["app_name", "Type Safe", "lower-case"]),
    "route-that-no-pool-takes": Case(ROUTES, ["task_routes", "'slow'", "no pool takes from it"]),
    "no-pool-for-what-has-no-route": Case(
        {"celery_worker_pools": [{"name": "slow", "queues": ["slow"]}]}, ["celery_worker_pools", "'celery'"]
    ),
    "route-that-is-a-list": Case({"task_routes": {"a": ["slow"]}}, ["task_routes", "slow", "letters"]),
    "route-with-more-than-a-queue": Case(
        {"task_routes": {"a": {"queue": "b", "priority": 1}}}, ["task_routes", "letters"]
    ),
    "queue-of-the-platform": Case({"task_routes": {"a": "failures"}}, ["task_routes", "'failures'", "uses"]),
    "switch-that-is-a-text": Case({"host_firewall": "true"}, ["host_firewall is 'true'", "without quotes"]),
    "address-beyond-255": Case({"api_bind": "10.0.0.256"}, ["api_bind", "10.0.0.256", "IP address"]),
    "unknown-name": Case(
        {"celery_worker_concurency": 2}, ["celery_worker_concurency", "celery_worker_concurrency meant"]
    ),
    "previous-name": Case({"redis_earlier_passwords": []}, ["redis_earlier_passwords", "redis_previous_passwords now"]),
    "ignored-name": Case({"redis_maxmemory": "1gb"}, ["redis_maxmemory", "stack_redis_maxmemory"]),
    "derived-name": Case({"app_release_settings": {"A": "b"}}, ["app_release_settings", "derives"]),
    "foreign-source": Case(FOREIGN, []),
    "foreign-source-without-an-application": Case({**FOREIGN, "app_celery": ""}, ["app_celery is empty", "celery -A"]),
    "two-web-applications": Case({**FOREIGN, "app_wsgi": "a.wsgi"}, ["app_asgi and app_wsgi are set", "leave one"]),
    "api-host-without-a-web-application": Case(
        {**FOREIGN, "app_asgi": ""}, ["in the group api", "set app_asgi, app_wsgi or app_command"]
    ),
    "factory-of-a-web-application": Case({**FOREIGN, "app_asgi": "shop.web:create_app()"}, []),
    "factory-with-arguments": Case(
        {**FOREIGN, "app_asgi": "shop.web:create_app(1)"}, ["app_asgi is 'shop.web:create_app(1)'", "with () after"]
    ),
    "server-without-a-socket": Case(
        {**FOREIGN, "app_asgi": "", "app_command": ["daphne"]}, ["app_command has no {fd}"]
    ),
    "setting-in-lower-case": Case({"app_settings": {"debug": "1"}}, ["app_settings has 'debug'", "upper-case"]),
    "setting-of-the-library": Case({"app_settings": {"DURABLE_QUEUES": "a"}}, ["DURABLE_QUEUES", "platform's own"]),
    "setting-of-the-interpreter": Case({"app_settings": {"PYTHONHOME": "."}}, ["PYTHONHOME", "platform's own"]),
    "folders-of-packages": Case({"app_settings": {"PYTHONPATH": "src:vendor/lib"}}, []),
    "folder-of-packages-in-an-image": Case(
        {"app_settings": {"PYTHONPATH": "/app/src"}}, ["app_settings.PYTHONPATH is '/app/src'", "like src"]
    ),
    "setting-of-an-image": Case({"app_settings": {"PYTHON_VERSION": "3.13"}}, []),
    "application-setting-with-a-quote": Case(
        {"app_settings": {"MOTTO": "it's"}}, ["app_settings.MOTTO", "single quote"]
    ),
    "secret-of-nobody": Case({"app_secrets": {"web": {"A": "b"}}}, ["app_secrets has 'web'", "all, worker, api"]),
    "secret-that-is-a-number": Case(
        {"app_secrets": {"all": {"PIN": 48151623}}}, ["app_secrets.all.PIN"], hidden="48151623"
    ),
    "url-of-an-unknown-redis": Case(
        {"app_redis_variables": {"CACHE": "cache"}}, ["app_redis_variables.CACHE", "'cache'", "results or data"]
    ),
    "unknown-piece-of-a-url": Case(
        {"app_redis_variables": {"CACHE": "data.socket"}}, ["app_redis_variables.CACHE", "host, port, user or password"]
    ),
    "redis-of-its-own": Case({"app_redis_variables": {"CACHE": "data", "CACHE_HOST": "data.host"}}, []),
    "redis-of-its-own-too-large": Case(
        {"app_redis_variables": {"CACHE": "data"}, "stack_redis_data_maxmemory": "0"},
        ["redis_maxmemory of instance data", "stack_redis_data_maxmemory"],
    ),
    "keys-of-celery": Case({"app_redis_prefixes": ["celery-*"]}, ["app_redis_prefixes has 'celery-*'", "take another"]),
    "all-keys": Case({"app_redis_prefixes": ["*"]}, ["app_redis_prefixes has '*'", "like shop:*"]),
    "shared-beyond-the-release": Case({"app_release_shared": {"../x": "x"}}, ["app_release_shared has '../x'"]),
    "command-as-a-text": Case({"app_release_prepare": [["migrate", 1]]}, ["app_release_prepare", "list of texts"]),
    "sandbox-that-is-no-directive": Case({"app_release_sandbox": ["relax"]}, ["app_release_sandbox has 'relax'"]),
    "queue-that-nobody-takes": Case(
        {"celery_worker_pools": [{"name": "default", "queues": ["celery"]}], "app_queues": ["celery", "late"]},
        ["app_queues", "'late'", "no pool takes from it"],
    ),
    "name-of-a-unit-of-ours": Case({"app_name": "platform"}, ["app_name is 'platform'", "choose another"]),
    "name-of-the-login": Case({"app_name": "deployer"}, ["app_name is 'deployer'"], {"user": "deployer"}),
    "name-of-somebody-else": Case({"app_name": "www-data"}, ["app_name is 'www-data'", "has a user www-data"]),
    "one-place-alone": Case({"app_release_root": "/srv/app"}, ["app_release_root", "/opt/typesafe", "app_name"]),
    "host-in-brackets": Case({"redis_host": "[::1]"}, ["redis_host", "without brackets"]),
    "unsupported-system": Case(
        {}, ["Ubuntu 24.04", "Debian 12 and 13"], {"distribution": "Ubuntu", "distribution_version": "24.04"}
    ),
    "old-debian": Case({}, ["Debian 11", "12 and 13"], {"distribution_version": "11"}),
    "old-python": Case({}, ["Python 3.9.2", "3.11"], {"python_version": "3.9.2"}),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the preflight over all cases; return each host's error, empty where there was none."""
    good = {
        "good": Case({}, []),
        "good-routes": Case(ROUTES | POOLS, []),
        "good-patterns": Case({"task_routes": {"app.*": {"queue": "slow"}}, **POOLS}, []),
    }
    return preflight_errors_of_many({**CASES, **good}, tmp_path_factory.mktemp("inventory"))


@pytest.mark.parametrize("name", ["good", "good-routes", "good-patterns"])
def test_a_good_inventory_is_accepted(errors: dict[str, str], name: str) -> None:
    assert errors[name] == ""


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_rejected_in_one_clear_sentence(errors: dict[str, str], name: str) -> None:
    CASES[name].judge(errors[name])
