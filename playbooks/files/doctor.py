#!/usr/bin/env python3
"""What is wrong with this host: looks at everything, changes nothing, prints findings as JSON.

Runs on the host as root, with the system's Python alone. Thresholds are those of the alerts
(roles/monitoring/templates/alerts.yml.j2), whose pages say why.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CRITICAL, WARNING = 1, 2
# Shares of a whole, and seconds.
DISK_LEFT, MEMORY_LEFT, BROKER_MEMORY = 0.1, 0.1, 0.7
OLD_TASK, STUCK_MARGIN = 120, 60
CERTIFICATE_WARNING, CERTIFICATE_CRITICAL = 20 * 24 * 3600, 3 * 24 * 3600
PATIENCE = 5


@dataclass
class Finding:
    """Something that is wrong."""

    severity: int
    what: str
    runbook: str


def say(*command: str, **environment: str) -> tuple[bool, str]:
    """Run a command; return whether it succeeded and what it says, also when it takes too long or is not there."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **environment}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return run.returncode == 0, run.stdout.strip()


def units(wanted: dict[str, str]) -> Iterator[Finding]:
    """Look whether each unit runs and comes back after a boot; ``wanted`` names each unit's runbook."""
    for unit, runbook in wanted.items():
        active, state = say("systemctl", "is-active", unit)
        if not active:
            yield Finding(CRITICAL, f"{unit} is {state}", runbook)
        elif not say("systemctl", "is-enabled", unit)[0]:
            yield Finding(WARNING, f"{unit} would not start after a boot", runbook)
    for line in say("systemctl", "list-units", "--failed", "--plain", "--no-legend")[1].splitlines():
        if (unit := line.split()[0].removesuffix(".service")) not in wanted:
            yield Finding(WARNING, f"{unit} has failed", "UnitRestartLoop")


def programs(names: list[str]) -> Iterator[Finding]:
    """Look at supervisor's programs."""
    for line in say("supervisorctl", "status", *names)[1].splitlines():
        if "RUNNING" not in line:
            yield Finding(CRITICAL, " ".join(line.split()), "NoWorkers")


def redis(name: str) -> Iterator[Finding]:
    """Look into one instance."""
    suffix = "" if name == "main" else f"-{name}"
    config = Path(f"/etc/redis/redis{suffix}.conf")
    password = re.search(r"^requirepass (\S+)", config.read_text(), re.MULTILINE) if config.exists() else None
    if password is None:
        yield Finding(CRITICAL, f"Redis {name} is not configured", "RedisDown")
        return
    client = ["redis-cli", "-s", f"/run/redis{suffix}/redis-server.sock", "--no-auth-warning"]
    _, told = say(*client, "INFO", "everything", REDISCLI_AUTH=password[1])
    info = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    if "redis_version" not in info:
        yield Finding(CRITICAL, f"Redis {name} does not answer", "RedisDown")
        return
    if info.get("loading") == "1":
        yield Finding(CRITICAL, f"Redis {name} is loading its data", "RedisDown")
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(field, "ok") != "ok":
            yield Finding(CRITICAL, f"Redis {name} cannot write to its disk ({field})", "RedisCannotSave")
    if info.get("aof_enabled") == "0":
        yield Finding(CRITICAL, f"Redis {name} keeps no append-only file", "RedisCannotSave")
    if (refused := re.search(r"count=(\d+)", info.get("errorstat_NOPERM", ""))) is not None:
        yield Finding(WARNING, f"Redis {name} has refused {refused[1]} commands since its start", "RedisDenies")
    if name == "broker":
        yield from broker(info)


def broker(info: dict[str, str]) -> Iterator[Finding]:
    """Look at what holds for the queue's instance alone."""
    if info.get("maxmemory_policy") != "noeviction":
        yield Finding(
            CRITICAL, f"the broker evicts ({info.get('maxmemory_policy')}): tasks may be lost", "BrokerEvicts"
        )
    if int(info.get("evicted_keys", 0)):
        yield Finding(CRITICAL, f"the broker has evicted {info['evicted_keys']} keys", "BrokerEvicts")
    limit = int(info.get("maxmemory", 0))
    if limit and int(info["used_memory"]) > BROKER_MEMORY * limit:
        share = int(info["used_memory"]) / limit
        yield Finding(WARNING, f"the broker uses {share:.0%} of its memory", "RedisMemoryHigh")


def certificates() -> Iterator[Finding]:
    """Look how long Redis' certificate is valid."""
    for file in Path("/etc/redis/tls").glob("*.pem"):
        for seconds, severity in ((CERTIFICATE_CRITICAL, CRITICAL), (CERTIFICATE_WARNING, WARNING)):
            if not say("openssl", "x509", "-in", str(file), "-noout", "-checkend", str(seconds))[0]:
                days = seconds // (24 * 3600)
                yield Finding(
                    severity, f"Redis' certificate ends within {days} days: run site.yml", "BrokerUnreachable"
                )
                break


