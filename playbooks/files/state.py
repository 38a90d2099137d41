#!/usr/bin/env python3
"""Record what this host is like while it is healthy, and tell later how it differs, whether or not somebody foresaw it.

With ``--write`` it records, after a green health gate; without it prints findings as playbooks/files/doctor.py does,
whose arguments it takes. Runs on the host as root, with the system's Python alone. The record is bounded and holds no
secret: files, variables and long values as digests, Redis' passwords not at all.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import shlex
import socket
import stat
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As in doctor.py. A difference explains what fails above its layer; NOTE: it is told beside something critical only.
WARNING, NOTE = 2, 3
HOST, NETWORK, REDIS, RIGHTS, FILES, LATER = 1, 2, 3, 5, 6, 10
PATIENCE, WITHIN = 3, 6
# So many of one part are named one by one; so many entries and characters are recorded.
NAMED, ENTRIES, LONGEST = 10, 4000, 160
State = dict[str, str]

# Files whose content is ours or decides what our programs do, by the layer of what they can explain.
CONTENT = {
    NETWORK: "/etc/nftables*.conf /etc/systemd/system/platform-firewall.service* /etc/hosts /etc/resolv.conf"
    " /etc/nsswitch.conf /etc/gai.conf /etc/host.conf /etc/hostname",
    REDIS: "/etc/redis/redis*.conf /etc/redis/*tls/* /etc/systemd/system/redis-se*",
    FILES: "/etc/{app}/** /etc/{app}-flower/** /etc/systemd/system/{app}-* /etc/supervisor/** /etc/ld.so.preload"
    " /etc/environment /etc/passwd /etc/group /etc/security/** /etc/pam.d/** /etc/ssl/openssl.cnf",
    LATER: "/etc/systemd/*.conf.d/* /etc/systemd/*.conf /etc/logrotate.d/* /etc/ssh/** /etc/sysctl.d/* /etc/sysctl.conf"
    " /etc/modprobe.d/* /etc/tmpfiles.d/* /etc/apt/apt.conf.d/* /etc/profile.d/* /etc/sudoers /etc/sudoers.d/*"
    " /etc/cron*/** /etc/prometheus/** /etc/prometheus-*/** /etc/default/prometheus* /etc/systemd/system/*.d/*"
    " /etc/systemd/system/certificate-end.* /etc/haproxy/** /etc/keepalived/**",
}
RELEASE = (
    "/opt/{app}/backend /opt/{app}/backend/.* /opt/{app}/backend/app/** /opt/{app}/backend/venv/bin/*"
    " /opt/{app}/backend/venv/pyvenv.cfg /opt/{app}/backend/venv/lib/python3*/site-packages/*.pth"
    " /opt/{app}/backend/venv/lib/python3*/site-packages/*custom*.py"
)
RELEASE_RIGHTS = "/opt/{app}/backend/ /opt/{app}/backend/**/"
# Of these owner and mode count, and their number does not grow.
RIGHTS_OF = (
    "/ /dev /dev/shm /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx /tmp /var/tmp /run"
    " /run/lock /run/redis* /run/sentinel* /run/systemd/journal/* /var /var/lib /var/log /var/log/journal /etc"
    " /opt /usr /usr/bin /usr/lib /etc/{app} /etc/redis /opt/{app} /opt/{app}/releases"
    " /var/log/{app} /var/log/redis /var/lib/redis /var/lib/redis/**/"
    " /var/lib/prometheus /usr/bin/python3* /usr/bin/redis-* /usr/bin/sudo /bin/sh /usr/bin/env"
    " /usr/bin/prometheus* /usr/sbin/nft /usr/sbin/haproxy /usr/bin/systemctl /usr/bin/supervisor*"
)
# Of a directory whose files come and go, the owners and modes that they have.
RIGHTS_IN = "/var/lib/redis/**/ /var/log/redis/ /var/log/{app}/"
# What systemd says of a unit changes while it works, or follows from other units.
CHANGES = re.compile(
    r"Timestamp|Monotonic|PID|Current|Peak|Usage|Restarts|Invocation|State$|Result|^ExecMain|^Status|^Job|^ControlGroup"
    r"|^IP.*(?:Bytes|Packets)|^IO(?:Read|Write)|^MemoryAvail|Descriptor(?!sMax)|^Can|^(?:Wants|Before|After|Documentation)$"
    r"|^(?:Requir|Want|Trigger|Conflict|Consist|Bound|Propagat|Stop|Refer|Upheld|Part|Success|Failure|Reload|On).*(?:By|From|Of)$"
    r"|^RequiresMountsFor|^WantsMountsFor|^Perpetual|^Transient|^Id$|^Names$|^Following|^DefaultDep|^LiveMount|^Accept|^NConn"
    r"|^NRef|^ExtensionImage|^Markers|^DebugInvoc|^CPUSet|EffectiveT|^Effective|^StartupM|^OOMPolicyDefault"
)
SYSCTLS = "vm net/core net/ipv4 net/ipv6/conf/all net/ipv4/conf/all net/unix kernel fs user"
STEADY = re.compile(
    r"random/|/ns_last_pid|entropy|dentry|inode|file-nr|aio-nr|/tainted|cad_pid|sched_domain|pty/nr|_ctr|epoch"
)
SECRET = re.compile(r"pass|auth|secret|key-file-pass", re.IGNORECASE)
UNITS = "systemd-journald dbus cron ssh systemd-logind"
# Names that systemd or a start gives anew.
OWN_VARIABLES = re.compile(
    r"INVOCATION|JOURNAL|NOTIFY|PID|LISTEN|WATCHDOG|CREDENTIALS|MEMORY_PRESSURE|SYSTEMD|SUPERVISOR|^_$"
)


def say(*command: str) -> str:
    """Return what a command says; nothing when it fails, is not there or takes too long."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def text(file: Path | str) -> str:
    """Return what a file holds, nothing if there is none."""
    try:
        return Path(file).read_text(errors="replace").strip()
    except OSError:
        return ""


