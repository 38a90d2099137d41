#!/usr/bin/env python3
"""Who else has tried doors: refusals of Redis, failed logins, foreign clients. Prints causes as JSON.

Runs on the host as root, with the system's Python alone, and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE = 20
# Of the journal.
SINCE = "-24 hours"
# Failed logins within that time which are nobody's slip.
FAILED = 10
# The API's line of a request, and Flower's, as JSON.
LOGIN = re.compile(r'HTTP/1\.1\\" 401|"message": "401 ')


@dataclass
class Cause:
    """Something that a stranger may have done."""

    cause: str
    what: str
    subject: str
    rank: int


def say(*command: str, **environment: str) -> str:
    """Return what a command says.

    Raises:
        SystemExit: it takes too long.
    """
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            errors="replace",
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{command[0]} does not answer within {PATIENCE} s")
    return run.stdout


def redis(host: str, name: str, known: set[str]) -> Iterator[Cause]:
    """Look at one instance's refusals and clients."""
    suffix = "" if name == "main" else f"-{name}"
    password = re.search(r"^requirepass (\S+)", Path(f"/etc/redis/redis{suffix}.conf").read_text(), re.MULTILINE)
    client = ["redis-cli", "-s", f"/run/redis{suffix}/redis-server.sock"]
    login = password[1] if password else ""
    # Each entry is a list of names and values, a line each.
    log = say(*client, "ACL", "LOG", "100", REDISCLI_AUTH=login).splitlines()
    fields = list(zip(log[::2], log[1::2], strict=False))
    refused = Counter[str]()
    entry: dict[str, str] = {}
    for field, value in fields:
        entry[field] = value
        if field == "client-info":
            where = re.search(r" addr=(\S+):\d+", f" {value}")
            refused[f"{entry.get('reason')} of {entry.get('username')} from {where[1] if where else '?'}"] += int(
                entry["count"]
            )
    for what, times in refused.most_common(3):
        yield Cause("refused", f"{host}: Redis {name} refused {times} times: {what}", name, 1)
    clients = say(*client, "CLIENT", "LIST", REDISCLI_AUTH=login)
    addresses = Counter(re.findall(r"\baddr=([0-9a-f.:\[\]]+):\d+ ", clients))
    for address, count in addresses.items():
        if address.strip("[]") not in known:
            what = f"{host}: {address}, none of our hosts, has {count} connections to Redis {name}"
            yield Cause("stranger", what, name, 0)


def logins(host: str, prefix: str) -> Iterator[Cause]:
    """Count failed logins in the journals of API, console and Flower."""
    for service in ("api", "console", "flower"):
        journal = say("journalctl", "--output=cat", "--no-pager", f"--unit={prefix}-{service}", f"--since={SINCE}")
        failed = len(LOGIN.findall(journal))
        if failed > FAILED:
            yield Cause("logins", f"{host}: {failed} failed logins at {service} within 24 h", service, 2)


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    parser.add_argument("--known", action="append", default=[], metavar="ADDRESS", help="of one of our hosts")
    arguments = parser.parse_args()
    known = {"127.0.0.1", "::1", *arguments.known}
    causes = [cause for name in arguments.redis for cause in redis(arguments.host, name, known)]
    causes += logins(arguments.host, arguments.prefix)
    print(json.dumps([asdict(cause) for cause in causes]))


if __name__ == "__main__":
    main()
