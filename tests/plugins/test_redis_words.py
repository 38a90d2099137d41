"""What the preflight thinks of Redis' own words, against Redis: commands, ACL rules and options of redis.conf."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from celery_durable.testing import free_port
from tests.support import REPOSITORY, Program, load_plugin

judge = load_plugin("roles/redis/filter_plugins/redis_words.py")
reserved = load_plugin("roles/redis/filter_plugins/redis_values.py").RESERVED_SETTINGS
script = load_plugin("scripts/redis_words.py")
DEFAULTS = {
    name.removeprefix("redis_"): value
    for name, value in yaml.safe_load((REPOSITORY / "roles/redis/defaults/main.yml").read_text()).items()
}
QUOTES = '""'
USER = {"name": "reader", "passwords": ["x"], "rules": ["~news:*", "+get"]}
# What the preflight leaves to Redis' trial start, because the host's system, allocator or OpenSSL decides it.
LEFT_TO_REDIS = {
    *("activedefrag", "bind-source-addr", "cluster-announce-hostname", "locale-collate", "proc-title-template"),
    *("tls-ciphers", "tls-ciphersuites"),
}
# Redis looks at the first only with TLS, takes the second for 0, and lets the third through once.
STRICTER = (("tls-protocols", None), (None, ""), (None, "10000000000000000000"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """Run a Redis with nothing but its defaults."""
    directory, port = tmp_path_factory.mktemp("redis"), free_port()
    program = Program(["redis-server", "--port", str(port), "--save", "", "--dir", str(directory)], directory / "log")
    program.wait_for_output("eady to accept connections")
    yield redis.Redis(port=port, decode_responses=True)
    program.stop()


@pytest.fixture(scope="module")
def version(server: redis.Redis) -> str:
    """Return the release of this machine's Redis."""
    return ".".join(server.info("server")["redis_version"].split(".")[:2])


def errors(version: str = "7.0", **changes: Any) -> list[str]:
    found: list[str] = judge.redis_word_errors([{"name": "main"} | changes], DEFAULTS, version)
    return found


def test_the_file_has_the_words_of_this_redis(server: redis.Redis, version: str) -> None:
    if version not in judge.RELEASES:
        pytest.skip(f"Redis {version} is in no release of Debian that is supported")
    assert judge.RELEASES[version] == script.words(server)


@pytest.mark.parametrize("version", ["7.0", "8.0", "7.4"])
def test_the_defaults_are_right(version: str) -> None:
    assert errors(version) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disabled_commands": ["flushal"]}, ['["flushal"]', "Redis 7.0 knows", "is flushall meant?"]),
        ({"disabled_commands": ["config|sett"]}, ["config|sett"]),
        ({"disabled_commands": ["get\nuser x on nopass"]}, ["it must be commands"]),
        ({"disabled_commands": ["hgetex"]}, ["hgetex"]),  # of Redis 8
        ({"disabled_commands": ["@dangerous"]}, ["@dangerous"]),
        ({"disabled_commands": ["select|0"]}, ["select|0"]),
        *(({"disabled_commands": [name]}, ["without the commands that", name]) for name in judge.NEEDED),
        # In the append-only file, as part of a transaction.
        (
            {"disabled_commands": ["lpush"], "users": [USER | {"rules": ["~*", "+lpush"]}]},
            ["append-only file", "lpush"],
        ),
        ({"default_user_rules": ["~*", "+@alll"]}, ["redis_default_user_rules", "+@alll"]),
        ({"users": [USER | {"rules": ["~*", "~news:*"]}]}, ["reader", "~news:*"]),
        ({"users": [USER | {"rules": ["+@reed"]}]}, ["reader", "+@reed"]),
        ({"users": [USER | {"rules": ["(~x +gett)"]}]}, ["(~x +gett)"]),
        ({"users": [USER | {"rules": ["resetpass"]}]}, ["resetpass"]),
        ({"users": [USER | {"may": ["GETT x"]}]}, ["tries", "GETT x"]),
        ({"extra_settings": {"slowlog-max-length": 5}}, ["slowlog-max-length", "is slowlog-max-len meant?"]),
        ({"extra_settings": {"hz": "many"}}, ["gives hz the value", "a number from 0 to"]),
        ({"extra_settings": {"loglevel": "loud"}}, ["gives loglevel", "one of debug"]),
        ({"extra_settings": {"activedefrag": "perhaps"}}, ["gives activedefrag", "yes or no"]),
        ({"extra_settings": {"repl-backlog-ttl": 1.5}}, ["gives repl-backlog-ttl"]),
        ({"extra_settings": {"proto-max-bulk-len": "1.5gb"}}, ["gives proto-max-bulk-len", "a size"]),
        ({"extra_settings": {"proto-max-bulk-len": "1kb"}}, ["gives proto-max-bulk-len", "from 1048576"]),
        ({"extra_settings": {"client-output-buffer-limit": "normal 0 0"}}, ["normal 0 0 0"]),
        ({"extra_settings": {"notify-keyspace-events": "Kq"}}, ["notify-keyspace-events"]),
        ({"extra_settings": {"proc-title-template": "{title} x"}}, ["double quotes"]),
        ({"extra_settings": {"syslog-ident": 'a"b'}}, ["double quotes"]),
    ],
)
def test_a_word_that_redis_does_not_know_is_rejected_in_one_sentence(changes: dict[str, Any], words: list[str]) -> None:
    (sentence,) = errors(**changes)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


