"""What this host shows of itself, for a bundle of evidence: states, logs, Redis' metrics. Secrets are masked.

Runs on the host as root, and changes nothing.
"""

import argparse
import re
from pathlib import Path

from hosttools import files, findings, masking, process
from hosttools.redis_client import Instance, RedisError

TIMEOUT = 10  # seconds for each command
LINES = 300  # of each log
# Shorter values may be ordinary words.
SHORTEST_SECRET = 8
# In the configuration of a server or a sentinel.
REDIS_PASSWORD = re.compile(
    r"^(?:requirepass|masterauth|sentinel sentinel-pass|sentinel auth-pass \S+) (\S+)", re.MULTILINE
)
ASKED = {"INFO everything": "INFO everything", "ACL LOG": "ACL LOG 20", "SLOWLOG": "SLOWLOG GET 10"}
ASKED_OF_BROKER = {
    "queue celery": "LLEN celery",
    "accepted": "HLEN accepted",
    "dead letters": "LLEN dead_letters",
    "workers": "HGETALL workers",
    "leases of unacknowledged messages": "ZRANGE unacked_leases 0 -1 WITHSCORES",
}


def output(*command: str) -> str:
    """Return what a command prints, errors included."""
    ended = process.run(*command, timeout=TIMEOUT, merge=True)
    return f"{ended.output or ended.errors}\n"


def secrets(prefix: str) -> list[str]:
    """Return all values that must not be shown, the longest first."""
    texts = [files.read(file) for file in Path(f"/etc/{prefix}/secrets").rglob("*")]
    texts += [" ".join(REDIS_PASSWORD.findall(files.read(file))) for file in Path("/etc/redis").glob("*.conf")]
    for directory in ("/etc/prometheus/secrets", "/etc/prometheus-redis-exporter"):
        texts += [files.read(file) for file in Path(directory).glob("*") if file.suffix != ".crt"]
    words = {word for text in texts for word in re.split(r'[\s,"{}]+|(?<=:)|[:/@]', text)}
    return sorted(
        (word for word in words if len(word) >= SHORTEST_SECRET and _looks_secret(word)), key=len, reverse=True
    )


def _looks_secret(word: str) -> bool:
    # A URL's host and scheme are no secrets.
    return re.search(r"\d", word) is not None or not word.islower()


def redis(name: str) -> dict[str, str]:
    """Return what an instance says of itself."""
    instance = Instance(name)
    asked = ASKED | (ASKED_OF_BROKER if name == "broker" else {})
    shown = {}
    try:
        with instance.connect(TIMEOUT) as connection:
            for title, question in asked.items():
                shown[title] = "\n".join(map(str, _flat(connection.call(*question.split()))))
    except (OSError, RedisError) as error:
        # One that hangs would take TIMEOUT for each question.
        shown["no answer"] = str(error)
    return {f"Redis {instance.config.name}: {title}": text for title, text in shown.items()}


def _flat(answer: object) -> list[object]:
    return [part for each in answer for part in _flat(each)] if isinstance(answer, list) else [answer]


def main() -> None:
    """Print one section after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True, help="the installation's name")
    prefix = parser.parse_args().prefix
    units = f"{prefix}-*"
    logs = [units, "redis-server*", "redis-sentinel", "haproxy", "keepalived", "supervisor", "prometheus*"]
    logs += ["platform-firewall"]
    processes = output("ps", "-eo", "pid,user,rss,etimes,stat,args", "--sort=-rss")
    sections = {
        "time and load": output("uptime"),
        "units": output("systemctl", "list-units", "--all", "--plain", "--no-legend", *logs),
        "failed units": output("systemctl", "--failed", "--plain", "--no-legend"),
        "supervisor": output("supervisorctl", "status"),
        "disk": output("df", "--human-readable"),
        "inodes": output("df", "--inodes"),
        "memory": output("free", "--mebi"),
        "processes by memory": "\n".join(processes.splitlines()[:40]),
        "listeners": output("ss", "--listening", "--tcp", "--numeric", "--processes"),
        "releases": output("ls", "-l", f"/opt/{prefix}", f"/opt/{prefix}/releases"),
        "journal": output("journalctl", "--no-pager", f"--lines={LINES}", *(f"--unit={unit}" for unit in logs)),
        "kernel": output("journalctl", "--no-pager", "--dmesg", "--lines=50"),
    }
    for file in sorted(Path(f"/var/log/{prefix}").glob("*.log")):
        sections[str(file)] = output("tail", f"--lines={LINES}", str(file))
    for config in sorted(Path("/etc/redis").glob("redis*.conf")):
        sections |= redis(config.stem.removeprefix("redis").removeprefix("-") or "main")
    text = "\n".join(f"=== {title} ===\n{body}" for title, body in sections.items())
    text = masking.mask_urls(text)
    for secret in secrets(prefix):
        text = text.replace(secret, "**")
    print(findings.printable(text))
