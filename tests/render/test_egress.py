"""Where tasks may connect to: the addresses that count as public, and the rules of the firewall among real hosts.

The hosts are network namespaces of this machine: nothing is sent to any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.render.rendering import render
from tests.support import REPOSITORY, load_plugin

egress = load_plugin("plugins/filter/egress.py")
PUBLIC = [{"name": "https", "ports": [443]}]
REDIS = [{"name": "redis", "to": ["10.9.9.2"], "ports": [6380]}]


def is_closed(address: IPv4Address | IPv6Address) -> bool:
    family = "ip" if address.version == 4 else "ip6"
    return any(address in ip_network(network) for network in egress.egress_closed(family))


@given(st.ip_addresses())
def test_an_address_that_is_not_public_is_closed(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_link_local:
        assert is_closed(address)


@pytest.mark.attack("nftables, by the workers' user")
@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_no_more_open_in_its_ipv6_forms(address: IPv4Address) -> None:
    for prefix in (
        "::ffff:",
        "::ffff:0:",
        "::",
        "::5efe:",
        "64:ff9b:1::",
    ):  # mapped, translated (SIIT), ... NAT64 of one's own
        assert is_closed(IPv6Address(f"{prefix}{address}"))
    assert is_closed(IPv6Address(0x2002 << 112 | int(address) << 80))  # 6to4
    assert is_closed(IPv6Address(f"64:ff9b::{address}")) == is_closed(address)


@pytest.mark.attack("nftables, by the workers' user")
@given(st.ip_addresses(v=6))
def test_ipv6_beyond_the_internet_is_closed(address: IPv6Address) -> None:
    """Networks laid over others have addresses that nobody has assigned, like 200::/7."""
    assert is_closed(address) or address in ip_network("2000::/3") or address in ip_network("64::/16")


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_a_public_address_is_open(address: str) -> None:
    assert not is_closed(ip_address(address))


@pytest.mark.parametrize(
    ("dns", "resolvers"),
    [
        ({"nameservers": ["127.0.0.53"]}, ["127.0.0.53"]),
        ({"nameservers": ["fe80::1%eth0", "10.0.0.2"]}, ["fe80::1", "10.0.0.2"]),
        ({"nameservers": ["resolver.example.com"]}, egress.LOOPBACK),
        ({"search": ["example.com"]}, egress.LOOPBACK),
        (None, egress.EVERYWHERE),
    ],
)
def test_resolvers_are_those_that_the_c_library_asks(dns: Any, resolvers: list[str]) -> None:
    assert egress.egress_resolvers(dns) == resolvers


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("10.0.0.9", ["10.0.0.9"]),
        ("fd00::7", ["fd00::7"]),
        ("localhost", egress.LOOPBACK),
        ("redis.internal", egress.EVERYWHERE),
    ],
)
def test_redis_is_found_at_an_address_and_by_a_name_anywhere(host: str, addresses: list[str]) -> None:
    assert egress.egress_host(host) == addresses


def test_a_unit_gets_the_addresses() -> None:
    assert egress.egress_allowed(REDIS + PUBLIC) == ["10.9.9.2/32"]
    denied = egress.egress_denied(REDIS + PUBLIC)
    assert {"127.0.0.0/8", "169.254.0.0/16", "10.0.0.0/8"} <= set(denied)
    for local in ("fe80::1", "fd00::1"):
        assert any(ip_address(local) in ip_network(network) for network in denied)
    assert egress.egress_denied(REDIS) == ["any"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"name": 'x" accept'}, ["letters"]),
        ({"name": "a", "to": ["db.internal"]}, ["'a' of worker_egress", "db.internal", "names"]),
        ({"name": "a", "to": ["10.0.0.9/24"]}, ["10.0.0.9/24"]),
        ({"name": "a", "to": []}, ["'a'", "[] as to", "entries"]),
        ({"name": "a", "ports": []}, ["'a'", "[] as ports", "entries"]),
        ({"name": "a", "ports": 443}, ["'a'", "ports", "list"]),
        ({"name": "a", "ports": [70000]}, ["70000", "65535"]),
        ({"name": "a", "ports": ["1-9"]}, ["1-9", "65535"]),
    ],
)
def test_a_wrong_rule_is_rejected(rule: dict[str, Any], words: list[str]) -> None:
    (sentence,) = egress.egress_errors([rule], "worker_egress")
    assert all(word in sentence for word in words)
    assert egress.egress_errors(PUBLIC + REDIS, "worker_egress") == []


def test_the_services_reach_both_redis_by_default(tmp_path: Path) -> None:
    wanted = {
        ("127.0.0.1",): ["localhost"],
        ("10.0.0.9",): ["localhost", "10.0.0.9"],
        ("127.0.0.1", "10.0.0.5"): ["localhost", "10.0.0.5"],
        ("10.0.0.9", "fd00::5"): ["localhost", "10.0.0.9", "fd00::5"],
        ("::1", "queue.internal"): ["localhost", "any"],
        ("cache.internal", "queue.internal"): ["localhost", "any"],
    }
    variants = {
        str(number): {"user_id": 1, **dict(zip(("redis_host", "redis_broker_host"), hosts, strict=False))}
        for number, hosts in enumerate(wanted)
    }
    folders = render("firewall.yml", variants, tmp_path)
    assert [json.loads((folders[name] / "allow.json").read_text()) for name in variants] == list(wanted.values())


# Among hosts

OWN_NAMESPACE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]

# The workers' host and the others are network namespaces, joined by a cable. In both, every port of interest is served
# at every address. Prints what became of each connection, and the counter. Root plays the workers' user.
HOSTS = """
import ctypes, json, os, re, socket, subprocess, sys, threading
own, others, ports, targets, container = json.loads(sys.argv[2])
libc = ctypes.CDLL(None)