def digest(value: str | bytes) -> str:
    """Return what shows that a value is another one, and does not show the value."""
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def short(value: str) -> str:
    """Return a value, or what stands for one that is too long to be kept."""
    return value if len(value) <= LONGEST else f"{value[: LONGEST // 2]}... ({digest(value)})"


def _pairs(told: str, between: str = "\n") -> Iterator[tuple[str, str]]:
    for line in told.strip().split(between):
        name, _, value = line.partition("=")
        if name:
            yield name, value


def expand(patterns: str, app: str) -> Iterator[str]:
    """Return the names that match, each once."""
    for pattern in patterns.format(app=app).split():
        yield from sorted(glob.glob(pattern, recursive=True))[:ENTRIES]  # noqa: PTH207 - the patterns are absolute


def rights(name: str) -> str:
    """Return owner, group and mode of a file."""
    seen = os.lstat(name)
    try:
        owner = f"{pwd.getpwuid(seen.st_uid).pw_name}:{grp.getgrgid(seen.st_gid).gr_name}"
    except KeyError:
        owner = f"{seen.st_uid}:{seen.st_gid}"
    return f"{owner} {stat.S_IMODE(seen.st_mode):04o}"


# Parts of the state


def files(app: str, _: Any) -> State:
    """Return kind, content, owner and mode of files."""
    found = _files(" ".join(CONTENT.values()), RIGHTS_OF, app)
    for name in expand(RIGHTS_IN, app):
        owners = {_owner(entry.path) for entry in os.scandir(name) if entry.is_file(follow_symlinks=False)}
        found[f"{name}*"] = ", ".join(sorted(filter(None, owners)))
    return found


def release(app: str, _: Any) -> State:
    """Return which release is live, and its files."""
    return _files(RELEASE, RELEASE_RIGHTS, app)


def _files(content: str, rights_of: str, app: str) -> State:
    found: State = {}
    for name in expand(content, app):
        # The former is a runbook's, for a while.
        if not name.endswith(("~debug-mode.conf", ".pyc", "/__pycache__")) and name not in found:
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                found[name] = _file(name)
    for name in expand(rights_of, app):
        if "/__pycache__" not in name:
            with contextlib.suppress(FileNotFoundError):
                found.setdefault(name, f"{rights(name)} {_kind(name)}")
    return found


