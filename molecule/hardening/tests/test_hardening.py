"""Nobody gets in: what the roles hardening and firewall promise, looked at from the host, a peer and an outsider."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import EPHEMERAL, security_exposure
from shared import portscan
from testinfra.host import Host

from celery_durable.testing import wait_for

Converge = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.timeout(300)

# Who is in which group, and what that makes of its ports.
DECLARED = {"hardening-debian12": {22, 6379, 6380, 8000}, "hardening-debian13": {22}}
FOR_EVERYBODY = {"hardening-debian12": {22, 8000}, "hardening-debian13": {22}}
PEER = {"hardening-debian12": "hardening-debian13", "hardening-debian13": "hardening-debian12"}
# What listens on the test hosts, declared or not: Redis, API, Flower and a program that nobody knows.
LISTENING = {6379, 6380, 8000, 5555, 9999}
UDP_LISTENING = {5353, 9999}
CONNECTION_LIMIT = 20  # the inventory's client_connection_limit
UDP_OF_INTEREST = {53, 67, 69, 111, 123, 137, 161, 500, 514, 631, 1900, 5353, 6379, 9999, 11211}

SERVER = f"""
import select, socket
tcp = [socket.create_server(("0.0.0.0", port)) for port in {sorted(LISTENING)}]
udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in {sorted(UDP_LISTENING)}]
for each, port in zip(udp, {sorted(UDP_LISTENING)}):
    each.bind(("0.0.0.0", port))
while True:
    for ready in select.select(tcp + udp, [], [])[0]:
        if ready in tcp:
            ready.accept()[0].close()
        else:
            ready.sendto(*ready.recvfrom(64))
"""


@pytest.fixture(scope="module")
def outsider() -> Iterator[portscan.Scanner]:
    """A test host on the same network that no inventory knows."""
    with portscan.outsider("hardening-outsider") as scanner:
        yield scanner


@pytest.fixture(autouse=True)
def listening(host: Host) -> None:
    """Something listens on every interesting port of the host, on all addresses."""
    if host.run("systemctl is-active listeners").failed:
        host.check_output("systemd-run --unit=listeners python3 -c %s", SERVER)
        wait_for(lambda: "0.0.0.0:9999" in host.check_output("ss -Hltn"), "listeners", 30)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Show a measured figure, which pytest would hide when the test passes."""

    def run(figure: str) -> None:
        with capsys.disabled():
            print(f"\n  {figure}")  # noqa: T201

    return run


def rules(host: Host) -> str:
    return str(host.run("nft --stateless --terse list table inet platform").stdout)


# The network


def test_an_unexpected_client_reaches_the_declared_ports_alone(
    host: Host, name: str, outsider: portscan.Scanner, say: Callable[[str], None]
) -> None:
    scan = outsider.scan(portscan.address(host))
    say(f"{name}: {len(portscan.ALL_PORTS)} TCP ports scanned in {scan.seconds} s")
    assert scan.open == FOR_EVERYBODY[name]
    assert scan.refused == set(), "a closed port answered: it was not dropped"
    udp = outsider.scan(portscan.address(host), UDP_OF_INTEREST, "udp")
    assert (udp.open, udp.refused) == ({5353}, set())


def test_a_peer_reaches_what_it_needs(host: Host, name: str) -> None:
    scan = portscan.Scanner(PEER[name]).scan(portscan.address(host), LISTENING | {22, 1234})
    assert scan.open == DECLARED[name]
    assert scan.refused == set()


@pytest.mark.once("hardening-debian12")
def test_one_address_has_so_many_connections_and_others_have_theirs(
    host: Host, name: str, outsider: portscan.Scanner
) -> None:
    """The API's port, that everybody reaches; the host itself has no limit, nor has a port that clients do not use."""
    address = portscan.address(host)
    assert outsider.hold(address, 8000, CONNECTION_LIMIT + 10) == CONNECTION_LIMIT
    assert portscan.Scanner(PEER[name]).hold(address, 8000, 5) == 5
    # What was closed does not count any longer.
    wait_for(lambda: outsider.hold(address, 8000, 5) == 5, "new connections", 30)
    assert portscan.Scanner(name).hold("127.0.0.1", 8000, CONNECTION_LIMIT + 10) == CONNECTION_LIMIT + 10
    assert portscan.Scanner(PEER[name]).hold(address, 6380, CONNECTION_LIMIT + 10) == CONNECTION_LIMIT + 10


