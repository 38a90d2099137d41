"""Filters of the redis role: what a memory size is in bytes, and what is wrong with an inventory's values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from cryptography import x509

# redis.conf: 1k is 1000 bytes, 1kb is 1024.
UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
MEGABYTE = 1024**2

# Set by the role's variables or by Debian's unit, or not comparable with a running server.
RESERVED_SETTINGS = {
    *(
        "aclfile",
        "appendfsync",
        "appendonly",
        "bind",
        "daemonize",
        "databases",
        "dir",
        "include",
        "loadmodule",
        "logfile",
    ),
    *("maxclients", "maxmemory", "maxmemory-policy", "pidfile", "port", "protected-mode", "rename-command"),
    *("requirepass", "save", "supervised", "unixsocket", "unixsocketperm", "user"),
    *("tls-port", "tls-cert-file", "tls-key-file", "tls-ca-cert-file", "tls-auth-clients", "tls-replication"),
    *("replicaof", "slaveof", "replica-announce-ip", "masteruser", "masterauth"),
    *("min-replicas-to-write", "min-replicas-max-lag", "repl-backlog-size"),
    *("min-slaves-to-write", "min-slaves-max-lag", "slave-announce-ip", "cluster-enabled", "tls-cluster"),
    # With another name of its files a server starts empty.
    *("appenddirname", "appendfilename", "dbfilename"),
}
# What an inventory of the whole platform sets instead.
FROM_THE_PLATFORM = {
    "maxmemory": "; the platform takes it from stack_redis_maxmemory, for data from stack_redis_data_maxmemory"
}
# Commands that an older Redis does not know; it rejects a whole rule for one unknown word.
COMMANDS_SINCE = {"client|setinfo": (7, 2)}


def redis_rules(rules: list[str], version: str) -> str:
    """Join a user's rules, without those about commands that this version of Redis does not know."""
    known = tuple(int(number) for number in version.split(".")[:2])
    return " ".join(rule for rule in rules if COMMANDS_SINCE.get(rule.lstrip("+-"), known) <= known)


def redis_password_rules(passwords: list[str]) -> str:
    """Turn passwords into the rules that let them in: their SHA-256, each once."""
    return " ".join(dict.fromkeys("#" + hashlib.sha256(str(password).encode()).hexdigest() for password in passwords))


def redis_script_files(texts: list[str], directory: str) -> list[dict[str, str]]:
    """Return the files of Lua scripts, named after their digests as Redis names them."""
    digests = {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): text for text in texts}
    return [{"path": f"{directory}/{digest}.lua", "content": text} for digest, text in sorted(digests.items())]


def is_strong(password: object) -> bool:
    """Tell whether a password can be neither guessed nor misread in a configuration file."""
    text = str(password)
    return (
        re.fullmatch(r"""[!-~]{16,}""", text) is not None
        and not set(text) & set("\"'\\")
        and len(set(text)) >= 8
        and "your_strong_password" not in text.lower()
    )


def user_errors(instance: dict[str, Any]) -> Iterator[str]:
    """Say in one sentence each what is wrong with the further users of one instance."""
    variable = f"redis_users of instance {instance['name']}"
    names = [str(user["name"]) for user in instance["users"]]
    wrong = [name for name in names if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or name == "default"]
    if wrong or len(set(names)) < len(names):
        yield (
            f"{variable} has the names {', '.join(names)}, and each must be unique, made of a-z, 0-9 and "
            '"-", and not default.'
        )
    for user in instance["users"]:
        if not user["passwords"] or not all(map(is_strong, user["passwords"])):
            yield (
                f"{variable} gives {user['name']} a password that is too weak (it is not shown), and each must be as "
                "strong as redis_password."
            )
        if broken := [rule for rule in user["rules"] if not re.fullmatch(r"(?!nopass)[^<>#!\x00-\x1f].*", rule)]:
            yield (
                f"{variable} gives {user['name']} the rules {json.dumps(broken)}, and a rule must be one line and no "
                "password."
            )


def redis_bytes(value: object, host_memory: int) -> int:
    """Turn a memory size as Redis writes it, or a share of the host's memory, into bytes."""
    match = re.fullmatch(r"([0-9]+)(%|[a-z]*)", str(value).lower())
    if match is None or match[2] not in {"%", *UNITS}:
        raise ValueError(f"{value!r} is not a memory size")
    number, unit = int(match[1]), match[2]
    return host_memory * number // 100 if unit == "%" else number * UNITS[unit]


def is_option(name: object, value: object) -> bool:
    """Return whether this can be one line of redis.conf; ``redis-server`` validates its meaning."""
    line = isinstance(value, str | int | float) and re.search(r"[\x00-\x1f\x7f]", str(value)) is None
    return line and re.fullmatch(r"[A-Za-z0-9-]+", str(name)) is not None


