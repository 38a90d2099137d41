#!/usr/bin/env python3
"""What this host shows of itself, for a bundle of evidence: states, logs, Redis' figures. Secrets are masked.

Runs on the host as root, with the system's Python alone, and changes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

PATIENCE = 10  # seconds for each command
LINES = 300  # of each log
# Shorter values may be ordinary words.
SHORTEST_SECRET = 8
# In the configuration of a server or a sentinel.
REDIS_PASSWORD = re.compile(
    r"^(?:requirepass|masterauth|sentinel sentinel-pass|sentinel auth-pass \S+) (\S+)", re.MULTILINE
)
URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")


def say(*command: str, password: str = "") -> str:
    """Return what a command says, errors included."""
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
            errors="replace",
            env={**os.environ, "REDISCLI_AUTH": password},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return run.stdout


def secrets(prefix: str) -> list[str]:
    """Return all values that must not be shown, the longest first."""
    texts = [file.read_text(errors="replace") for file in Path(f"/etc/{prefix}/secrets").rglob("*") if file.is_file()]
    texts += [" ".join(REDIS_PASSWORD.findall(file.read_text())) for file in Path("/etc/redis").glob("*.conf")]
    for directory in ("/etc/prometheus/secrets", "/etc/prometheus-redis-exporter"):
        texts += [file.read_text(errors="replace") for file in Path(directory).glob("*") if file.suffix != ".crt"]
    words = {word for text in texts for word in re.split(r'[\s,"{}]+|(?<=:)|[:/@]', text)}
    return sorted(
        (word for word in words if len(word) >= SHORTEST_SECRET and _looks_secret(word)), key=len, reverse=True
    )


def _looks_secret(word: str) -> bool:
    # A URL's host and scheme are no secrets.
    return re.search(r"\d", word) is not None or not word.islower()


def redis(config: Path) -> dict[str, str]:
    """Return what an instance says of itself."""
    suffix = config.stem.removeprefix("redis")
    password = re.search(r"^requirepass (\S+)", config.read_text(), re.MULTILINE)
    client = ["redis-cli", "-s", f"/run/redis{suffix}/redis-server.sock", "--no-auth-warning"]
    # One that hangs would take PATIENCE for each question.
    if (answer := say(*client, "PING", password=password[1] if password else "")) != "PONG\n":
        return {f"Redis {config.name}": answer}
    asked = {
        "INFO everything": ["INFO", "everything"],
        "ACL LOG": ["ACL", "LOG", "20"],
        "SLOWLOG": ["SLOWLOG", "GET", "10"],
    }
    if suffix == "-broker":
        asked |= {
            "queue celery": ["LLEN", "celery"],
            "accepted": ["HLEN", "accepted"],
            "dead letters": ["LLEN", "dead_letters"],
            "workers": ["HGETALL", "workers"],
            "leases of unacknowledged messages": ["ZRANGE", "unacked_leases", "0", "-1", "WITHSCORES"],
        }
    return {
        f"Redis {config.name}: {title}": say(*client, *words, password=password[1] if password else "")
        for title, words in asked.items()
    }


def main() -> None:
    """Print one section after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="typesafe", help="the installation's name")
    prefix = parser.parse_args().prefix
    units = f"{prefix}-*"
    logs = [units, "redis-server*", "redis-sentinel", "haproxy", "keepalived", "supervisor", "prometheus*"]
    logs += ["platform-firewall"]
    processes = say("ps", "-eo", "pid,user,rss,etimes,stat,args", "--sort=-rss")
    sections = {
        "time and load": say("uptime"),
        "units": say("systemctl", "list-units", "--all", "--plain", "--no-legend", *logs),
        "failed units": say("systemctl", "--failed", "--plain", "--no-legend"),
        "supervisor": say("supervisorctl", "status"),
        "disk": say("df", "--human-readable"),
        "inodes": say("df", "--inodes"),
        "memory": say("free", "--mebi"),
        "processes by memory": "\n".join(processes.splitlines()[:40]),
        "listeners": say("ss", "--listening", "--tcp", "--numeric", "--processes"),
        "releases": say("ls", "-l", f"/opt/{prefix}", f"/opt/{prefix}/releases"),
        "journal": say("journalctl", "--no-pager", f"--lines={LINES}", *(f"--unit={unit}" for unit in logs)),
        "kernel": say("journalctl", "--no-pager", "--dmesg", "--lines=50"),
    }
    for file in sorted(Path(f"/var/log/{prefix}").glob("*.log")):
        sections[str(file)] = say("tail", f"--lines={LINES}", str(file))
    for config in sorted(Path("/etc/redis").glob("redis*.conf")):
        sections |= redis(config)
    text = "\n".join(f"=== {title} ===\n{body}" for title, body in sections.items())
    text = URL_PASSWORD.sub(r"\1**@", text)
    for secret in secrets(prefix):
        text = text.replace(secret, "**")
    print(text)


if __name__ == "__main__":
    main()
