"""Settings and users of a running Redis, against those of its file."""

import re
from collections.abc import Iterator
from pathlib import Path

from hosttools import files
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, REDIS, RIGHTS, WARNING, Finding
from hosttools.masking import quote
from hosttools.redis_client import Redis, RedisError

RECENT = 300  # seconds
NOT_COMPARED = "user requirepass masterauth logfile pidfile"
# Settings of Redis that redis.conf does not name, and that stop clients when somebody changes them.
DEFAULTS = {
    "min-replicas-to-write": "0",
    "stop-writes-on-bgsave-error": "yes",
    "maxmemory-clients": "0",
    "proto-max-bulk-len": "536870912",
    "client-query-buffer-limit": "1073741824",
    "no-appendfsync-on-rewrite": "no",
}


@apart
def settings(name: str, config: Path, connection: Redis) -> Iterator[Finding]:
    """Compare the running server's settings with its file."""
    for key, value, live in differing(config, connection):
        meant = f"{config} says" if re.search(rf"^{key} ", files.read(config), re.MULTILINE) else "its default is"
        what = f"the running Redis {name} has {key} {live or 'empty'}, {meant} {value or 'empty'}"
        yield Finding(WARNING, what, "drift", REDIS, suspect=True)


def differing(config: Path, connection: Redis) -> Iterator[tuple[str, str, str]]:
    """Return the settings of a running server that are not its file's: name, the file's value, the server's."""
    said: dict[str, list[str]] = {}
    for line in files.read(config).splitlines():
        key, _, value = line.partition(" ")
        if re.fullmatch(r"[a-z][a-z-]+", key) and key not in NOT_COMPARED.split():
            said.setdefault(key, []).append(in_bytes(value.strip().strip('"')))
    for key, values in {**{key: [value] for key, value in DEFAULTS.items()}, **said}.items():
        answer = connection.call("CONFIG", "GET", key)
        live = answer[1] if isinstance(answer, list) and len(answer) > 1 else " ".join(values)
        if live != " ".join(values) and key != "unixsocketperm":
            yield key, " ".join(values), live


def in_bytes(value: str) -> str:
    """Return a size as CONFIG GET tells it, anything else as it is."""
    size = re.fullmatch(r"(\d+)mb", value)
    return str(int(size[1]) << 20) if size else value


@apart
def rights(name: str, config: Path, connection: Redis) -> Iterator[Finding]:
    """Compare the users of the running server with those of its file, and try what they must be able to do."""
    answer = connection.call("ACL", "LIST")
    live = {line.split()[1]: line.split() for line in answer} if isinstance(answer, list) else {}
    if "nopass" in live.get("default", []):
        yield Finding(CRITICAL, f"everybody may use Redis {name} without a password", "RedisDenies", RIGHTS)
    for user, words in re.findall(r"^user (\S+) (.*)$", files.read(config), re.MULTILINE):
        if user not in live:
            yield Finding(CRITICAL, f"Redis {name} does not know the user {user} of its file", "RedisDenies", RIGHTS)
        elif "off" in live[user]:
            yield Finding(CRITICAL, f"the user {user} of Redis {name} is switched off", "RedisDenies", RIGHTS)
        elif {word for word in words.split() if word[0] == "#"} - set(live[user]):
            changed = f"the running Redis {name} has another password for the user {user} than {config}"
            yield Finding(CRITICAL, changed, "RedisDenies", RIGHTS)
        elif lost := missing(words, " ".join(live[user]), connection):
            what = f"the user {user} of the running Redis {name} has lost {quote(' '.join(lost))} of {config}"
            yield Finding(CRITICAL, what, "RedisDenies", RIGHTS)
        if more := set(live.get(user, [])) & {"nopass", "+@all", "~*"} - set(words.split()):
            what = f"the user {user} of the running Redis {name} has more than {config} says: {' '.join(sorted(more))}"
            yield Finding(WARNING, what, "RedisDenies", RIGHTS)
    denied: dict[str, str] = {}
    for user, command in re.findall(r"^# may (\S+) (.*)$", files.read(config), re.MULTILINE):
        if user in live and user not in denied and not str(_try(connection, user, command)).startswith("OK"):
            denied[user] = command
    for user, command in denied.items():
        what = f"Redis {name} denies its user {user} what its file allows: {command}"
        yield Finding(CRITICAL, what, "RedisDenies", RIGHTS)


def missing(meant: str, live: str, connection: Redis) -> list[str]:
    """Return the keys, channels and commands of a user's rules that the running server does not have.

    Selectors are left to what the user is tried with, and so are commands beside categories.
    """
    wanted, has = (re.sub(r"\([^)]*\)", "", rules).split() for rules in (meant, live))
    whole = {"~": "~*", "%": "~*", "&": "&*", "+": "+@all"}
    told = [word for word in wanted if word[0] in ("~%&" if any("@" in word for word in wanted) else "~%&+")]
    allowed = {*(word for word in has if word[0] != "+"), *(f"+{command}" for command in commands_of(has, connection))}
    return [word for word in told if word not in allowed and whole[word[0]] not in has]


def commands_of(rules: list[str], connection: Redis) -> set[str]:
    """Return the commands that rules allow; Redis 7.0 makes categories of commands: ``+@transaction -discard``."""
    allowed: set[str] = set()
    for word in rules:
        if word == "-@all":
            allowed.clear()
        elif word[0] in "+-" and word != "+@all":
            answer: object = connection.call("ACL", "CAT", word[2:]) if word[1] == "@" else [word[1:]]
            named = {str(name) for name in answer} if isinstance(answer, list) else set()
            allowed = allowed | named if word[0] == "+" else allowed - named
    return allowed


def _try(connection: Redis, user: str, command: str) -> object:
    try:
        return connection.call("ACL", "DRYRUN", user, *command.split())
    except RedisError as error:
        return "OK" if "unknown" in str(error).lower() else error


@apart
def denials(name: str, connection: Redis) -> Iterator[Finding]:
    """Name who was denied what lately."""
    log = connection.call("ACL", "LOG", "20")
    told = set()
    for entry in log if isinstance(log, list) else []:
        fields = dict(zip(entry[::2], entry[1::2], strict=False))
        who = f"{fields['username']}: {fields['reason']} {fields['object']}"
        if fields["reason"] != "auth" and float(fields["age-seconds"]) < RECENT and who not in told:
            told.add(who)
            yield Finding(WARNING, f"Redis {name} has denied {who}", "RedisDenies", RIGHTS)