def _owner(name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        owner, mode = rights(name).split()
        return f"{owner} {'readable and writable' if int(mode, 8) & 0o600 == 0o600 else mode}"
    return ""


def _kind(name: str) -> str:
    mode = os.lstat(name).st_mode
    names = {stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFREG: "file", stat.S_IFSOCK: "socket"}
    device = f" {os.major(os.lstat(name).st_rdev)}:{os.minor(os.lstat(name).st_rdev)}"
    return names.get(stat.S_IFMT(mode), f"device{device}")


def _file(name: str) -> str:
    kind = _kind(name)
    if kind == "link":
        return f"leads to {os.readlink(name)}"  # noqa: PTH115 - the text of the link
    # A secret's digest is safe: secrets are long and random, and only root reads this record.
    content = f" {digest(Path(name).read_bytes())}" if kind == "file" and os.stat(name).st_size < 1 << 24 else ""  # noqa: PTH116
    return f"{rights(name)} {kind}{content}"


def packages(app: str, _: Any) -> State:
    """Return the versions in the release's virtual environment, each with its list of files."""
    found = {}
    for place in Path(f"/opt/{app}/backend/").glob("venv/lib/python3*/site-packages/*.dist-info"):
        name, _, version = place.name.removesuffix(".dist-info").rpartition("-")
        found[name] = f"{version} ({digest(text(place / 'RECORD'))})"
    return found


def system_packages(_: str, __: Any) -> State:
    """Return the versions of Debian's packages that are installed."""
    told = say("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}|${Version}\n")
    return {
        package: version
        for state, package, version in (line.split("|") for line in told.splitlines())
        if state[1] == "i"
    }


def units(_: str, given: Any) -> State:
    """Return the properties of our units and of those that they need, and what is masked or enabled on this host."""
    found: State = {}
    names = [*(pair.partition("=")[0] for pair in given.unit), *UNITS.split()]
    for unit, shown in zip(names, say("systemctl", "show", *names).strip().split("\n\n"), strict=False):
        loaded = dict(_pairs(shown)).get("LoadState", "loaded")
        found[f"{unit} LoadState"] = loaded
        for name, value in _pairs(shown):
            # One that is masked has nothing but defaults.
            if CHANGES.search(name) or loaded != "loaded":
                continue
            steady = re.sub(r" ; start_time=.*?(?=})", " ", value)
            if name == "Environment":
                pairs = (word.partition("=") for word in shlex.split(value.replace("'", "\\'")))
                steady = " ".join(f"{pair[0]}={digest(pair[2])}" for pair in pairs)
            if "{" not in steady:  # lists of units have another order after each daemon-reload
                steady = " ".join(sorted(steady.split()))
            key = f"{unit} {name}"
            found[key] = short(f"{found[key]} {steady}" if key in found else steady)
    for line in say("systemctl", "list-unit-files", "--plain", "--no-legend").splitlines():
        unit, state = [*line.split(), "", ""][:2]
        if state in ("enabled", "disabled", "masked", "enabled-runtime", "masked-runtime", "linked", "static"):
            found[f"{unit} as a unit file"] = state
    return found


def manager(_: str, __: Any) -> State:
    """Return what systemd gives to all units: variables, as digests, and defaults."""
    found = {}
    for name, value in _pairs(say("systemctl", "show-environment")):
        found[f"systemd's environment variable {name}"] = digest(value)
    for name, value in _pairs(say("systemctl", "show")):
        if name.startswith("Default") or name in ("LogLevel", "ShowStatus", "ConfirmSpawn", "UnitPath"):
            found[f"systemd's {name}"] = short(value)
    return found


def processes(_: str, given: Any) -> State:
    """Return limits, scheduling and variables of each unit's main process, and the limits of its control group."""
    found: State = {}
    names = [pair.partition("=")[0] for pair in given.unit]
    shown = say("systemctl", "show", "--property=MainPID,ControlGroup", *names).strip().split("\n\n")
    for unit, told in zip(names, shown, strict=False):
        about = dict(line.partition("=")[::2] for line in told.splitlines())
        number, group = about.get("MainPID", "0"), about.get("ControlGroup", "")
        place = Path("/proc") / number
        if number == "0" or not place.exists():
            continue
        for line in text(place / "limits").splitlines()[1:]:
            limit, *values = re.split(r" {2,}", line)
            found[f"{unit}: {limit}"] = " ".join(values[:2])
        status = dict(line.partition(":")[::2] for line in text(place / "status").splitlines())
        for name in (
            "Uid",
            "Gid",
            "Groups",
            "CapEff",
            "NoNewPrivs",
            "Seccomp",
            "Cpus_allowed_list",
            "Mems_allowed_list",
        ):
            found[f"{unit}: {name}"] = " ".join(status.get(name, "").split())
        found[f"{unit}: oom_score_adj"] = text(place / "oom_score_adj")
        found[f"{unit}: nice"] = text(place / "stat").rpartition(") ")[2].split()[16]
        for name, value in _pairs(text(place / "environ"), "\0"):
            if name and not OWN_VARIABLES.search(name):
                found[f"{unit}: the variable {name}"] = digest(value)
        for part in [Path(group), *Path(group).parents]:
            for name in (
                "memory.max",
                "memory.high",
                "pids.max",
                "cpu.max",
                "cpu.weight",
                "cpuset.cpus",
                "cgroup.freeze",
            ):
                if (value := text(Path("/sys/fs/cgroup") / str(part).lstrip("/") / name)) and str(part) != "/":
                    found[f"{part}: {name}"] = value
    return found


def mounts(_: str, __: Any) -> State:
    """Return what is mounted where our programs look, with its options."""
    found = {}
    for line in text("/proc/mounts").splitlines():
        source, place, kind, options = line.split()[:4]
        if not re.match(r"/(?:run/(?:user|credentials|netns)|sys/fs/bpf|proc/|var/lib/(?:docker|containers))", place):
            kept = sorted(
                option for option in options.split(",") if not re.match(r"(?:lower|upper|work)dir=|nr_", option)
            )
            found[place] = short(f"{kind} of {source} {','.join(kept)}" if kind != "overlay" else f"overlay {kept[0]}")
    return found


def sysctls(_: str, __: Any) -> State:
    """Return the kernel's settings."""
    found = {}
    for part in SYSCTLS.split():
        root = Path("/proc/sys") / part
        for file in [*root.glob("*"), *(root.glob("neigh/default/*"))]:
            if file.is_file() and not STEADY.search(str(file)) and (value := text(file)):
                found[str(file.relative_to("/proc/sys")).replace("/", ".")] = short(" ".join(value.split()))
    return found


def network(_: str, __: Any) -> State:
    """Return links, addresses, routes, rules, queues, and the rules of packet filters without their counts."""
    found, floating = {}, text("/etc/keepalived/keepalived.conf")
    for link in json.loads(say("ip", "-json", "address") or "[]"):
        name = re.sub(r"@.*", "", link["ifname"])
        if name.startswith(("veth", "docker", "br-", "cni", "podman", "virbr")):
            continue
        found[f"the link {name}"] = f"{'up' if 'UP' in link['flags'] else 'down'}, mtu {link['mtu']}"
        for address in link["addr_info"]:
            # One of keepalived's is on one balancer or another.
            floats = f"{address.get('local')}/" in floating
            if not floats and not address.get("temporary") and address.get("family") == "inet":
                found[f"the address {address['local']}/{address['prefixlen']}"] = f"on {name}"
    for command in (["route", "show", "table", "all"], ["rule", "show"]):
        for line in say("ip", *command).splitlines():
            if line.strip() and not re.search(r"table local|local |broadcast |linkdown|veth|docker|podman", line):
                kept = re.sub(r" (?:expires|metric) \S+| linkdown| proto \w+", "", line)
                found[f"the {command[0]} {' '.join(kept.split())}"] = "there"
    for words in map(str.split, say("tc", "qdisc", "show").splitlines()):
        if "dev" in words and not words[words.index("dev") + 1].startswith("veth"):
            found[f"the queue of {words[words.index('dev') + 1]}, {words[1]}"] = "there"
    table = ""
    for line in map(str.strip, say("nft", "list", "ruleset").splitlines()):
        if line.startswith("table"):
            table = " ".join(line.split()[1:3])
        elif re.search(r"\b(?:accept|drop|reject|jump|policy|redirect|queue|dnat|snat|mark)\b", line):
            rule = re.sub(r" *\bcounter(?: packets \d+ bytes \d+)?", "", line)
            found[f"the packet filter's rule {short(rule)} of the table {table}"] = "there"
    return found


def names(app: str, _: Any) -> State:
    """Return the addresses of the names that our programs look up."""
    urls = [text(file) for file in glob.glob(f"/etc/{app}/secrets/*/*URL*")]  # noqa: PTH207
    hosts = {socket.gethostname(), "localhost", *re.findall(r"(?:@|//)([A-Za-z][\w.-]+):\d", " ".join(urls))}
    found: State = {}

    def ask(host: str) -> None:
        told = say("getent", "ahosts", host)
        found[f"the name {host}"] = " ".join(sorted({line.split()[0] for line in told.splitlines()})) or "unknown here"

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in sorted(hosts)[:16]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE + 1)
    for server in re.findall(r"^nameserver (\S+)", text("/etc/resolv.conf"), re.MULTILINE)[:3]:
        found[f"the name server {server}"] = "answers" if _answers(server) else "does not answer"
    return found


