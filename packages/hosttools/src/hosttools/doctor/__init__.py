"""What is wrong with this host: looks at everything, changes nothing, prints findings as JSON.

Runs on the host as root. Thresholds are those of the alerts (roles/monitoring/templates/alerts.yml.j2), whose pages say
why. A module for each part of what depends on one another, with ``check`` as its entry.
"""

import argparse
import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from hosttools import certificates, process, state
from hosttools.doctor import api, connections, host, instances, monitoring, network, release, units, workers
from hosttools.doctor.checks import Check, within
from hosttools.findings import REDIS, Finding, tell

WITHIN = 7.5  # seconds for everything


def arguments() -> argparse.Namespace:
    """Return what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", required=True, help="the installation's name")
    parser.add_argument("--unit", action="append", default=[], metavar="UNIT=RUNBOOK")
    parser.add_argument("--program", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE=PORT")
    parser.add_argument("--queue", action="append", default=[], help="of the broker")
    parser.add_argument("--redis-host", default="")
    parser.add_argument("--port", action="append", type=int, default=[], help="that all clients find Redis on")
    parser.add_argument("--service", action="append", default=[], help="that has secrets here")
    parser.add_argument("--secret", action="append", default=[], metavar="SERVICE/NAME", help="that must be here")
    parser.add_argument("--firewall", action="store_true")
    parser.add_argument("--api", metavar="URL")
    parser.add_argument("--key-file", default="", help="the API's key, for its metrics of the platform")
    parser.add_argument("--api-path", action="append", default=[], help="alive, ready and workers, in this order")
    parser.add_argument("--hard-limit", type=int, default=60, metavar="SECONDS")
    parser.add_argument("--console", metavar="URL")
    parser.add_argument("--flower", metavar="URL")
    parser.add_argument("--monitoring", default="", metavar="PROMETHEUS,ALERTMANAGER")
    parser.add_argument("--record", default="", metavar="DIRECTORY", help="of the last healthy state")
    return parser.parse_args()


def redis_certificates() -> Iterator[Finding]:
    """Look how long the certificates of Redis and Sentinel are valid."""
    for file in [*Path("/etc/redis/tls").glob("*.pem"), *Path("/etc/redis/sentinel-tls").glob("*.pem")]:
        severity, ends = certificates.end(str(file))
        if severity:
            what = f"Redis' certificate {ends}: run site.yml"
            yield Finding(severity, what, "CertificateExpires", REDIS, suspect=True)


def all_checks(given: argparse.Namespace) -> dict[str, Check]:
    """Return the checks of what the arguments name."""
    checks: dict[str, Check] = {
        "the host": host.check,
        "certificates": redis_certificates,
        "units": lambda: units.check(dict(pair.split("=", 1) for pair in given.unit)),
    }
    if given.program:
        checks["programs"] = lambda: units.programs(given.program, given.app)
    for pair in given.redis:
        name, _, port = pair.partition("=")
        checks[f"Redis {name}"] = functools.partial(instances.check, name, int(port or 0), given.queue)
    if given.service:
        checks["files"] = lambda: release.check(given.app, given.service, given.secret)
        checks["the ways to Redis"] = lambda: connections.check(given.app, given.service, given.redis_host, given.port)
    if "worker" in given.service:
        checks["workers"] = lambda: workers.check(given.app)
    if given.firewall:
        checks["the firewall"] = lambda: network.check(given.port)
    if given.api:
        paths = given.api_path or api.PATHS
        checks["the API"] = lambda: api.check(given.api, given.key_file, given.hard_limit, given.app, paths)
    if given.console:
        checks["the console"] = lambda: api.console(given.console, given.hard_limit, given.app)
    if given.flower:
        checks["Flower"] = lambda: api.flower(given.flower, given.app)
    if given.monitoring:
        checks["monitoring"] = lambda: monitoring.check(*given.monitoring.split(","))
    if given.record:
        checks["what differs from the healthy state"] = lambda: state.differences(Path(given.record), given)
    return checks


def main() -> None:
    """Look at what the arguments name."""
    given = arguments()
    findings = [asdict(finding) for finding in within(WITHIN, all_checks(given))]
    with contextlib.suppress(Exception):
        findings += release.facts(given.app) if given.service else []
    tell(findings)
    process.end_all()
    # Without waiting for what hangs.
    os._exit(0)
