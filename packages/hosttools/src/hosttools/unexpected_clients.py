"""Unexpected clients: who was denied by Redis, failed to log in, or comes from an unknown host. Prints causes as JSON.

Runs on the host as root, and changes nothing.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator

from hosttools import systemd
from hosttools.findings import Cause, show
from hosttools.redis_client import Instance, RedisError

TIMEOUT = 20
# Of the journal.
SINCE = "-24 hours"
# Failed logins within that time which are nobody's slip.
FAILED = 10
# The API's line of a request, and Flower's, as JSON.
LOGIN = re.compile(r'HTTP/1\.1\\" 401|"message": "401 ')


def redis(host: str, name: str, known: set[str]) -> Iterator[Cause]:
    """Look at one instance's refusals and clients."""
    try:
        with Instance(name).connect(TIMEOUT) as connection:
            log, clients = connection.call("ACL", "LOG", "100"), connection.call("CLIENT", "LIST")
    except (OSError, RedisError) as error:
        sys.exit(f"Redis {name} does not answer: {error}.")
    refused = Counter[str]()
    for entry in (dict(zip(fields[::2], fields[1::2], strict=False)) for fields in log):
        where = re.search(r" addr=(\S+):\d+", f" {entry.get('client-info')}")
        refused[f"{entry.get('reason')} of {entry.get('username')} from {where[1] if where else '?'}"] += entry["count"]
    for what, times in refused.most_common(3):
        yield Cause("refused", f"{host}: Redis {name} refused {times} times: {what}", name, 1)
    addresses = Counter(re.findall(r"\baddr=([0-9a-f.:\[\]]+):\d+ ", clients))
    for address, count in addresses.items():
        if address.strip("[]") not in known:
            what = f"{host}: {address}, none of our hosts, has {count} connections to Redis {name}"
            yield Cause("unexpected", what, name, 0)


def logins(host: str, prefix: str) -> Iterator[Cause]:
    """Count failed logins in the journals of API, console and Flower."""
    for service in ("api", "console", "flower"):
        journal = systemd.journal(f"--unit={prefix}-{service}", f"--since={SINCE}", timeout=TIMEOUT)
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
    show(causes)