def _answers(server: str) -> bool:
    question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01"  # NS of the root: every server answers it somehow
    try:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(1)
            asking.connect((server.partition("%")[0], 53))
            asking.send(question)
            return asking.recv(512)[:2] == question[:2]
    except OSError:
        return False


def redis(_: str, given: Any) -> State:
    """Return settings, users and kinds of keys of each instance here; no password, nor its digest as it is."""
    found: State = {}
    for pair in given.redis:
        name = pair.partition("=")[0]
        suffix = "" if name == "main" else f"-{name}"
        config = text(f"/etc/redis/redis{suffix}.conf")
        password = re.search(r"^requirepass (\S+)", config, re.MULTILINE)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as local:  # doctor.py tells
            local.settimeout(PATIENCE)
            local.connect(f"/run/redis{suffix}/redis-server.sock")
            ask = _asker(local)
            ask("AUTH", password[1] if password else "")
            found |= _instance(name, config, ask)
    return found


def _instance(name: str, config: str, ask: Callable[..., Any]) -> State:
    found: State = {}
    told = ask("CONFIG", "GET", "*")
    # What the file names is compared with it by doctor.py.
    in_file = set(re.findall(r"^([a-z][a-z-]+) ", config, re.MULTILINE)) | {"slaveof", "replicaof"}
    for key, value in zip(told[::2], told[1::2], strict=True):
        if key not in in_file and not SECRET.search(key):
            found[f"Redis {name}: {key}"] = short(value or "empty")
    # So are its users: one and the same rule is written otherwise by a server that was told it while it ran.
    ours = set(re.findall(r"^user (\S+) ", config, re.MULTILINE))
    for line in ask("ACL", "LIST"):
        if (user := line.split()[1]) not in ours:
            found[f"Redis {name}: the user {user}"] = digest(" ".join(sorted(line.split())))
    return found | {f"Redis {name}: the key {key}": kind for key, kind in _keys(ask).items()}


