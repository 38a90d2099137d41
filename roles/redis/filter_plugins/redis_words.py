"""Filter of the redis role: validates Redis' own commands, rules and options before Redis is installed.

redis_words.json beside this file has the words of each release that Debian ships; scripts/redis_words.py writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

RELEASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())
# Left out of the rules for a Redis that does not know them (redis_values.py).
OF_NEWER_ONES = {"client|setinfo"}
UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
SIZE = r"[0-9]{1,19}(?:b|[kmg]b?)?"

# What the role, doctor, runbooks, backups and the switch-over run as the default user.
NEEDED = {
    *(
        "acl",
        "auth",
        "bgrewriteaof",
        "bgsave",
        "client",
        "config",
        "dbsize",
        "expire",
        "get",
        "hgetall",
        "hlen",
        "info",
    ),
    *("lindex", "llen", "memory", "ping", "pttl", "quit", "scan", "script", "select", "slowlog", "time", "ttl", "type"),
    *("zrange", "acl|cat", "acl|deluser", "acl|dryrun", "acl|list", "acl|log", "acl|setuser", "acl|users"),
    *("client|kill", "client|list", "client|pause", "client|unpause", "config|get", "config|resetstat", "config|set"),
    *("memory|purge", "memory|usage", "script|exists", "script|load", "slowlog|get"),
}
# Rules that a selector does not support. Rules that lock the user out (reset, resetpass) are left out.
OF_USERS = ("on", "off", "clearselectors", "sanitize-payload", "skip-sanitize-payload")
# Options whose values Redis gives a form of their own.
FORMS = {
    "client-output-buffer-limit": (
        rf"(?i)((normal|slave|replica|pubsub) {SIZE} {SIZE} [0-9]{{1,9}}( (?!$)|$))+",
        "like 'normal 0 0 0'",
    ),
    "latency-tracking-info-percentiles": (
        r"((100|[0-9]{1,2}([.][0-9]+)?)( (?!$)|$))*",
        "percentiles like '50 99 99.9'",
    ),
    "maxmemory-clients": (rf"(?i){SIZE}|(100|[1-9]?[0-9])%", "a size like 256mb, or a share like 5%"),
    "notify-keyspace-events": (r"[KEg$lshzxetdmnA]*", "classes of events, letters of KEg$lshzxetdmnA"),
    "syslog-facility": (r"(?i)user|local[0-7]", "user, or local0 to local7"),
    "tls-protocols": (r"(?i)(TLSv1([.][123])?( (?!$)|$))*", "protocols like 'TLSv1.2 TLSv1.3'"),
}
# Options that only a start sets, so that CONFIG SET does not report their bounds.
BOUNDS = {
    "cluster-port": (0, 65535),
    "io-threads": (1, 128),
    "socket-mark-id": (0, 2**32 - 1),
    "tcp-backlog": (0, 2**31 - 1),
}
LONGEST = 2**63 - 1
# A process' adjustment, as Linux takes it.
MOST_ADJUSTED = 2000
ONE_WORD = (r"[^\s\"'\\]*|\"[^\"\\]*\"", "one word, or a text in double quotes")


def known_words(version: str) -> dict[str, Any]:
    """Return the words of a release, 7.0 or 8.0; of another one, which an image may have, those of both."""
    if version in RELEASES:
        return RELEASES[version]
    found: dict[str, Any] = {"options": {}}
    for words in RELEASES.values():
        found["options"] |= words["options"]
        for topic in words.keys() - {"options"}:
            found[topic] = sorted({*found.get(topic, []), *words[topic]})
    return found


def meant(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word, with the likely one."""
    close = get_close_matches(word.lower(), known, n=1)
    return f": is {close[0]} meant?" if close else ": take it out."


def broken_option(name: str, value: object, options: Mapping[str, Any]) -> str:
    """Return the rule that the value of an option of redis.conf breaks, empty when Redis takes it."""
    kind, text = options[name], ("yes" if value else "no") if isinstance(value, bool) else str(value)
    least, most = BOUNDS.get(name, (-LONGEST - 1, LONGEST))
    if isinstance(kind, dict):
        kind, least, most = kind["kind"], kind["least"], kind["most"]
    if isinstance(kind, list):
        return "" if text.lower() in kind else f"one of {', '.join(kind)}"
    if kind == "bool":
        return "" if text.lower() in ("yes", "no") else "yes or no"
    if name == "oom-score-adj-values":
        numbers = [int(word) for word in text.split()] if re.fullmatch(r"(-?[0-9]{1,4} ?){3}", text) else []
        return "" if numbers and max(map(abs, numbers)) <= MOST_ADJUSTED else "three numbers from -2000 to 2000"
    if kind == "number":
        is_number = re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text)
        return "" if is_number and least <= int(text) <= most else f"a number from {least} to {most}"
    if kind == "memory":
        size = re.fullmatch(SIZE, text.lower()) and re.fullmatch(r"([0-9]+)([a-z]*)", text.lower())
        fits = size and max(least, 0) <= int(size[1]) * UNITS[size[2]] <= most
        return "" if fits else f"a size like 64mb, from {max(least, 0)} bytes"
    pattern, rule = FORMS.get(name, ONE_WORD)
    return "" if re.fullmatch(pattern, text) else rule