def instance_errors(instance: dict[str, Any], host_memory: int) -> Iterator[str]:
    """Say in one sentence each what is wrong with one instance's settings."""

    def error(option: str, rule: str, shown: object = None) -> str:
        value = json.dumps(instance[option] if shown is None else shown, default=str)
        place = FROM_THE_PLATFORM.get(option, "")
        return f"redis_{option} of instance {instance['name']} is {value}, and it must be {rule}{place}."

    def malformed(option: str, pattern: str) -> list[object]:
        return [entry for entry in instance[option] if not re.fullmatch(pattern, str(entry))]

    if not is_strong(instance["password"]):
        yield (
            f"redis_password of instance {instance['name']} is too weak (its value is not shown), and it must be at "
            "least 16 printable ASCII characters, 8 of them distinct, without space, quotes and backslash, and not an "
            "example's."
        )
    yield from user_errors(instance)
    # A worker, an API process, Flower and an exporter have some ten connections each.
    for option, least, most in (("port", 1, 65535), ("maxclients", 64, 65000), ("databases", 1, 1024)):
        if not least <= int(instance[option]) <= most:
            yield error(option, f"from {least} to {most}")
    if not instance["bind"] or malformed("bind", r"\*|-?[0-9A-Za-z:._%-]*[0-9A-Za-z:*]"):
        yield error("bind", "a list of at least one address")
    try:
        limit = redis_bytes(instance["maxmemory"], host_memory)
    except ValueError:
        yield error(
            "maxmemory", "bytes (2147483648), Redis notation (512mb, 2gb) or a share of the host's memory (25%)"
        )
    else:
        if not MEGABYTE <= limit <= host_memory:
            yield error(
                "maxmemory", f"from 1mb to the host's memory, {host_memory // MEGABYTE}mb (0 would mean no limit)"
            )
    if wrong := malformed("save", r"[1-9][0-9]* [1-9][0-9]*"):
        yield error("save", 'a list of "SECONDS CHANGES", such as "900 1"', wrong)
    if wrong := malformed("disabled_commands", r"[a-z]+([|][a-z-]+)?"):
        yield error("disabled_commands", "a list of commands in lower case", wrong)
    # Redis reads names of options in any case.
    if reserved := sorted(str(name) for name in instance["extra_settings"] if str(name).lower() in RESERVED_SETTINGS):
        yield error("extra_settings", "without what the role or Debian's unit sets itself", reserved)
    if odd := {name: value for name, value in instance["extra_settings"].items() if not is_option(name, value)}:
        yield error("extra_settings", "options by their names, each with a number, a switch or one line of text", odd)


def redis_errors(instances: list[dict[str, Any]], defaults: dict[str, Any], host_memory: int) -> list[str]:
    """Say in one sentence each what is wrong with the values of all instances: variable, value, rule."""
    if not instances:
        return ["redis_instances is empty, and it must be a list of at least one instance."]
    complete = [defaults | instance for instance in instances]
    names = [str(instance["name"]) for instance in complete]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) for name in names):
        return [
            f'redis_instances has the names {", ".join(names)}, and each must be unique and made of a-z, 0-9 and "-".'
        ]

    errors = [sentence for instance in complete for sentence in instance_errors(instance, host_memory)]
    ports = [int(instance["port"]) for instance in complete]
    if len(set(ports)) < len(ports):
        shown = ", ".join(f"{name} on {port}" for name, port in zip(names, ports, strict=True))
        errors.append(f"redis_instances has {shown} (port, else redis_port), and each must have a port of its own.")
    if not errors:
        total = sum(redis_bytes(instance["maxmemory"], host_memory) for instance in complete)
        if total > host_memory:
            errors.append(
                f"redis_instances may use {total // MEGABYTE}mb together (maxmemory, else redis_maxmemory or "
                f"stack_redis_maxmemory), and it must "
                f"be at most the host's memory, {host_memory // MEGABYTE}mb."
            )
    return errors


def redis_tls_errors(certificate: str, key: str, ca: str) -> list[str]:
    """Say in one sentence each what is wrong with certificate and key; Redis itself tries whether they fit."""
    given = {"redis_tls_certificate": certificate, "redis_tls_key": key, "redis_tls_ca": ca}
    missing = [name for name, value in given.items() if not value.strip()]
    if certificate.strip() or key.strip():
        if missing:
            return [f"{' and '.join(missing)} must be given too: certificate, key and CA belong together."]
        kinds = {"redis_tls_certificate": "CERTIFICATE", "redis_tls_key": "PRIVATE KEY", "redis_tls_ca": "CERTIFICATE"}
        wrong = [
            f"{name} must be PEM (-----BEGIN {kinds[name]}-----); its value is not shown."
            for name, value in given.items()
            if not re.match(rf"-----BEGIN ([A-Z]+ )?{kinds[name]}-----\n", value.strip())
        ]
        if wrong:
            return wrong
    return [
        f"{name} holds no certificate in PEM that can be read (its value is not shown): give it whole."
        for name in ("redis_tls_certificate", "redis_tls_ca")
        if given[name].strip() and not _is_readable(given[name])
    ]


def _is_readable(certificates: str) -> bool:
    try:
        return bool(x509.load_pem_x509_certificates(certificates.encode()))
    except ValueError:
        return False


class FilterModule:
    """The filters under their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about them."""
        return {
            "redis_bytes": redis_bytes,
            "redis_password_rules": redis_password_rules,
            "redis_errors": redis_errors,
            "redis_rules": redis_rules,
            "redis_script_files": redis_script_files,
            "redis_tls_errors": redis_tls_errors,
        }