def test_the_host_reaches_itself(host: Host, name: str) -> None:
    for address in ("127.0.0.1", portscan.address(host)):
        assert portscan.Scanner(name).scan(address, LISTENING).open == LISTENING


def test_the_host_reaches_others(host: Host) -> None:
    assert host.run("apt-get update").succeeded


@pytest.mark.once("hardening-debian12")
def test_it_is_the_firewall_that_closes_and_the_next_run_closes_again(
    host: Host, name: str, outsider: portscan.Scanner, converge: Converge
) -> None:
    before = rules(host)
    host.check_output("nft delete table inet platform")
    everything = outsider.scan(portscan.address(host))
    # Without it the same scan sees every port: what listens, and a refusal by each of the others.
    assert everything.open == LISTENING | {22}
    assert everything.silent == 0
    assert outsider.scan(portscan.address(host), {9999}, "udp").open == {9999}
    run = converge()
    assert run.returncode == 0, run.stdout
    assert "changed=1 " in run.stdout, run.stdout
    assert rules(host) == before
    assert outsider.scan(portscan.address(host), LISTENING | {22}).open == FOR_EVERYBODY[name]


@pytest.mark.once("hardening-debian13")
def test_a_rule_changed_by_hand_is_set_right(host: Host, converge: Converge) -> None:
    before = rules(host)
    host.check_output("nft insert rule inet platform input tcp dport 9999 accept")
    assert rules(host) != before
    run = converge()
    assert run.returncode == 0, run.stdout
    assert rules(host) == before


def test_the_firewalls_own_unit_can_do_little_else(host: Host) -> None:
    assert security_exposure(host, "platform-firewall.service") <= 1.5


@pytest.mark.once("hardening-debian13")
def test_tables_of_other_programs_are_left_alone(host: Host, converge: Converge) -> None:
    host.check_output("nft add table ip foreign")
    run = converge(host_firewall_allow=[{"name": "other", "port": 9999}])
    assert run.returncode == 0, run.stdout
    assert "dport 9999" in rules(host)
    host.check_output("systemctl stop platform-firewall")
    assert rules(host) == ""
    assert host.check_output("nft list tables") == "table ip foreign"
    run = converge()
    assert run.returncode == 0, run.stdout
    assert "dport 9999" not in rules(host)
    host.check_output("nft delete table ip foreign")


@pytest.mark.parametrize("verb", ["reload", "restart", "stop"])
def test_debians_own_firewall_service_does_not_open_the_host(host: Host, verb: str) -> None:
    # Its file begins with "flush ruleset".
    host.check_output("systemctl start nftables")
    wait_for(lambda: "dport 22" in rules(host), "the platform's rules after nftables.service started", 30)
    host.check_output(f"systemctl {verb} nftables")
    wait_for(lambda: "dport 22" in rules(host), f"the platform's rules after a {verb} of nftables.service", 30)
    host.check_output("systemctl stop nftables; nft flush ruleset; systemctl restart platform-firewall")


def test_what_is_dropped_is_counted(host: Host, outsider: portscan.Scanner) -> None:
    def dropped() -> int:
        table = host.check_output("nft list table inet platform")
        return int(re.findall(r"counter packets (\d+) .* drop", table)[-1])

    before = dropped()
    outsider.scan(portscan.address(host), {9999})
    assert dropped() > before


def test_pings_are_answered_but_not_a_flood(host: Host, outsider: portscan.Scanner) -> None:
    scan = outsider.scan(portscan.address(host), range(1, 501), "ping")
    assert 20 <= len(scan.open) <= 100