def _keys(ask: Callable[..., Any]) -> State:
    """Return the kinds of keys, numbers and ids in their names left out."""
    found: State = {}
    cursor, until = "0", time.monotonic() + 1
    while time.monotonic() < until and len(found) < ENTRIES:
        cursor, names_here = ask("SCAN", cursor, "COUNT", "500")
        for key in names_here:
            alike = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|\d+", "*", key)[:LONGEST]
            if alike not in found or "*" not in alike:
                found[alike] = str(ask("TYPE", key))
        if cursor == "0":
            break
    return found


def _asker(connected: socket.socket) -> Callable[..., Any]:
    stream = connected.makefile("rwb")

    def answer() -> Any:
        line = stream.readline().rstrip(b"\r\n").decode(errors="replace")
        if not line or line[0] == "-":
            raise ConnectionError(line[1:] or "Redis closed the connection")
        kind, rest = line[0], line[1:]
        if kind == "$":
            return "" if rest == "-1" else stream.read(int(rest) + 2)[:-2].decode(errors="replace")
        return [answer() for _ in range(max(0, int(rest)))] if kind == "*" else rest

    def ask(*words: str) -> Any:
        parts = [word.encode() for word in words]
        stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        stream.flush()
        return answer()

    return ask


def prometheus(_: str, given: Any) -> State:
    """Return the rules and targets that Prometheus has loaded."""
    if not given.monitoring:
        return {}
    login = base64.b64encode(f"admin:{text('/etc/prometheus/secrets/password')}".encode()).decode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str) -> Any:
        address = f"{given.monitoring.split(',')[0]}/api/v1/{path}"
        request = urllib.request.Request(address, headers={"Authorization": f"Basic {login}"})
        with opener.open(request, timeout=PATIENCE) as told:
            return json.load(told)["data"]

    found = {}
    for group in ask("rules")["groups"]:
        for rule in group["rules"]:
            content = f"{rule['query']} {rule.get('duration')}"
            found[f"Prometheus' rule {rule['name']}"] = digest(content)
    for target in ask("targets?state=active")["activeTargets"]:
        found[f"Prometheus' target {target['labels'].get('job')} {target['scrapeUrl']}"] = "there"
    return found