def ask(url: str, key: str) -> tuple[int, str]:
    """Return status and body of a GET, 0 when nobody answers."""
    request = urllib.request.Request(url, headers={"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def api(url: str, key_file: str, hard_limit: int) -> Iterator[Finding]:
    """Look at the API, and at what it says of queues and workers."""
    key = Path(key_file).read_text().replace(",", " ").split()[0] if Path(key_file).exists() else ""
    if not key:
        yield Finding(CRITICAL, f"the API has no key ({key_file})", "ApiDown")
    if ask(f"{url}/health", key)[0] != 200:
        yield Finding(CRITICAL, "the API does not answer", "ApiDown")
        return
    if ask(f"{url}/health/ready", key)[0] != 200:
        yield Finding(CRITICAL, "the API does not reach the broker", "BrokerUnreachable")
        return
    status, page = ask(f"{url}/metrics", key)
    if status != 200:
        yield Finding(CRITICAL, f"the API answers its own key with {status}", "ApiDown")
        return
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line[:1] not in ("", "#")]
    figures = {name: float(value) for name, value in lines}
    alive, expected = figures.get("celery_workers_alive", 0), figures.get("celery_workers_expected", 0)
    if alive == 0:
        yield Finding(CRITICAL, "no worker is alive", "NoWorkers")
    elif ask(f"{url}/health/celery", key)[0] != 200:
        yield Finding(CRITICAL, "no worker answers", "NoWorkers")
    elif alive < expected:
        yield Finding(WARNING, f"{alive:.0f} of {expected:.0f} workers are alive", "WorkersMissing")
    for name, age in figures.items():
        if name.startswith("celery_queue_oldest_seconds") and age > OLD_TASK:
            yield Finding(WARNING, f"a task has waited for {age:.0f} s ({name})", "QueueTooOld")
    if figures.get("celery_unacknowledged_oldest_seconds", 0) > hard_limit + STUCK_MARGIN:
        held = figures["celery_unacknowledged_oldest_seconds"]
        yield Finding(CRITICAL, f"a task has been in a worker's hands for {held:.0f} s", "TaskStuck")
    if deferred := sum(number for name, number in figures.items() if name.startswith("celery_deferred_tasks")):
        resume = "playbooks/runbooks/queue_backlog.yml -e verb=resume -e confirm=yes puts them back"
        yield Finding(WARNING, f"{deferred:.0f} tasks are deferred; {resume}", "")
    if letters := figures.get("celery_dead_letters", 0):
        yield Finding(WARNING, f"{letters:.0f} dead letters", "DeadLetters")


def host() -> Iterator[Finding]:
    """Look at disk, memory and clock."""
    for place in ("/", "/var", "/var/lib/redis", "/var/log"):
        if not Path(place).exists() or (place != "/" and not os.path.ismount(place)):
            continue
        usage, inodes = shutil.disk_usage(place), os.statvfs(place)
        if usage.free < DISK_LEFT * usage.total:
            yield Finding(CRITICAL, f"{place} has {usage.free / usage.total:.0%} left", "DiskFilling")
        if inodes.f_files and inodes.f_favail < DISK_LEFT * inodes.f_files:
            yield Finding(
                CRITICAL, f"{place} has {inodes.f_favail / inodes.f_files:.0%} of its inodes left", "DiskFilling"
            )
    memory = {name: int(rest.split()[0]) for name, rest in _colons(Path("/proc/meminfo").read_text())}
    if memory["MemAvailable"] < MEMORY_LEFT * memory["MemTotal"]:
        yield Finding(WARNING, f"{memory['MemAvailable'] / memory['MemTotal']:.0%} of the memory is left", "MemoryLow")
    if say("timedatectl", "show", "--property=NTPSynchronized", "--value") == (True, "no"):
        yield Finding(WARNING, "the clock is not synchronized", "ClockWrong")
    if Path("/run/reboot-required").exists():
        yield Finding(WARNING, "an update waits for a reboot", "")


def _colons(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        yield name, rest


def main() -> None:
    """Look at what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", action="append", default=[], metavar="UNIT=RUNBOOK")
    parser.add_argument("--program", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE")
    parser.add_argument("--api", metavar="URL")
    parser.add_argument("--key-file", default="")
    parser.add_argument("--hard-limit", type=int, default=60, metavar="SECONDS")
    arguments = parser.parse_args()
    findings = list(units(dict(pair.split("=", 1) for pair in arguments.unit)))
    if arguments.program:
        findings += programs(arguments.program)
    for name in arguments.redis:
        findings += redis(name)
    findings += certificates()
    if arguments.api:
        findings += api(arguments.api, arguments.key_file, arguments.hard_limit)
    findings += host()
    print(json.dumps([asdict(finding) for finding in findings]))


if __name__ == "__main__":
    main()