def test_what_only_one_release_knows() -> None:
    assert errors("8.0", disabled_commands=["hgetex"]) == []
    assert errors("7.4", disabled_commands=["hgetex"], extra_settings={"io-threads-do-reads": True}) == []


def test_rules_are_judged_as_redis_judges_them(server: redis.Redis, version: str) -> None:
    """Thousands of rules, near right ones and hostile ones, alone and behind others."""
    words = judge.known_words(version)
    some = [
        *(f"{sign}{name}" for sign in "+-" for name in [*words["commands"], "select|0", "get|x", "client|nosuch", "x"]),
        *(f"{sign}@{name}" for sign in "+-" for name in [*words["categories"], "all", "alll", ""]),
        *("~*", "allkeys", "resetkeys", "~a", "~", "%R~a", "%RW~*", "%X~a", "&*", "allchannels", "resetchannels", "&a"),
        *(
            "on",
            "off",
            "allcommands",
            "nocommands",
            "clearselectors",
            "+",
            "-",
            "+|",
            "+get|",
            "a",
            "~é",
            "+GET",
            "%~x",
        ),
        *("(~a +get)", "(+gett)", "()", "(~* ~a)", "(on)", "(&* &a +get)", "(+@read -@write)", "+get|a|b", "+config|"),
    ]
    chance = random.Random(20)  # noqa: S311 - no secret
    tried = [[word] for word in some] + [chance.choices(some[-42:], k=3) for _ in range(2000)]
    wrong = []
    for rules in tried:
        try:
            server.execute_command("ACL SETUSER", "tried", "reset", *rules)  # type: ignore[no-untyped-call]
            rejected = ""
        except redis.ResponseError as error:
            rejected = str(error)
        if bool(judge.broken_rules(rules, words)) != bool(rejected):
            wrong.append((rules, rejected))
    assert wrong == [], "\n".join(map(str, wrong))


def starts(directory: Path, name: str, value: str) -> str:
    """Return what redis-server says against this line of redis.conf, empty when it takes it."""
    # It ends by itself once it has read and taken the line, because it has no port.
    command = ["redis-server", "-", "--port", "0", "--dir", str(directory), "--daemonize", "no"]
    done = subprocess.run(
        command,
        input=f"{name} {value or QUOTES}",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=directory,
    )
    return "" if "not listen anywhere" in done.stdout else done.stdout + done.stderr


def test_options_are_judged_as_redis_judges_them(tmp_path: Path, version: str) -> None:
    options = judge.known_words(version)["options"]
    texts = (
        "",
        "yes",
        "NO",
        "0",
        "1",
        "-1",
        "64mb",
        "1.5",
        "a",
        "a b",
        'a"b',
        "10000000000000000000",
        "1k",
        "5%",
        "07",
    )
    own = {
        "client-output-buffer-limit": ("normal 0 0 0", "slave 1mb 1mb 60 pubsub 0 0 0", "normal 0 0", "other 0 0 0"),
        "latency-tracking-info-percentiles": ("50 99.9", "101", "x"),
        "notify-keyspace-events": ("KEA", "Kq"),
        "oom-score-adj-values": ("0 200 800", "800 200 0", "0 1", "0 1 3000"),
        "maxmemory-clients": ("5%", "101%", "10mb"),
        "syslog-facility": ("local0", "local8"),
        "io-threads": ("128", "129"),
        "proc-title-template": ('"{title} {port}"', "{title}", "{nosuch}"),
    }
    wrong, chance = [], random.Random(20)  # noqa: S311 - no secret
    for name in sorted(options.keys() - reserved - LEFT_TO_REDIS):
        kind = options[name]
        near = [str(kind[end] + by) for end in ("least", "most") for by in (-1, 0, 1)] if isinstance(kind, dict) else []
        some = (*own.get(name, ()), *near, *chance.sample(texts, 4))
        for value in some if not name.endswith("cpulist") else ():
            ours, theirs = judge.broken_option(name, value, options), starts(tmp_path, name, value)
            stricter = ours and ((name, None) in STRICTER or (None, value) in STRICTER)
            if bool(ours) != bool(theirs) and not stricter:
                wrong.append((name, value, ours, theirs[-300:]))
    assert wrong == [], "\n".join(map(str, wrong))