# Severity and layer of what differs in each part; of files the layer is CONTENT's; ground first.
PARTS: dict[str, tuple[Callable[[str, Any], State], int, int]] = {
    "mounts": (mounts, WARNING, HOST),
    "sysctls": (sysctls, WARNING, HOST),
    "network": (network, WARNING, NETWORK),
    "names": (names, WARNING, NETWORK),
    "redis": (redis, WARNING, REDIS),
    "files": (files, WARNING, FILES),
    "release": (release, WARNING, FILES),
    "packages": (packages, WARNING, FILES),
    "manager": (manager, WARNING, FILES),
    "units": (units, WARNING, FILES),
    "processes": (processes, WARNING, FILES),
    "system packages": (system_packages, NOTE, LATER),
    "prometheus": (prometheus, WARNING, LATER),
}
# Parts in which only what both have is compared: the rest comes and goes.
BOTH = ("processes",)


def look(app: str, given: Any, parts: list[str]) -> dict[str, State | str]:
    """Return the state of each part, or why it cannot be seen, within ``WITHIN`` seconds."""
    found: dict[str, State | str] = {}

    def one(part: str) -> None:
        try:
            seen = PARTS[part][0](app, given)
            found[part] = dict(list(seen.items())[:ENTRIES])
        except Exception as error:  # noqa: BLE001 - one part must not hide the others
            found[part] = f"{type(error).__name__}: {error}"

    threads = {part: threading.Thread(target=one, args=(part,), daemon=True) for part in parts}
    until = time.monotonic() + WITHIN
    for thread in threads.values():
        thread.start()
    for part, thread in threads.items():
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            found[part] = f"it takes longer than {WITHIN} s"
    return dict(found)