def run(*command):
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout

def addresses(link, wanted):
    for address in wanted:
        length = "128" if ":" in address else "32"
        run("ip", "address", "add", f"{address}/{length}", "dev", link, *(["nodad"] if ":" in address else []))
    run("ip", "link", "set", link, "up")

def serve():
    tcp = []
    for port in ports:
        tcp.append(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100))
        each = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.setsockopt(socket.IPPROTO_IPV6, 49, 1)  # IPV6_RECVPKTINFO: answer from the address that was asked
        each.bind(("::", port))
        threading.Thread(target=echo, args=[each], daemon=True).start()
    return tcp

def echo(each):
    while True:
        data, ancillary, _, sender = each.recvmsg(64, 256)
        each.sendmsg([data], ancillary, 0, sender)

ready, start = os.pipe()
served, serving = os.pipe()
peer = os.fork()
if peer == 0:
    libc.unshare(0x40000000)  # CLONE_NEWNET
    os.write(serving, b"1")
    os.read(ready, 1)
    run("ip", "link", "set", "lo", "up")
    addresses("far", others)
    for route in (["ip", "route"], ["ip", "-6", "route"]):
        run(*route, "add", "default", "dev", "far")
    kept = serve()
    os.write(serving, b"1")
    os.read(ready, 1)
    os._exit(0)
os.read(served, 1)
run("ip", "link", "set", "lo", "up")
run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(peer))
addresses("near", own)
for route in (["ip", "route"], ["ip", "-6", "route"]):
    run(*route, "add", "default", "dev", "near")
kept = serve()
os.write(start, b"1")
os.read(served, 1)
run("nft", "--file", sys.argv[1])

# A container of the host has a namespace of its own, behind it.
here = os.open("/proc/self/ns/net", os.O_RDONLY)
if container:
    address, gateway = container
    for path in ("ip_forward", "conf/near/proxy_arp"):
        with open(f"/proc/sys/net/ipv4/{path}", "w") as setting:
            setting.write("1")
    libc.unshare(0x40000000)
    host = f"/proc/{os.getpid()}/fd/{here}"
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "bridge", "netns", host)
    run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    inside = os.open("/proc/self/ns/net", os.O_RDONLY)
    libc.setns(here, 0)
    run("ip", "address", "add", f"{gateway}/24", "dev", "bridge")
    run("ip", "link", "set", "bridge", "up")
    libc.setns(inside, 0)
    run("ip", "route", "add", "default", "via", gateway)