def broken_rules(rules: list[str], words: Mapping[str, Any]) -> list[str]:
    """Return the rules of ACL SETUSER that Redis would reject, or that would lock the user out."""
    everything: set[str] = set()
    return [
        word
        for word in re.findall(r"\([^()]*\)|\S+", " ".join(map(str, rules)))
        if not (_is_selector(word, words) or _is_rule(word, words, everything))
        and word.lstrip("+-") not in OF_NEWER_ONES
    ]


def _is_selector(word: str, words: Mapping[str, Any]) -> bool:
    everything: set[str] = set()
    if re.fullmatch(r"\([^()]*\)", word) is None:
        return False
    return all(each.lower() not in OF_USERS and _is_rule(each, words, everything) for each in word[1:-1].split())


def _is_rule(word: str, words: Mapping[str, Any], everything: set[str]) -> bool:
    """Tell whether Redis takes one word; a pattern after the one for all (in ``everything``) is an error to it."""
    given = word.lower()
    every = {"allkeys": "~", "~*": "~", "allchannels": "&", "&*": "&"}
    if given in every:
        everything.add(every[given])
        return True
    if pattern := re.match(r"(~|%(?:r|w|rw|wr)~|&)", given):
        return ("&" if pattern[1] == "&" else "~") not in everything
    if given in ("resetkeys", "resetchannels"):
        everything.discard("~" if given == "resetkeys" else "&")
        return True
    if given in ("allcommands", "nocommands", *OF_USERS) or given[1:] in [
        f"@{name}" for name in ("all", *words["categories"])
    ]:
        return True
    command = re.fullmatch(r"([+-])(([^|]+)([|][^|]+)?)", given)
    if command is None or command[2] in words["commands"]:
        return command is not None
    # Its first argument, of a command without subcommands, which may be allowed alone.
    has_subcommands = any(name.startswith(f"{command[3]}|") for name in words["commands"])
    return command[1] == "+" and bool(command[4]) and command[3] in words["commands"] and not has_subcommands


def word_errors(instance: Mapping[str, Any], version: str) -> Iterator[str]:
    """Say in one sentence each which words of one instance's settings Redis would not know, or which it needs."""
    words, of = known_words(version), f"of instance {instance['name']}"
    commands = set(words["commands"])
    disabled = [str(command) for command in instance["disabled_commands"]]
    if unknown := [command for command in disabled if command not in commands | OF_NEWER_ONES]:
        yield (
            f"redis_disabled_commands {of} is {json.dumps(unknown)}, and it must be commands that Redis {version}"
            f" knows, in lower case{meant(unknown[0], commands)}"
        )
    granted = {word for user in instance["users"] for word in re.findall(r"\+([a-z]+)", " ".join(user["rules"]))}
    if needed := [command for command in disabled if command in NEEDED | granted & set(words["writing"])]:
        yield (
            f"redis_disabled_commands {of} is {json.dumps(needed)}, and it must be without the commands that the"
            " platform itself uses, or whose effects Redis loads from its append-only file as the default user."
        )
    if wrong := broken_rules(instance["default_user_rules"], words):
        yield f"redis_default_user_rules {of} has {json.dumps(wrong)}, and each must be a rule of ACL SETUSER."
    for user in instance["users"]:
        if wrong := broken_rules(user["rules"], words):
            yield (
                f"redis_users {of} gives {user['name']} the rules {json.dumps(wrong)}, and each must be one that ACL"
                f" SETUSER of Redis {version} takes."
            )
        tried = [*user.get("may", []), *user.get("may_not", [])]
        if wrong := [line for line in tried if str(line).lower().split(" ")[0] not in commands]:
            yield f"redis_users {of} tries {json.dumps(wrong)} as {user['name']}, and each must be a command of Redis."
    for name, value in instance["extra_settings"].items():
        if (option := str(name).lower()) not in words["options"]:
            end = meant(option, words["options"])
            yield f"redis_extra_settings {of} has {name}, which Redis {version} does not know{end}"
        elif rule := broken_option(option, value, words["options"]):
            shown = json.dumps(value, default=str)
            yield f"redis_extra_settings {of} gives {name} the value {shown}, and it must be {rule}."


def redis_word_errors(instances: list[dict[str, Any]], defaults: dict[str, Any], version: str) -> list[str]:
    """Say it of all instances."""
    return [sentence for instance in instances for sentence in word_errors(defaults | instance, version)]


class FilterModule:
    """The filter under its name in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about it."""
        return {"redis_word_errors": redis_word_errors}
