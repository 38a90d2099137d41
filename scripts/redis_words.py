#!/usr/bin/env python3
"""Write down what a release of Redis knows: its commands, categories and options with the values that they take.

The preflight judges an inventory by it, before any Redis is installed. Run it for a server of each release of Debian::

    redis-server --port 7000 --save '' --daemonize yes && scripts/redis_words.py 7000
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import redis

FILE = Path(__file__).parents[1] / "roles/redis/filter_plugins/redis_words.json"
NO_VALUE = "not a value"


def kind(server: redis.Redis, name: str, value: str) -> Any:
    """Return what an option takes: bool, number, memory, text or another form; its choices; or a number's bounds."""
    found, refusal = "text", refused(server, name, NO_VALUE)
    if not refusal:
        server.config_set(name, value)
    elif "immutable" in refusal or "protected" in refusal:
        found = "bool" if value in ("yes", "no") else "number" if re.fullmatch(r"-?[0-9]+", value) else "text"
    elif choices := re.search(r"one of the following: (.*)", refusal):
        return choices[1].split(", ")
    else:
        words = {"'yes' or 'no'": "bool", "must be a memory value": "memory", "integer": "number"}
        found = next((kind for word, kind in words.items() if word in refusal), "form")
    if found in ("number", "memory") and not re.search("immutable|protected", refusal):
        for number in ("-9223372036854775808", "0", "9223372036854775807"):
            if bounds := re.search(r"between (-?[0-9]+) and (-?[0-9]+)", refused(server, name, number)):
                return {"kind": found, "least": int(bounds[1]), "most": int(bounds[2])}
        server.config_set(name, value)
    return found


def refused(server: redis.Redis, name: str, value: str) -> str:
    """Return what Redis says against a value, empty when it takes it."""
    try:
        server.config_set(name, value)
    except redis.ResponseError as error:
        return str(error)
    return ""


def words(server: redis.Redis) -> dict[str, Any]:
    """Return what the server knows."""
    options = server.config_get("*")

    def ask(*words: str) -> list[str]:
        return sorted(server.execute_command(*words))  # type: ignore[no-untyped-call]

    return {
        "commands": ask("COMMAND LIST"),
        "writing": ask("COMMAND LIST", "FILTERBY", "ACLCAT", "write"),
        "categories": ask("ACL CAT"),
        "options": {name: kind(server, str(name), str(value)) for name, value in sorted(options.items())},
    }


def main() -> None:
    """Put the words of the server at this port into the file, by its version."""
    server = redis.Redis(port=int(sys.argv[1]), decode_responses=True)
    version = ".".join(server.info("server")["redis_version"].split(".")[:2])
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    known[version] = words(server)
    lines = [
        f'"{release}": {{\n' + ",\n".join(f' "{topic}": {json.dumps(of)}' for topic, of in found.items()) + "}"
        for release, found in sorted(known.items())
    ]
    FILE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
