"""What the redis role promises, looked at from outside: a converged host with the instances main and broker."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
INSTANCES = {
    "main": (6379, "redis-server", "/etc/redis/redis.conf"),
    "broker": (6380, "redis-server@broker", "/etc/redis/redis-broker.conf"),
}
each_instance = pytest.mark.parametrize("name", INSTANCES)


@pytest.fixture(scope="module")
def password() -> str:
    return (EPHEMERAL / "secrets" / "redis_password").read_text().split()[0]


def redis(host: Host, name: str, command: str) -> str:
    """The answer of redis-cli. The password is read on the host, so that these tests leave no trace of it either."""
    port, _, config_file = INSTANCES[name]
    run = host.run(
        f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {config_file}); "
        f"{command.replace('redis-cli', f'redis-cli -p {port}')}"
    )
    assert run.succeeded, run.stderr
    return run.stdout.strip()


def setting(host: Host, name: str, option: str) -> str:
    return redis(host, name, f"redis-cli --json CONFIG GET {option} | python3 -c 'import json, sys; print(*json.load(sys.stdin).values())'")


def info(host: Host, name: str, section: str) -> dict[str, str]:
    lines = redis(host, name, f"redis-cli INFO {section}").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def main_pid(host: Host, name: str) -> int:
    return int(host.check_output(f"systemctl show --value --property MainPID {INSTANCES[name][1]}"))


def converge(host: Host, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run the scenario's converge.yml again for this host, with other values."""
    return subprocess.run(
        [
            "ansible-playbook",
            f"--inventory={EPHEMERAL / 'inventory'}",
            f"--limit={host.backend.hostname}",
            f"--extra-vars={json.dumps(variables)}",
            str(PROJECT / "molecule" / "redis" / "converge.yml"),
        ],
        env=os.environ | {"ANSIBLE_CONFIG": str(EPHEMERAL / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def broker_like(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "main"}, {"name": "broker", "port": 6380, "maxmemory_policy": "noeviction"} | changes]


# Access


@each_instance
def test_no_password_is_refused(host: Host, name: str) -> None:
    assert "NOAUTH" in host.check_output(f"redis-cli -p {INSTANCES[name][0]} SET key value")


@each_instance
def test_wrong_password_is_refused(host: Host, name: str) -> None:
    answer = host.run(f"REDISCLI_AUTH=wrong redis-cli -p {INSTANCES[name][0]} PING")
    assert "WRONGPASS" in answer.stdout + answer.stderr
    assert "PONG" not in answer.stdout


@each_instance
def test_the_password_is_accepted(host: Host, name: str, password: str) -> None:
    assert f"requirepass {password}\n" in host.file(INSTANCES[name][2]).content_string
    assert redis(host, name, "redis-cli PING") == "PONG"


@each_instance
@pytest.mark.parametrize(
    "command", ["FLUSHALL", "FLUSHDB", "KEYS '*'", "DEBUG JMAP", "SHUTDOWN", "REPLICAOF localhost 1", "MODULE LIST", "SAVE"]
)
def test_dangerous_commands_are_closed(host: Host, name: str, command: str) -> None:
    assert "NOPERM" in redis(host, name, f"redis-cli {command}")


@each_instance
@pytest.mark.parametrize("command", ["CLIENT LIST", "SLOWLOG GET", "MEMORY DOCTOR", "LATENCY LATEST", "ACL LOG", "INFO"])
def test_an_operator_can_look_inside(host: Host, name: str, command: str) -> None:
    assert "NOPERM" not in redis(host, name, f"redis-cli {command}")


@each_instance
def test_listens_on_loopback_only(host: Host, name: str) -> None:
    port = INSTANCES[name][0]
    listening = host.check_output(f"ss -Hltn 'sport = :{port}'").splitlines()
    assert {line.split()[3] for line in listening} <= {f"127.0.0.1:{port}", f"[::1]:{port}"}
    assert listening


@each_instance
def test_the_socket_is_for_the_redis_user_only(host: Host, name: str) -> None:
    socket = host.file(setting(host, name, "unixsocket"))
    assert socket.is_socket
    assert (socket.user, socket.mode) == ("redis", 0o700)


# Settings, and the same after the host was restarted


EXPECTED = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "900 1 300 10 60 10000",
    "maxmemory": str(16 * 1024 * 1024),
    "maxclients": "10000",
    "protected-mode": "yes",
    "disable-thp": "yes",
}
POLICIES = {"main": "allkeys-lru", "broker": "noeviction"}


def assert_settings(host: Host, name: str, password: str) -> None:
    expected = EXPECTED | {"maxmemory-policy": POLICIES[name], "requirepass": password}
    assert {option: setting(host, name, option) for option in expected} == expected


@each_instance
def test_settings(host: Host, name: str, password: str) -> None:
    assert_settings(host, name, password)


def test_settings_and_data_hold_after_a_restart_of_the_host(host: Host, password: str) -> None:
    for name in INSTANCES:
        assert redis(host, name, f"redis-cli SET test:reboot {name}") == "OK"
    pids = {name: main_pid(host, name) for name in INSTANCES}
    subprocess.run([PROJECT / "scripts" / "testhost.sh", "reboot", host.backend.hostname], check=True, timeout=120)
    for name, (_, unit, _) in INSTANCES.items():
        assert host.service(unit).is_enabled
        assert host.service(unit).is_running
        assert main_pid(host, name) != pids[name]
        assert_settings(host, name, password)
        assert redis(host, name, "redis-cli GET test:reboot") == name
        assert "NOPERM" in redis(host, name, "redis-cli FLUSHALL")


# Memory


def fill(host: Host, name: str) -> str:
    """Write about twice maxmemory, then say how it went."""
    writes = """seq 1 32000 | awk '{printf "SET fill:%d %01000d\\r\\n", $1, 0}' | redis-cli --pipe 2>&1 | sort | uniq -c || true"""
    return redis(host, name, writes)


def empty(host: Host, name: str) -> None:
    redis(host, name, "redis-cli --scan --pattern 'fill:*' | xargs -r -n 1000 redis-cli UNLINK >/dev/null")


def test_main_evicts_the_oldest_and_goes_on(host: Host) -> None:
    before = int(info(host, "main", "stats")["evicted_keys"])
    assert "errors: 0, replies: 32000" in fill(host, "main")
    assert int(info(host, "main", "stats")["evicted_keys"]) > before
    assert redis(host, "main", "redis-cli EXISTS fill:32000") == "1"
    empty(host, "main")


def test_broker_refuses_writes_and_keeps_everything(host: Host) -> None:
    assert redis(host, "broker", "redis-cli LPUSH test:queue first") != "0"
    assert "OOM command not allowed" in fill(host, "broker")
    assert info(host, "broker", "stats")["evicted_keys"] == "0"
    assert redis(host, "broker", "redis-cli EXISTS test:queue fill:1") == "2"
    assert "OOM" in redis(host, "broker", "redis-cli LPUSH test:queue second")
    empty(host, "broker")
    assert redis(host, "broker", "redis-cli DEL test:queue") == "1"


# Processes and files


@each_instance
def test_sandbox_is_in_force(host: Host, name: str) -> None:
    pid = main_pid(host, name)
    status = dict(line.split(":\t", 1) for line in host.file(f"/proc/{pid}/status").content_string.splitlines())
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == 0
    options = {}
    for line in host.file(f"/proc/{pid}/mountinfo").content_string.splitlines():
        fields = line.split()
        options[fields[4]] = fields[5].split(",")
    assert "ro" in options["/"]
    assert "noexec" in options["/"]
    assert "rw" in options["/var/lib/redis"]
    assert "/home" in options


@each_instance
def test_sandbox_is_no_weaker_than_the_package_made_it(host: Host, name: str) -> None:
    report = host.check_output(f"systemd-analyze security --no-pager {INSTANCES[name][1]}.service")
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert exposure is not None
    assert float(exposure[1]) <= 1.1


@each_instance
def test_loading_is_not_cut_short(host: Host, name: str) -> None:
    assert host.check_output(f"systemctl show --value --property TimeoutStartUSec {INSTANCES[name][1]}") == "infinity"


@each_instance
def test_files_are_closed_to_others(host: Host, name: str) -> None:
    config = host.file(INSTANCES[name][2])
    assert (config.user, config.group, config.mode) == ("redis", "redis", 0o640)
    data = host.file(setting(host, name, "dir"))
    assert (data.user, data.group, data.mode & 0o027) == ("redis", "redis", 0)
    assert host.file(f"{data.path}/appendonlydir").is_directory


def test_password_is_in_the_two_configurations_only(host: Host, password: str) -> None:
    found = host.check_output(
        "bash -c \"grep -rlFf <(sed -n 's/^requirepass //p' /etc/redis/redis.conf)"
        ' /etc /home /root /run /tmp /usr/local /var/lib /var/log /var/tmp 2>/dev/null" || true'
    )
    assert sorted(found.splitlines()) == sorted(config_file for _, _, config_file in INSTANCES.values())
    assert password not in host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert password not in host.check_output("journalctl --no-pager")


def test_nothing_is_left_of_trial_starts(host: Host) -> None:
    assert host.run("ls -d /tmp/redis-check-config.*").failed
    assert len(host.check_output("pgrep -x redis-server").split()) == len(INSTANCES)


# Changes. Each converges this host again.


def test_what_redis_takes_live_is_applied_without_a_restart(host: Host) -> None:
    pids = {name: main_pid(host, name) for name in INSTANCES}
    for variables, memory in (({"redis_maxmemory": "24mb"}, 24), ({}, 16)):
        run = converge(host, **variables)
        assert run.returncode == 0, run.stdout
        for name in INSTANCES:
            assert setting(host, name, "maxmemory") == str(memory * 1024 * 1024)
            assert main_pid(host, name) == pids[name]


def test_only_the_instance_that_must_restarts(host: Host) -> None:
    pids = {name: main_pid(host, name) for name in INSTANCES}
    redis(host, "broker", "redis-cli SET test:restart kept")
    run = converge(host, redis_instances=broker_like(databases=4))
    assert run.returncode == 0, run.stdout
    assert setting(host, "broker", "databases") == "4"
    assert main_pid(host, "broker") != pids["broker"]
    assert main_pid(host, "main") == pids["main"]
    assert redis(host, "broker", "redis-cli GET test:restart") == "kept"
    assert converge(host).returncode == 0
    assert setting(host, "broker", "databases") == "16"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"redis_extra_settings": {"hz": "many"}}, "argument must be between"),
        ({"redis_bind": ["192.0.2.1"]}, "192.0.2.1"),
        ({"redis_disabled_commands": ["flushal"]}, "flushal"),
    ],
)
def test_a_broken_configuration_never_reaches_the_server(host: Host, password: str, variables: dict[str, Any], reason: str) -> None:
    def state() -> list[object]:
        return [(main_pid(host, name), host.file(INSTANCES[name][2]).sha256sum) for name in INSTANCES]

    before = state()
    run = converge(host, **variables)
    assert run.returncode != 0
    assert reason in run.stdout
    assert password not in run.stdout + run.stderr
    assert state() == before


def test_data_of_a_server_without_append_only_file_survives_the_switch(host: Host) -> None:
    """A server that somebody ran before: no password, snapshots only."""
    host.check_output("install -d -o redis -g redis -m 750 /var/lib/redis/legacy")
    host.check_output(
        "printf 'port 6390\\nbind 127.0.0.1\\ndir /var/lib/redis/legacy\\n' >/etc/redis/redis-legacy.conf"
        " && systemctl start redis-server@legacy"
    )
    assert host.check_output("redis-cli -p 6390 SET test:legacy kept") == "OK"
    run = converge(host, redis_instances=[*broker_like(), {"name": "legacy", "port": 6390}])
    assert run.returncode == 0, run.stdout
    legacy = {"legacy": (6390, "redis-server@legacy", "/etc/redis/redis-legacy.conf")}
    INSTANCES.update(legacy)
    try:
        assert setting(host, "legacy", "appendonly") == "yes"
        assert redis(host, "legacy", "redis-cli GET test:legacy") == "kept"
    finally:
        del INSTANCES["legacy"]
        host.check_output(
            "systemctl disable --quiet --now redis-server@legacy"
            " && rm -r /etc/redis/redis-legacy.conf /var/lib/redis/legacy"
        )
