"""Random faults of a host: what an accident, a person or another program may do to anything that the platform uses.

Kept apart from the doctor's code, so that neither is written for the other: a fault is drawn from what there is on the
host, not from what somebody knows to look for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# What programs of the platform read, write or are; find's expressions.
PLACES = (
    "/etc/typesafe /etc/typesafe-flower /etc/redis /etc/supervisor /etc/nftables-platform.conf"
    " /etc/hosts /etc/resolv.conf /etc/nsswitch.conf /etc/passwd /usr/local/share/redis-scripts"
    " /opt /opt/typesafe/releases /opt/typesafe/backend /opt/typesafe/backend/ /opt/typesafe/backend/app"
    " /opt/typesafe/backend/.env /opt/typesafe/backend/venv/bin"
    " /var/lib/redis /var/lib/typesafe-flower /var/log/typesafe /run/redis /run/redis-broker"
    " /usr/bin/redis-server /usr/bin/python3 /dev/shm /dev/null /tmp /var/tmp"
)
PACKAGES = "celery kombu redis uvicorn fastapi billiard pydantic starlette"
LISTING = f"""
find {PLACES} -xdev -maxdepth 4 \\( -type f -o -type d -o -type l \\) -not -name '*.pyc' -not -name __pycache__
find /etc/systemd/system -name 'typesafe-*' -o -name '*redis*' -type d
cd /opt/typesafe/backend/venv/lib/python3*/site-packages
for package in {PACKAGES}; do echo "$PWD/$package"; echo "$PWD/$package/__init__.py"; done
"""
FILE_CHANGES = {
    "has lost all rights": "chmod 000 {}",
    "belongs to nobody": "chown -h nobody:nogroup {}",
    "is empty": "truncate --size=0 {}",
    "is gone": "mv {0} {0}.away",
    "ends in nonsense": "echo '%%%' >>{}",
    "leads to nothing": "mv {0} {0}.away; ln -s /nowhere {0}",
    "is a directory": "mv {0} {0}.away; mkdir {0}",
}
DIRECTORY_CHANGES = {
    "has lost all rights": "chmod 000 {}",
    "belongs to nobody, closed": "chown nobody:nogroup {0}; chmod 700 {0}",
    "is gone": "mv {0} {0}.away",
    "is read-only": "mount --bind {0} {0} && mount -o remount,bind,ro {0}",
}
SERVICES = ("typesafe-celery", "typesafe-api", "typesafe-flower", "redis-server", "redis-server@broker")
SETTINGS = (
    *("MemoryMax=24M", "TasksMax=3", "LimitNOFILE=12", "PrivateNetwork=yes", "User=nobody", "IPAddressDeny=any"),
    *("ProtectSystem=full", "InaccessiblePaths=/opt", "RestrictAddressFamilies=AF_UNIX", "SystemCallFilter=~socket"),
    *("Environment=PYTHONHOME=/nowhere", "Environment=REDIS_URL=redis://127.0.0.1:1/0", "ExecStartPre=/bin/false"),
    *("RuntimeMaxSec=7", "CPUQuota=1%", "RootDirectory=/var", "TemporaryFileSystem=/etc", "LimitCORE=0", "UMask=0777"),
)
VARIABLES = (
    *("CELERY_BROKER_URL=redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND=redis://127.0.0.1:1/1", "PYTHONPATH=/tmp"),
    *(
        "PYTHONHOME=/nowhere",
        "LD_LIBRARY_PATH=/nowhere",
        "TASK_TIME_LIMIT=none",
        "SECRETS_DIRECTORY=/nowhere",
        "PATH=/nowhere",
    ),
)
INSTANCES = ("", "-broker")
PORTS = {"redis": 6379, "redis broker": 6380, "api": 8000, "flower": 5555}
OPTIONS = (
    *(
        "maxmemory 1mb",
        "maxclients 1",
        "min-replicas-to-write 2",
        "client-output-buffer-limit 'normal 1 1 1'",
        "timeout 1",
    ),
    *(
        "requirepass other",
        "protected-mode yes",
        "databases 1",
        "maxmemory-policy volatile-ttl",
        "appendonly no",
        "port 0",
    ),
    *("proto-max-bulk-len 1048576", "lua-time-limit 1", "tcp-keepalive 1", "hz 1", "dir /nowhere", "bind 127.0.0.9"),
)
USER_CHANGES = (
    "off",
    "resetkeys",
    "resetpass",
    "resetchannels",
    "-@all",
    "-@read",
    "-@write",
    "-evalsha",
    "nocommands",
)
KEYS = (
    *(
        "accepted",
        "dead_letters",
        "workers",
        "figures",
        "failures",
        "unacked_leases",
        "alerts",
        "celery",
        "unacked_revoked",
    ),
    *("_kombu.binding.celery", "_kombu.binding.celeryev"),
)


@dataclass(frozen=True)
class Mutation:
    """One change: the words of which a verdict must have one, what it is, and the shell script that makes it."""

    names: tuple[str, ...]
    what: str
    script: str


def mutation(chance: Random, files: Sequence[tuple[str, str]]) -> Mutation:
    """Return a random change of a host that has these ``files``, each with the letter of its type as find prints it."""
    kinds: list[Callable[[Random, Sequence[tuple[str, str]]], Mutation]]
    kinds = [_file, _file, _file, _unit, _unit, _setting, _setting, _variable, _network, _option, _user, _key, _process]
    return chance.choice(kinds)(chance, files)


def _file(chance: Random, files: Sequence[tuple[str, str]]) -> Mutation:
    kind, path = chance.choice(files)
    what, script = chance.choice(list((DIRECTORY_CHANGES if kind == "d" else FILE_CHANGES).items()))
    # The live release has two names.
    names = (path.rstrip("/"), re.sub(r"/releases/[^/]+", "/backend", path.rstrip("/")))
    return Mutation(names, f"{path} {what}", script.format(shlex.quote(path)))


def _unit(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    unit = chance.choice((*SERVICES, "typesafe-api.socket", "systemd-journald"))
    what, script = chance.choice([("is stopped", "stop"), ("is masked", "mask --now"), ("is frozen", "freeze")])
    return Mutation((unit,), f"{unit} {what}", f"systemctl {script} {unit}")


def _setting(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    unit, line = chance.choice(SERVICES), chance.choice(SETTINGS)
    place = f"/etc/systemd/system/{unit}.service.d"
    script = (
        f"mkdir -p {place}; printf '[Service]\\n{line.replace('%', '%%')}\\n' >{place}/zz.conf; systemctl daemon-reload"
    )
    return Mutation(
        (f"{place}/zz.conf", line.partition("=")[0]), f"{unit} has {line}", f"{script}; systemctl restart {unit}"
    )


def _variable(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    line = chance.choice(VARIABLES)
    name = line.partition("=")[0]
    return Mutation((name,), f"systemd's environment has {line}", f"systemctl set-environment {line}")


def _network(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    name, port = chance.choice(list(PORTS.items()))
    table = "nft add table inet other; nft add chain inet other input '{ type filter hook input priority 0; }'"
    return chance.choice(
        [
            Mutation(("lo",), "the loopback interface is down", "ip link set lo down"),
            Mutation(("127.0.0.1", " lo"), "lo has lost its address", "ip address del 127.0.0.1/8 dev lo"),
            Mutation(
                ("inet other",),
                f"another table drops {name}",
                f"{table}; nft add rule inet other input tcp dport {port} drop",
            ),
            Mutation(
                ("inet platform",),
                f"a rule in our table drops {name}",
                f"nft insert rule inet platform input tcp dport {port} drop",
            ),
            Mutation(
                ("127.0.0.0/8", "blackhole", "rule"),
                "a rule of routing",
                "ip rule add to 127.0.0.1 blackhole priority 0",
            ),
        ]
    )


def _client(suffix: str) -> str:
    login = f"REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis{suffix}.conf)"
    return f"{login} redis-cli -e -s /run/redis{suffix}/redis-server.sock"


def _option(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    suffix, option = chance.choice(INSTANCES), chance.choice(OPTIONS)
    script = f"{_client(suffix)} CONFIG SET {option}"
    return Mutation((option.partition(" ")[0],), f"redis{suffix} has {option}", script)


def _user(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    suffix, rule = chance.choice(INSTANCES), chance.choice(USER_CHANGES)
    user = chance.choice(("worker", "api", "flower"))
    script = f"{_client(suffix)} ACL SETUSER {user} {rule}"
    return Mutation((f"user {user}", f"of {user}"), f"redis{suffix}'s user {user} has {rule}", script)


def _key(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    client = _client("-broker")
    key, kind = chance.choice(KEYS), chance.choice(("SET {} x", "LPUSH {} x", "HSET {} x x", "SADD {} x"))
    script = f"{client} DEL {key}; {client} {kind.format(key)}"
    return Mutation((key,), f"the key {key} is of another type", script)


def _process(chance: Random, _: Sequence[tuple[str, str]]) -> Mutation:
    unit = chance.choice(SERVICES)
    process = f"$(systemctl show --value --property MainPID {unit})"
    what, script = chance.choice(
        [
            ("is stopped by a signal", f"kill -STOP {process}"),
            ("may open 12 files", f"prlimit --nofile=12:12 --pid {process}"),
            ("may write no file", f"prlimit --fsize=0:0 --pid {process}"),
        ]
    )
    return Mutation((unit, "nofile", "fsize"), f"the process of {unit} {what}", script)
