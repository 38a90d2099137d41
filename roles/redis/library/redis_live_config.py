#!/usr/bin/python
"""Ansible module: apply a configuration file to a running Redis, without a restart where possible."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: redis_live_config
short_description: Apply a Redis configuration file to the running server
description:
  - Compares the file with the running server over the Unix socket that the file names, and applies what differs with
    C(CONFIG SET) and C(ACL SETUSER). Says whether a restart is needed for the rest.
  - Password and addresses come from the file.
options:
  config_file:
    description: Path of the configuration file. Only plain directives, one per line.
    type: path
    required: true
  previous_passwords:
    description: Passwords of the default user to try when the running server does not know the file's yet.
    type: list
    elements: str
    default: []
  keep_rights:
    description:
      - Leave to the users what they may besides the file's rules, as selectors, and leave users in that the file does
        not have. For clients that are changed after Redis; a run without it takes all of that back.
    type: bool
    default: false
  queues:
    description: Names of all queues. While others hold tasks, rights are kept as with C(keep_rights).
    type: list
    elements: str
    default: []
  disconnect_older_than:
    description: End connections of the file's users that are older than so many seconds. None is ended without it.
    type: int
  settle:
    description: Seconds to wait after rights have changed, before C(denied) is looked at.
    type: int
    default: 0
  denied_within:
    description: Seconds before this module's start from which on C(denied) counts.
    type: int
    default: 60
  timeout:
    description: Seconds to wait for each answer, and for the server to finish loading.
    type: int
    default: 60
"""

RETURN = r"""
denied:
  description: Commands that the server has lately denied to the file's users (ACL LOG).
  type: list
  returned: always
unnamed:
  description: Which queues that C(queues) does not name hold tasks, one sentence each.
  type: list
  returned: always
applied:
  description: Names of the options that were changed on the running server (in check mode, would be).
  type: list
  returned: always
restart_required:
  description: Whether only a restart makes the server run with this file.
  type: bool
  returned: always
reasons:
  description: Why a restart is required, one sentence each.
  type: list
  returned: always
"""