@pytest.mark.once("hardening-debian12")
def test_rules_that_would_lock_ansible_out_are_rejected(host: Host, converge: Converge) -> None:
    before = rules(host), host.file("/etc/nftables-platform.conf").content_string
    for values, words in (
        ({"firewall_ssh_from": ["192.0.2.0/24"]}, "firewall_ssh_from (192.0.2.0/24)"),
        ({"firewall_ssh_port": 2222}, "firewall_ssh_port is 2222"),
    ):
        run = converge(**values)
        assert run.returncode != 0
        assert words in " ".join(run.stdout.split())
        assert "changed=0 " in run.stdout
    assert (rules(host), host.file("/etc/nftables-platform.conf").content_string) == before


@pytest.mark.once("hardening-debian13")
def test_rules_hold_after_a_restart_of_the_host(host: Host, reboot: Callable[[], None]) -> None:
    before = rules(host)
    reboot()
    assert host.service("platform-firewall").is_enabled
    assert rules(host) == before


# SSH

SSHD = {
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "permitrootlogin": "no",
    "permitemptypasswords": "no",
    "x11forwarding": "no",
    "allowagentforwarding": "no",
    "allowtcpforwarding": "local",
    "allowstreamlocalforwarding": "local",
    "permittunnel": "no",
    "logingracetime": "30",
    "maxauthtries": "4",
    "clientaliveinterval": "300",
    "loglevel": "VERBOSE",
}


def test_sshd_follows_the_file(host: Host) -> None:
    effective = dict(line.split(" ", 1) for line in host.check_output("sshd -T").splitlines() if " " in line)
    assert {key: effective[key] for key in SSHD} == SSHD
    for kind in ("kexalgorithms", "ciphers", "macs"):
        assert not re.search(r"sha1|md5|nistp|cbc|umac-64", effective[kind]), effective[kind]


@pytest.fixture
def door(host: Host) -> Iterator[Callable[..., str]]:
    """Log in from the host into itself, through the hardened sshd (22) or a lax one (2222); return what came of it."""
    setup = """
    useradd --create-home --shell /bin/bash guest && echo guest:Guess-me-1 | chpasswd
    printf '#!/bin/sh\\necho Guess-me-1\\n' >/root/askpass && chmod 700 /root/askpass
    ssh-keygen -q -t ed25519 -N '' -f /root/key
    install -d -o guest -m 700 /home/guest/.ssh
    install -o guest -m 600 /root/key.pub /home/guest/.ssh/authorized_keys
    install -d -m 700 /root/.ssh && install -m 600 /root/key.pub /root/.ssh/authorized_keys
    systemd-run --quiet --unit=lax /usr/sbin/sshd -D -p 2222 -o PermitRootLogin=yes -o PasswordAuthentication=yes
    until ss -Hltn | grep -q :2222; do sleep 0.1; done
    """
    host.check_output(f"set -e; {setup}")

    def run(user: str, *options: str, port: int = 22) -> str:
        common = f"-p {port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        answer = host.run(
            f"SSH_ASKPASS=/root/askpass SSH_ASKPASS_REQUIRE=force timeout 20 ssh {common} {' '.join(options)}"
            f" {user}@127.0.0.1 echo came in || true"
        )
        return str(answer.stdout + answer.stderr)

    yield run
    host.run("systemctl stop lax; userdel --remove guest; rm -r /root/askpass /root/key /root/key.pub /root/.ssh")


def test_a_password_lets_nobody_in_and_a_key_does_but_not_root(door: Callable[..., str]) -> None:
    password = ("-o PubkeyAuthentication=no", "-o PreferredAuthentications=password,keyboard-interactive")
    key = ("-i /root/key", "-o IdentitiesOnly=yes", "-o BatchMode=yes")
    # The lax one shows that these logins are right.
    assert "came in" in door("guest", *password, port=2222)
    assert "came in" in door("root", *key, port=2222)
    answer = door("guest", *password)
    assert "Permission denied (publickey)" in answer
    assert "came in" not in answer
    answer = door("root", *key)
    assert "Permission denied (publickey)" in answer
    assert "came in" not in answer
    assert "came in" in door("guest", *key)


