"""Packet filters, queues and routes: what drops or delays packets that must come through."""

import re
from collections import Counter
from collections.abc import Iterator

from hosttools import files, process
from hosttools.doctor.checks import apart
from hosttools.findings import CRITICAL, NETWORK, NOTE, WARNING, Finding

RULES = "/etc/nftables-platform.conf"


@apart
def check(ports: list[int]) -> Iterator[Finding]:
    """Look for our table and its rules, and for others that drop what must come through."""
    listing = ("nft", "--stateless", "--terse", "list", "table", "inet", "platform")
    shown = process.run(*listing)
    there, table = shown.ok, shown.output
    if not there:
        yield Finding(CRITICAL, "the firewall's table inet platform is gone: every port is open", "", NETWORK)
    wanted = Counter(re.findall(r'accept comment "([^"]+)"', files.read(RULES)))
    for name in wanted - Counter(re.findall(r'accept comment "([^"]+)"', table)) if there else ():
        what = f"the firewall has lost its rule for {name}: systemctl restart platform-firewall"
        yield Finding(CRITICAL, what, "BrokerUnreachable", NETWORK)
    # An empty network namespace shows how this nft prints the file.
    printed = process.run("unshare", "--net", "sh", "-c", f"nft --file {RULES} && {' '.join(listing)}").output
    meant = Counter(drops(printed))
    for rule in Counter(drops(table)) - meant if meant else ():
        what = f"a rule of the table inet platform that is not ours drops packets: {rule}"
        yield Finding(CRITICAL, what, "BrokerUnreachable", NETWORK)
    yield from egress()
    yield from foreign_rules(ports)
    for line in process.run("tc", "qdisc", "show").output.splitlines():
        if re.search(r"\b(netem|tbf)\b", line):
            what = f"somebody slows packets down: {line.strip()}"
            yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)
    for line in process.run("ip", "route", "show").output.splitlines():
        if line.startswith(("blackhole", "unreachable", "prohibit")):
            yield Finding(WARNING, f"a route leads nowhere: {line}", "BrokerUnreachable", NETWORK, suspect=True)


def egress() -> Iterator[Finding]:
    """Tell how many packets of tasks were refused since the rules were loaded."""
    shown = process.run("nft", "list", "counter", "inet", "platform", "egress_refused").output
    counter = re.search(r"packets (\d+)", shown)
    if counter and int(counter[1]):
        what = f"the firewall has refused {counter[1]} packets of tasks: journalctl -k -g 'platform egress'"
        yield Finding(NOTE, what, "TaskEgressDenied", NETWORK)


def drops(rules: str) -> list[str]:
    """Return the rules that end in a drop."""
    return [
        line for line in map(str.strip, rules.splitlines()) if re.search(r"(^|[^:] )(drop|reject)( with .*)?$", line)
    ]


@apart
def foreign_rules(ports: list[int]) -> Iterator[Finding]:
    """Name rules of other tables than ours that drop packets for our ports, or for all."""
    table, base = "", False
    for line in map(str.strip, process.run("nft", "list", "ruleset").output.splitlines()):
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            base = False
        elif words[:3] == ["type", "filter", "hook"]:
            base = table != "inet platform" and words[3] in ("input", "output", "prerouting")
            if base and "policy drop" in line:
                what = f"the table {table}, not ours, drops what it does not know"
                yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)
        elif table != "inet platform" and re.search(r"\b(drop|reject)\b", line):
            number = re.search(r"[ds]port (\{[^}]*\}|\S+)", line)
            if any(re.search(rf"\b{port}\b", number[1]) for port in ports) if number else base:
                what = f"a rule of the table {table} that is not ours drops packets: {line}"
                yield Finding(WARNING, what, "BrokerUnreachable", NETWORK, suspect=True)