def write(place: Path, now: dict[str, State | str]) -> None:
    """Record the parts that could be seen; others stay as they were recorded."""
    record = place / "healthy.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    seen = {part: state for part, state in now.items() if isinstance(state, dict)}
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = record.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps({**before, **seen, "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}, indent=0))
    fresh.replace(record)
    for former in place.glob("*.json"):  # of a part of site.yml each, before there was one record
        if former != record:
            former.unlink()


def compare(before: dict[str, Any], now: dict[str, State | str], app: str) -> Iterator[dict[str, Any]]:
    """Return what is not as it was recorded, as findings."""
    for part, state in now.items():
        _, severity, layer = PARTS[part]
        # A part that cannot be seen is a consequence, which doctor.py tells.
        if part not in before or isinstance(state, str):
            continue
        # Of what is not there now, like an instance that is down, doctor.py tells.
        there = {name.partition(":")[0] for name in state}
        both = {name for name in before[part] if name in state or (part == "redis" and name.partition(":")[0] in there)}
        wanted = (
            both if part in BOTH else both | state.keys() if part == "redis" else before[part].keys() | state.keys()
        )
        if part == "units":
            away = {name.partition(" ")[0] for name in state if name.endswith(" LoadState") and state[name] != "loaded"}
            wanted = {name for name in wanted if name.partition(" ")[0] not in away or name.endswith(" LoadState")}
        told = []
        for name in sorted(name for name in wanted if before[part].get(name) != state.get(name)):
            at = layer_of(name, app) if part == "files" else _layer(part, name, layer)
            told += [(at, what)] if (what := sentence(part, name, before[part].get(name), state.get(name))) else []
        more = [(LATER, f"{len(told) - NAMED} more of the {part} differ from the healthy state")]
        for at, what in sorted(told, key=lambda pair: pair[0])[:NAMED] + (more if len(told) > NAMED else []):
            found = {"severity": severity, "what": what, "runbook": "drift", "layer": at}
            yield {**found, "suspect": True, "difference": True}


def _layer(part: str, name: str, layer: int) -> int:
    # A kind of key stops who uses it, not the server.
    return RIGHTS if part == "redis" and re.search(": the (?:key|user) ", name) else layer


def layer_of(name: str, app: str) -> int:
    """Return what a file can explain when something fails."""
    for layer, patterns in CONTENT.items():
        for pattern in patterns.format(app=app).split():
            if name.startswith(re.split(r"[*?\[]", pattern)[0]):
                return layer
    return HOST


def sentence(part: str, name: str, before: str | None, now: str | None) -> str:
    """Return how something differs, nothing when it may."""
    if part in ("files", "release"):
        return change(name, before, now)
    if part == "redis" and ": the key " in name:
        persists = "_kombu.binding." in name and "pidbox" not in name and "reply" not in name
        # Other keys come and go.
        told = f"{name} is {'gone' if now is None else f'a {now}'} instead of a {before}: every use of it fails"
        return told if before is not None and (now is not None or persists) else ""
    if "packages" in part:
        whose = "Debian's package" if part.startswith("system") else "in the release's venv the package"
        versions = [value.partition(" ")[0] if value else "none" for value in (before, now)]
        same = "not the one that was installed" if versions[0] == versions[1] else ""
        return f"{whose} {name} is {same or f'{versions[1]} instead of {versions[0]}'}"
    hidden = re.fullmatch(r"[0-9a-f]{16}|there", now or before or "") is not None
    if before is None or now is None:
        return f"{name} is {'gone' if now is None else 'new'}" + ("" if hidden else f" ({now or before or 'empty'})")
    return f"{name} is not what it was" if hidden else f"{name} is {now or 'empty'} instead of {before or 'empty'}"


def change(name: str, before: str | None, now: str | None) -> str:
    """Return how a file differs, nothing when it may."""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(os.lstat(name).st_mtime)) if os.path.lexists(name) else ""
    if now is None or before is None:
        # A unit that stops takes its directory with it.
        told = f"{name} was removed by hand" if now is None else f"{name} was added by hand ({when} UTC)"
        return "" if name.startswith("/run/") else told
    old, new = before.split(), now.split()
    if name.endswith("*"):
        # Where there was no file, those that the directory's user has made are no difference.
        owner = rights(name[:-1]).partition(":")[0] if not before and os.path.lexists(name[:-1]) else ""
        usual = rf"{re.escape(owner)}:\S+ readable and writable" if owner else r"(?!)"
        more = {each for each in set(now.split(", ")) - set(before.split(", ")) if not re.fullmatch(usual, each)}
        return f"{name} is {now or 'nothing'} instead of {before or 'nothing'}" if more else ""
    if "leads to" in before + now:
        return f"{name} {now if 'leads to' in now else 'is itself'} instead of {before.removeprefix('leads to ')}"
    if old[:2] != new[:2]:
        return f"{name} is {' '.join(new[:2])} instead of {' '.join(old[:2])}"
    return f"{name} was changed by hand ({when} UTC)" if old[2] == new[2] else f"{name} is a {new[2]}, not a {old[2]}"


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="directory of the record")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--part", action="append", default=[], help="record this part alone")
    parser.add_argument("--app", default="typesafe", help="the installation's name")
    parser.add_argument("--unit", action="append", default=[])
    parser.add_argument("--redis", action="append", default=[])
    parser.add_argument("--monitoring", default="")
    given, _ = parser.parse_known_args()
    now = look(given.app, given, given.part or list(PARTS))
    record = given.place / "healthy.json"
    if given.write:
        write(given.place, now)
        print(json.dumps({part: state for part, state in now.items() if isinstance(state, str)}), flush=True)
    else:
        found = list(compare(json.loads(record.read_text()), now, given.app)) if record.exists() else []
        print(json.dumps(found), flush=True)
    os._exit(0)  # without waiting for what hangs


if __name__ == "__main__":
    main()