def connect(address, port, protocol):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as each:
        each.settimeout(2)
        try:
            each.connect((address, port))
            if protocol == "udp":
                each.send(b"?")
                each.recv(1)
        except OSError as error:
            return type(error).__name__
    return "open"

outcomes = [connect(*target) for target in targets]
libc.setns(here, 0)
counter = re.search(r"egress_refused.*?packets (\\d+)", run("nft", "list", "ruleset"), re.S)
print(json.dumps({"outcomes": outcomes, "refused": int(counter[1])}))
os.write(start, b"1")
os.waitpid(peer, 0)
"""
OWN = ["10.9.9.1", "8.8.4.4", "fd00::1", "2606:4700::1"]
OTHERS = [
    *("10.9.9.2", "10.9.9.3", "172.16.5.5", "192.168.7.53", "100.64.0.2", "169.254.169.254", "8.8.8.8"),
    *("fd00::2", "fd00:ec2::254", "2606:4700::2", "64:ff9b::808:808", "64:ff9b::a09:902"),
    *("::ffff:0:a9fe:a9fe", "200:9::2"),  # metadata by SIIT; an overlay network
]
PORTS = [53, 80, 443, 5432, 6379, 6380]
Target = tuple[str, int, str]
# Redis is 10.9.9.2 with both ports, the resolver 192.168.7.53.
OPEN: list[Target] = [
    ("10.9.9.2", 6379, "tcp"),
    ("10.9.9.2", 6380, "tcp"),
    ("::ffff:10.9.9.2", 6380, "tcp"),
    ("192.168.7.53", 53, "udp"),
    ("192.168.7.53", 53, "tcp"),
    ("8.8.8.8", 443, "tcp"),
    ("2606:4700::2", 443, "tcp"),
    ("64:ff9b::808:808", 443, "tcp"),
]
REFUSED: list[Target] = [
    # Other ports of hosts that may be reached, and Redis' ports elsewhere.
    *[("10.9.9.2", port, "tcp") for port in (53, 80, 443)],
    *[("192.168.7.53", port, "tcp") for port in (80, 443, 6380)],
    *[("8.8.8.8", port, "tcp") for port in (53, 80, 5432, 6380)],
    ("8.8.8.8", 443, "udp"),
    ("8.8.8.8", 53, "udp"),
    # This host, by all of its addresses and forms of them.
    *[
        (address, 443, "tcp")
        for address in ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", *OWN)  # noqa: S104
    ],
    ("127.0.0.1", 6380, "tcp"),
    ("127.0.0.1", 53, "udp"),
    # Private, shared and link-local networks, metadata services among them.
    *[
        (address, 443, "tcp")
        for address in (
            *OTHERS[1:6],
            "fd00::2",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a09:902",
            *OTHERS[-2:],
        )
    ],
    ("169.254.169.254", 80, "tcp"),
    ("169.254.169.254", 53, "udp"),
]
# A worker's container with the host's address in its network, and what it reaches there of OPEN.
CONTAINER = ("10.9.8.5", "10.9.8.1")
OPEN_TO_CONTAINERS: list[Target] = [
    (CONTAINER[1], 53, "udp"),
    ("192.168.7.53", 53, "udp"),
    ("192.168.7.53", 53, "tcp"),
    ("8.8.8.8", 443, "tcp"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "restricted": {"redis_host": "10.9.9.2", "user_id": 0},
    "somebody-else": {"redis_host": "10.9.9.2", "user_id": 4711},
    "by-name": {"redis_host": "redis.internal", "user_id": 0},
    "local": {"redis_host": "localhost", "user_id": 0, "worker_egress": []},
    "named": {
        "user_id": 0,
        "worker_egress": [
            {"name": "database", "to": ["10.9.9.2/31", "fd00::/64"], "ports": [5432, 443]},
            {"name": "metadata", "to": ["169.254.169.254"]},
            {"name": "quic", "ports": [443], "protocol": "udp"},
        ],
    },
    "everything": {"user_id": 0, "worker_egress": [{"name": "everything", "to": ["0.0.0.0/0", "::/0"]}]},
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return render("firewall.yml", VARIANTS, tmp_path_factory.mktemp("egress"))


@pytest.fixture
def connect(rendered: dict[str, Path]) -> Callable[..., tuple[dict[Target, str], int]]:
    """Try connections under the rules of a variant; return what became of each, and how many packets were refused."""

    def run(variant: str, targets: list[Target], container: bool = False) -> tuple[dict[Target, str], int]:
        rules = rendered[variant] / ("egress.nft" if container else "rules.nft")
        hosts = [OWN, OTHERS, PORTS, targets, CONTAINER if container else None]
        arguments = [str(rules), json.dumps(hosts)]
        command = [*OWN_NAMESPACE, sys.executable, "-c", HOSTS, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        return dict(zip(targets, report["outcomes"], strict=True)), report["refused"]

    return run


Connect = Callable[..., tuple[dict[Target, str], int]]


@pytest.mark.attack("nftables, by the workers' user")
@pytest.mark.integration
def test_the_workers_user_reaches_redis_resolvers_and_the_public_internet_alone(connect: Connect) -> None:
    outcomes, refused = connect("restricted", OPEN + REFUSED)
    assert {target for target, outcome in outcomes.items() if outcome == "open"} == set(OPEN)
    # TCP learns it at once.
    assert {outcomes[target] for target in REFUSED if target[2] == "tcp"} == {"ConnectionRefusedError"}
    assert refused >= len(REFUSED)


@pytest.mark.attack("nftables, by the workers' network")
@pytest.mark.integration
def test_a_workers_container_reaches_resolvers_and_the_public_internet_alone(connect: Connect) -> None:
    ipv4 = [target for target in REFUSED if "." in target[0] and ":" not in target[0]]
    outside = [target for target in ipv4 if not target[0].startswith(("127.", "0."))]  # these are its own
    closed = [*outside, ("10.9.9.2", 6379, "tcp"), *[(CONTAINER[1], port, "tcp") for port in (80, 443, 6380)]]
    outcomes, refused = connect("restricted", OPEN_TO_CONTAINERS + closed, container=True)
    assert {target for target, outcome in outcomes.items() if outcome == "open"} == set(OPEN_TO_CONTAINERS)
    assert {outcomes[target] for target in closed if target[2] == "tcp"} == {"ConnectionRefusedError"}
    assert refused >= len(closed)


@pytest.mark.integration
def test_the_inventory_opens_to_containers_what_it_names(connect: Connect) -> None:
    wanted: list[Target] = [("10.9.9.2", 5432, "tcp"), ("10.9.9.3", 443, "tcp"), ("169.254.169.254", 80, "tcp")]
    closed: list[Target] = [("10.9.9.2", 80, "tcp"), ("8.8.8.8", 443, "tcp"), ("10.9.9.1", 443, "tcp")]
    outcomes, _ = connect("named", wanted + closed, container=True)
    assert {target for target, outcome in outcomes.items() if outcome == "open"} == set(wanted)


@pytest.mark.integration
def test_other_users_reach_everything(connect: Connect) -> None:
    outcomes, refused = connect("somebody-else", OPEN + REFUSED)
    assert {target: outcome for target, outcome in outcomes.items() if outcome != "open"} == {}
    assert refused == 0


@pytest.mark.integration
def test_a_redis_that_has_a_name_is_reached_by_its_ports(connect: Connect) -> None:
    outcomes, _ = connect("by-name", [("10.9.9.3", 6379, "tcp"), ("fd00::2", 6380, "tcp"), ("10.9.9.3", 443, "tcp")])
    assert list(outcomes.values()) == ["open", "open", "ConnectionRefusedError"]


@pytest.mark.attack("nftables, by the workers' user")
@pytest.mark.integration
def test_without_rules_only_redis_and_resolvers_are_reached(connect: Connect) -> None:
    wanted: list[Target] = [("127.0.0.1", 6379, "tcp"), ("::1", 6380, "tcp"), ("192.168.7.53", 53, "udp")]
    outcomes, _ = connect("local", [*wanted, ("8.8.8.8", 443, "tcp"), ("2606:4700::2", 443, "tcp")])
    assert {target for target, outcome in outcomes.items() if outcome == "open"} == set(wanted)


@pytest.mark.integration
def test_the_inventory_opens_what_it_names_and_no_more(connect: Connect) -> None:
    wanted: list[Target] = [
        ("10.9.9.2", 5432, "tcp"),
        ("10.9.9.3", 443, "tcp"),
        ("fd00::2", 5432, "tcp"),
        ("169.254.169.254", 80, "tcp"),
        ("8.8.8.8", 443, "udp"),
    ]
    closed: list[Target] = [
        ("10.9.9.2", 80, "tcp"),
        ("fd00:ec2::254", 443, "tcp"),
        ("169.254.169.254", 80, "udp"),
        ("8.8.8.8", 443, "tcp"),
    ]
    outcomes, _ = connect("named", wanted + closed)
    assert {target for target, outcome in outcomes.items() if outcome == "open"} == set(wanted)


@pytest.mark.integration
def test_the_inventory_may_open_everything(connect: Connect) -> None:
    outcomes, refused = connect("everything", [target for target in OPEN + REFUSED if target[2] == "tcp"])
    assert set(outcomes.values()) == {"open"}
    assert refused == 0


@pytest.mark.integration
def test_the_doctor_knows_the_rules_that_nft_prints(rendered: dict[str, Path]) -> None:
    for folder in rendered.values():
        file = folder / "rules.nft"
        look = (
            "import sys; from hosttools.doctor import network;"
            " network.RULES = sys.argv[1]; print([found.what for found in network.check([6380])])"
        )
        load = ["sh", "-c", 'nft --file "$1" && "$2" -c "$3" "$1"', "sh", str(file), sys.executable, look]
        told = subprocess.run([*OWN_NAMESPACE, *load], capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert told.stdout == "[]\n"


@pytest.mark.integration
def test_the_counter_reaches_the_exporter_and_no_link_in_its_directory_is_followed(
    rendered: dict[str, Path], tmp_path: Path
) -> None:
    elsewhere, script = tmp_path / "elsewhere", tmp_path / "egress-refused"
    (directory := tmp_path / "node-exporter").mkdir()
    (directory / "egress.prom").symlink_to(elsewhere)
    text = (REPOSITORY / "roles/exporters/files/egress-refused").read_text()
    script.write_text(text.replace("/var/lib/prometheus/node-exporter", str(directory)))
    # Without rules it fails, and leaves nothing that the exporter could not read.
    without = subprocess.run([*OWN_NAMESPACE, "sh", str(script)], capture_output=True, check=False)
    assert without.returncode != 0
    assert not elsewhere.exists()
    # The workers' user is root of this namespace.
    refused = "ip link set lo up; ! bash -c 'exec 3<>/dev/tcp/127.0.0.1/1' 2>&1"
    commands = f'nft --file "$1" && {{ {refused}; }} && sh "$2"'
    run = [*OWN_NAMESPACE, "sh", "-c", commands, "sh", str(rendered["restricted"] / "rules.nft"), str(script)]
    subprocess.run(run, check=True)
    assert "\nworker_egress_denied_total 1\n" in (directory / "egress.prom").read_text()
    assert not elsewhere.exists()
    assert [file.name for file in directory.iterdir()] == ["egress.prom"]
