"""What services hold while they run: network, names, Redis, Prometheus."""

import contextlib
import glob
import json
import re
import socket
import threading
import time
from typing import Any

import hosttools
from hosttools import files, process, web
from hosttools.redis_client import Instance, Redis, RedisError
from hosttools.state.values import ENTRIES, LONGEST, State, digest, short

SECRET = re.compile(r"pass|auth|secret|key-file-pass", re.IGNORECASE)


def network(_: str, __: Any) -> State:
    """Return links, addresses, routes, rules, queues, and the rules of packet filters without their counts."""
    found, keepalived = {}, files.read("/etc/keepalived/keepalived.conf").strip()
    for link in json.loads(process.output("ip", "-json", "address") or "[]"):
        name = re.sub(r"@.*", "", link["ifname"])
        if name.startswith(("veth", "docker", "br-", "cni", "podman", "virbr")):
            continue
        found[f"the link {name}"] = f"{'up' if 'UP' in link['flags'] else 'down'}, mtu {link['mtu']}"
        for address in link["addr_info"]:
            # One of keepalived's is on one balancer or another.
            is_virtual = f"{address.get('local')}/" in keepalived
            if not is_virtual and not address.get("temporary") and address.get("family") == "inet":
                found[f"the address {address['local']}/{address['prefixlen']}"] = f"on {name}"
    for command in (["route", "show", "table", "all"], ["rule", "show"]):
        for line in process.output("ip", *command).splitlines():
            if line.strip() and not re.search(r"table local|local |broadcast |linkdown|veth|docker|podman", line):
                kept = re.sub(r" (?:expires|metric) \S+| linkdown| proto \w+", "", line)
                found[f"the {command[0]} {' '.join(kept.split())}"] = "there"
    blocks = re.split(r"\n(?=\S)", process.output("ip", "xfrm", "policy"))
    found |= {f"the policy {short(' '.join(each.split()))}": "there" for each in blocks if "action block" in each}
    for words in map(str.split, process.output("tc", "qdisc", "show").splitlines()):
        if "dev" in words and not words[words.index("dev") + 1].startswith("veth"):
            found[f"the queue of {words[words.index('dev') + 1]}, {words[1]}"] = "there"
    table = ""
    for line in map(str.strip, process.output("nft", "list", "ruleset").splitlines()):
        if line.startswith("table"):
            table = " ".join(line.split()[1:3])
        elif re.search(r"\b(?:accept|drop|reject|jump|policy|redirect|queue|dnat|snat|mark)\b", line):
            rule = re.sub(r" *\bcounter(?: packets \d+ bytes \d+)?", "", line)
            found[f"the packet filter's rule {short(rule)} of the table {table}"] = "there"
    return found


def names(app: str, _: Any) -> State:
    """Return the addresses of the names that our programs look up."""
    urls = [files.read(file).strip() for file in glob.glob(f"/etc/{app}/secrets/*/*URL*")]  # noqa: PTH207
    hosts = {socket.gethostname(), "localhost", *re.findall(r"(?:@|//)([A-Za-z][\w.-]+):\d", " ".join(urls))}
    found: State = {}

    def ask(host: str) -> None:
        told = process.run("getent", "ahosts", host).output
        found[f"the name {host}"] = " ".join(sorted({line.split()[0] for line in told.splitlines()})) or "unknown here"

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in sorted(hosts)[:16]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(hosttools.TIMEOUT + 1)
    for server in re.findall(r"^nameserver (\S+)", files.read("/etc/resolv.conf").strip(), re.MULTILINE)[:3]:
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
        instance = Instance(pair.partition("=")[0])
        with contextlib.suppress(OSError, RedisError), instance.connect() as server:  # the doctor reports it
            found |= _instance(instance.name, instance.text, server)
    return found


def _instance(name: str, config: str, server: Redis) -> State:
    found: State = {}
    told = server.call("CONFIG", "GET", "*")
    # What the file names is compared with it by the doctor.
    in_file = set(re.findall(r"^([a-z][a-z-]+) ", config, re.MULTILINE)) | {"slaveof", "replicaof"}
    for key, value in zip(told[::2], told[1::2], strict=True):
        if key not in in_file and not SECRET.search(key):
            found[f"Redis {name}: {key}"] = short(value or "empty")
    # So are its users: one and the same rule is written otherwise by a server that was told it while it ran.
    ours = set(re.findall(r"^user (\S+) ", config, re.MULTILINE))
    for line in server.call("ACL", "LIST"):
        if (user := line.split()[1]) not in ours:
            found[f"Redis {name}: the user {user}"] = digest(" ".join(sorted(line.split())))
    return found | {f"Redis {name}: the key {key}": kind for key, kind in _keys(server).items()}


def _keys(server: Redis) -> State:
    """Return the kinds of keys, numbers and ids in their names left out."""
    found: State = {}
    cursor, until = "0", time.monotonic() + 1
    while time.monotonic() < until and len(found) < ENTRIES:
        cursor, names_here = server.call("SCAN", cursor, "COUNT", "500")
        for key in names_here:
            alike = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|\d+", "*", key)[:LONGEST]
            if alike not in found or "*" not in alike:
                found[alike] = str(server.call("TYPE", key))
        if cursor == "0":
            break
    return found


def prometheus(_: str, given: Any) -> State:
    """Return the rules and targets that Prometheus has loaded."""
    if not given.monitoring:
        return {}

    def query(path: str) -> Any:
        status, body = web.ask(f"{given.monitoring.split(',')[0]}/api/v1/{path}", web.prometheus_login())
        if status != 200:
            raise ConnectionError(body)
        return json.loads(body)["data"]

    found = {}
    for group in query("rules")["groups"]:
        for rule in group["rules"]:
            content = f"{rule['query']} {rule.get('duration')}"
            found[f"Prometheus' rule {rule['name']}"] = digest(content)
    for target in query("targets?state=active")["activeTargets"]:
        found[f"Prometheus' target {target['labels'].get('job')} {target['scrapeUrl']}"] = "there"
    return found