@pytest.mark.once("hardening-debian13")
def test_an_inventory_with_a_password_is_rejected(converge: Converge) -> None:
    password = secrets.token_urlsafe()
    run = converge(ansible_ssh_password=password)
    assert run.returncode != 0
    assert "with a password, which hardening closes" in " ".join(run.stdout.split())
    assert password not in run.stdout


# Updates


@pytest.mark.once("hardening-debian13")
def test_security_updates_alone_come_by_themselves(host: Host) -> None:
    run = host.run("unattended-upgrade --dry-run --debug")
    assert run.succeeded, run.stderr
    origins = re.findall(r"Allowed origins are: (.*)", run.stdout + run.stderr)
    codename = host.check_output(". /etc/os-release; echo $VERSION_CODENAME")
    assert origins == [f"origin=Debian,codename={codename}-security,label=Debian-Security"]


def test_updates_are_switched_on_and_reboots_off(host: Host) -> None:
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in settings
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_enabled
        assert host.service(timer).is_running


# Files, core dumps, kernel


def test_no_core_dumps(host: Host) -> None:
    assert host.check_output("systemctl show --value --property DefaultLimitCORE") == "0"
    assert host.check_output("su - ops -c 'ulimit -Hc; umask'").split() == ["0", "0027"]


def test_the_umask_is_not_for_programs(host: Host) -> None:
    # What Ansible and apt install must stay readable for the services' users.
    assert host.check_output("sudo sh -c umask") == "0022"


# Lynis brings cron's directories.
@pytest.mark.once("hardening-debian12")
def test_cron_is_nobodys_business(host: Host) -> None:
    for path, mode in (("/etc/cron.d", 0o700), ("/etc/cron.daily", 0o700), ("/etc/ssh/sshd_config", 0o600)):
        assert host.file(path).mode == mode, path


@pytest.mark.once("hardening-debian12")
def test_the_kernel_knows_every_parameter_and_is_left_alone(host: Host, converge: Converge) -> None:
    # A container's kernel is not ours: nothing is written, and what would be is looked at in check mode.
    assert not host.file("/etc/sysctl.d/60-hardening.conf").exists
    run = converge("--check", "--diff", __hardening_in_container=False)
    assert run.returncode == 0, run.stdout
    parameters = re.findall(r"\+([a-z0-9_.]+) = (\d+)\b", run.stdout)
    assert len(parameters) > 20
    assert "+install dccp /bin/false" in run.stdout
    # Not every kernel has these.
    optional = {"kernel.yama.ptrace_scope", "kernel.kexec_load_disabled", "net.core.bpf_jit_harden"}
    unknown = {key for key, _ in parameters if not host.file(f"/proc/sys/{key.replace('.', '/')}").exists}
    assert unknown <= optional


# What Lynis says


def report(host: Host, path: str) -> tuple[int, set[str]]:
    """Return the hardening index and the suggestions of a report."""
    text = host.file(path).content_string
    index = re.search(r"^hardening_index=(\d+)", text, re.MULTILINE)
    assert index
    suggestions = re.findall(r"^suggestion\[\]=([A-Z]+-\d+)\|([^|]*)\|([^|]*)", text, re.MULTILINE)
    return int(index[1]), {" ".join(suggestion).strip() for suggestion in suggestions}


@pytest.mark.once("hardening-debian12")
def test_lynis_thinks_better_of_the_host(host: Host, name: str, say: Callable[[str], None]) -> None:
    host.check_output("systemctl stop listeners")
    host.run("lynis audit system --quick --no-colors --quiet")
    before, suggested = report(host, "/root/lynis-before.dat")
    after, remaining = report(host, "/var/log/lynis-report.dat")
    figures = {"before": before, "after": after, "resolved": len(suggested - remaining), "left": sorted(remaining)}
    (EPHEMERAL / f"lynis-{name}.json").write_text(json.dumps(figures, indent=1))
    say(f"{name}: Lynis {before} before, {after} after; {len(suggested)} suggestions before, {len(remaining)} after")
    assert after >= before + 5, sorted(remaining)