MEMORY_UNITS = {"b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}


class RedisError(Exception):
    """An error reply."""


class Redis:
    """A connection over a Unix socket, speaking RESP2."""

    def __init__(self, path: str, timeout: float) -> None:
        """Connect to the socket at this path."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(path)
        self._replies = self._socket.makefile("rb")

    def call(self, *words: str) -> Any:
        """Send one command and return its reply; an error reply is raised."""
        parts = [word.encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(request)
        return self._reply()

    def _reply(self) -> Any:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RedisError(rest)
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        length = int(rest)
        if length < 0:
            return None
        if kind == b"*":
            return [self._reply() for _ in range(length)]
        return self._replies.read(length + 2)[:-2].decode(errors="replace")


def parse(text: str) -> dict[str, str]:
    """Read the directives of a configuration file. A repeated one (save) is joined as CONFIG GET shows it."""
    options: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(" ")
        # Redis knows quotes around a value, but no comment at the end of a line.
        value = " ".join(shlex.split(rest)) if rest.strip()[:1] in ("'", '"') else " ".join(rest.split())
        name = name.lower()
        if name == "user":
            continue
        options[name] = f"{options[name]} {value}" if name in options else value
    return options


def parse_users(text: str) -> dict[str, list[str]]:
    """Read the users of a configuration file: the rules of each, by its name."""
    lines = [line.split() for line in text.splitlines() if line.startswith("user ")]
    return {name: rules for _, name, *rules in lines}


def same(wanted: str, current: str) -> bool:
    """CONFIG GET shows a memory size in bytes, whatever unit the file uses."""
    number = wanted.lower().rstrip("bkmg")
    unit = wanted.lower()[len(number) :]
    in_bytes = str(int(number) * MEMORY_UNITS[unit]) if number.isdigit() and unit in MEMORY_UNITS else wanted
    return current in (wanted, in_bytes)


def get(redis: Redis, name: str) -> str | None:
    """Return an option of the running server, None when it has no such option."""
    reply = redis.call("CONFIG", "GET", name)
    return dict(zip(reply[::2], reply[1::2], strict=True)).get(name)


def listed_rules(redis: Redis, name: str) -> str:
    """Return a user's rules as Redis writes them down, nothing when there is no such user.

    Redis 7 calls what came by ACL SETUSER sanitize-payload, and the same from its file not.
    """
    rules = (line.partition(f" {name} ")[2] for line in redis.call("ACL", "LIST") if line.split()[1] == name)
    return next(rules, "").replace(" sanitize-payload", "")


def spelled(redis: Redis, rules: list[str]) -> str:
    """Return rules as Redis writes them down: it has its own order and spelling."""
    candidate = f"candidate-{secrets.token_hex(8)}"
    redis.call("ACL", "SETUSER", candidate, "reset", *rules)
    try:
        return listed_rules(redis, candidate)
    finally:
        redis.call("ACL", "DELUSER", candidate)


def selectors(rules: str) -> list[str]:
    """Return the selectors that allow what written down rules do, of which the first is for what is outside of any."""
    words = [word for word in re.sub(r"\([^)]*\)", "", rules).split() if word[0] in "~%&+-" or word.startswith("all")]
    return [f"({' '.join(words)})", *re.findall(r"\([^)]*\)", rules)]


def apply_users(redis: Redis, users: dict[str, list[str]], keep_rights: bool, check_mode: bool) -> list[str]:
    """Return the names of the users that were changed. Clients that are logged in stay so."""
    changed = []
    for name, rules in users.items():
        wanted, current, kept = spelled(redis, rules), listed_rules(redis, name), []
        if keep_rights and current:
            kept = [rule for rule in selectors(current) if rule not in selectors(wanted)]
            wanted = spelled(redis, [*rules, *kept])
        if wanted != current:
            if not check_mode:
                redis.call("ACL", "SETUSER", name, "reset", *rules, *kept)
            changed.append(f"user {name}")
    for name in sorted(set(redis.call("ACL", "USERS")) - {"default", *users}) if not keep_rights else []:
        if not check_mode:
            redis.call("ACL", "DELUSER", name)
        changed.append(f"user {name}")
    return changed


def disconnect(redis: Redis, names: set[str], seconds: int) -> list[str]:
    """End connections of these users that were opened more than so many seconds ago; return what they were.

    Redis counts an age in begun seconds, so this connection can be one of them; the command never ends it (SKIPME).
    """
    lines = [dict(word.split("=", 1) for word in line.split()) for line in redis.call("CLIENT", "LIST").splitlines()]
    old = [line for line in lines if line["user"] in names and int(line["age"]) > seconds]
    ended = [line for line in old if redis.call("CLIENT", "KILL", "ID", line["id"])]
    return [f"connection of {line['user']} from {line['addr']}" for line in ended]


def denials(redis: Redis, names: set[str], seconds: float) -> list[str]:
    """Return what these users were not permitted, one sentence each; wrong passwords do not count."""
    entries = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in redis.call("ACL", "LOG")]
    return [
        f"{entry['username']} was denied the {entry['reason']} {entry['object']} {entry['count']} times."
        for entry in entries
        if entry["username"] in names and entry["reason"] != "auth" and float(entry["age-seconds"]) <= seconds
    ]


def unnamed_queues(redis: Redis, queues: list[str]) -> list[str]:
    """Say which queues hold tasks and are not among ``queues``, one sentence each.

    A queue is there while it holds something: a list NAME, what workers hold of it in unacked:NODE:NAME, deferred:NAME.
    """
    held: Counter[str] = Counter()
    cursor = "0"
    while True:
        cursor, keys = redis.call("SCAN", cursor, "COUNT", "10000", "TYPE", "list")
        for key in keys:
            kind, _, rest = key.partition(":")
            name = {"deferred": rest, "unacked": rest.partition(":")[2]}.get(kind, key)
            if name not in queues and not name.endswith(".pidbox") and is_task(redis.call("LINDEX", key, "-1")):
                held[name] += redis.call("LLEN", key)
        if cursor == "0":
            break
    return [
        f"The queue '{name}' holds {count} tasks, but no pool and no route of the inventory names it: leave it in until"
        f" they have run, or move what waits with playbooks/ops/move_queue.yml -e from={name} -e to=QUEUE."
        for name, count in sorted(held.items())
    ]


def is_task(entry: str | None) -> bool:
    """Tell whether an entry of a list has the form that Celery gives a task (kombu's message, Celery's header)."""
    try:
        message = json.loads(entry or "")
        return "properties" in message and "task" in message["headers"]
    except (ValueError, TypeError, KeyError):
        return False


def wait_for_append_only_file(redis: Redis, deadline: float) -> None:
    """Until the first rewrite is on the disk, a restart would find no append-only file, and so no data."""
    while True:
        lines = redis.call("INFO", "persistence").splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        if info["aof_rewrite_in_progress"] == "0" and info["aof_rewrite_scheduled"] == "0":
            if info["aof_last_bgrewrite_status"] != "ok":
                raise RedisError("the append-only file could not be written")
            return
        if time.monotonic() > deadline:
            raise RedisError("the append-only file is still being written")
        time.sleep(0.1)


def apply(redis: Redis, options: dict[str, str], timeout: float, check_mode: bool) -> tuple[list[str], list[str]]:
    """Returns the names of the changed options, and the reasons for a restart."""
    applied, reasons = [], []
    for name, wanted in options.items():
        before = get(redis, name)
        if before is None:
            reasons.append(f"The running server does not know the option {name}.")
            continue
        if same(wanted, before):
            continue
        if name.startswith("tls-") or (name == "port" and get(redis, "tls-port") != options.get("tls-port", "0")):
            # The same port cannot change between plain and TLS while it is open, nor certificate and key one by one.
            reasons.append(f"The option {name} is set at the start.")
            continue
        if check_mode:
            applied.append(name)
            continue
        try:
            redis.call("CONFIG", "SET", name, wanted)
        except RedisError as error:
            if "immutable" not in str(error) and "protected" not in str(error):
                raise
            reasons.append(f"The option {name} can only be set at the start.")
            continue
        if name == "appendonly" and wanted == "yes":
            wait_for_append_only_file(redis, time.monotonic() + timeout)
        # Redis may spell a value differently from the file: it is a change only if something changed.
        if get(redis, name) != before:
            applied.append(name)
    return applied, reasons


def log_in(options: dict[str, str], previous_passwords: list[str], timeout: float) -> Redis:
    """A connection that is logged in and past the loading of the data."""
    redis = Redis(options["unixsocket"], timeout)
    passwords = [options["requirepass"], *previous_passwords] if "requirepass" in options else []
    for password in passwords:
        try:
            redis.call("AUTH", password)
            break
        except RedisError:
            if password == passwords[-1]:
                raise
    deadline = time.monotonic() + timeout
    while True:
        try:
            redis.call("PING")
            return redis
        except RedisError as error:
            if not str(error).startswith("LOADING") or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config_file": {"type": "path", "required": True},
            "previous_passwords": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "denied_within": {"type": "int", "default": 60},
            "settle": {"type": "int", "default": 0},
            "disconnect_older_than": {"type": "int"},
            "keep_rights": {"type": "bool", "default": False},
            "queues": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    path, timeout = module.params["config_file"], module.params["timeout"]
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        if module.check_mode:
            missing = [f"{path} is not written yet."]
            module.exit_json(changed=False, applied=[], restart_required=True, reasons=missing, denied=[], unnamed=[])
        module.fail_json(msg=f"{path} does not exist.")
    options, users = parse(text), parse_users(text)
    if "unixsocket" not in options:
        module.fail_json(msg=f"{path} names no unixsocket, which the module needs to query the server.")

    # Whatever this module prints, these are masked.
    module.no_log_values.update(options[name] for name in ("requirepass", "masterauth") if options.get(name))

    applied: list[str] = []
    reasons: list[str] = []
    denied: list[str] = []
    unnamed: list[str] = []
    began = time.monotonic()
    try:
        redis = log_in(options, module.params["previous_passwords"], timeout)
    except OSError as error:
        reasons = [f"No server answers at {options['unixsocket']}: {error.strerror or error}."]
    except RedisError as error:
        reasons = [f"The running server does not let the file's password in: {error}"]
    else:
        try:
            applied, reasons = apply(redis, options, timeout, module.check_mode)
            unnamed = unnamed_queues(redis, module.params["queues"]) if module.params["queues"] else []
            keep_rights = module.params["keep_rights"] or bool(unnamed)
            if changed := apply_users(redis, users, keep_rights, module.check_mode):
                applied += changed
                time.sleep(module.params["settle"])
            if module.params["disconnect_older_than"] is not None and not module.check_mode:
                applied += disconnect(redis, set(users), module.params["disconnect_older_than"])
            # The wait above is part of the run, too.
            seconds = module.params["denied_within"] + time.monotonic() - began
            denied = denials(redis, set(users), seconds)
        except (RedisError, OSError) as error:
            module.fail_json(msg=f"The running server rejected a change from {path}: {error}")
        with contextlib.suppress(OSError):
            redis.call("QUIT")
    module.exit_json(
        changed=bool(applied),
        applied=applied,
        restart_required=bool(reasons),
        reasons=reasons,
        denied=denied,
        unnamed=unnamed,
    )


if __name__ == "__main__":
    main()
