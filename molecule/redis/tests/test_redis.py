"""What the redis role promises, looked at from outside: a converged host with the instances main and broker."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from conftest import Process, security_exposure
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
# Converging again takes its time on a busy machine.
pytestmark = pytest.mark.timeout(300)

MEGABYTE = 1024 * 1024
SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "900 1 300 10 60 10000",
    "maxmemory": str(16 * MEGABYTE),
    "maxclients": "10000",
    "protected-mode": "yes",
    "disable-thp": "yes",
}


@dataclass
class Instance:
    """One Redis on the host under test."""

    host: Host
    name: str
    port: int
    unit: str
    config_file: str

    def run(self, command: str) -> str:
        """Run a shell line in which redis-cli talks to this instance."""
        # The password is read on the host, so that these tests leave no trace of it there.
        run = self.host.run(
            f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {self.config_file}); "
            + command.replace("redis-cli", f"redis-cli -p {self.port}")
        )
        assert run.succeeded, run.stderr
        return str(run.stdout.strip())

    def settings(self, *options: str) -> dict[str, str]:
        """Read options from the running server."""
        values: dict[str, str] = json.loads(self.run(f"redis-cli --json CONFIG GET {' '.join(options)}"))
        return values

    def evicted(self) -> int:
        """Return how many keys were evicted since the start."""
        return int(self.run("redis-cli INFO stats | sed -n 's/^evicted_keys://p'"))

    def fill(self) -> str:
        """Write about twice maxmemory; return what redis-cli says of it."""
        writes = """seq 32000 | awk '{printf "SET fill:%d %01000d\\r\\n", $1, 0}'"""
        return self.run(f"{writes} | redis-cli --pipe 2>&1 | sort | uniq -c")

    def empty(self) -> None:
        """Remove what fill has written."""
        self.run("redis-cli --scan --pattern 'fill:*' | xargs -r -n 1000 redis-cli UNLINK >/dev/null")

    @property
    def run_id(self) -> str:
        """What Redis calls itself from one start to the next."""
        return self.run("redis-cli INFO server | sed -n 's/^run_id://p'")


@pytest.fixture
def main(host: Host) -> Instance:
    """The instance on the stock unit."""
    return Instance(host, "main", 6379, "redis-server", "/etc/redis/redis.conf")


@pytest.fixture
def broker(host: Host) -> Instance:
    """The second instance."""
    return Instance(host, "broker", 6380, "redis-server@broker", "/etc/redis/redis-broker.conf")


@pytest.fixture(params=["main", "broker"])
def instance(request: pytest.FixtureRequest, main: Instance, broker: Instance) -> Instance:
    """Each instance in turn."""
    return {"main": main, "broker": broker}[request.param]


# Access


def test_no_password_is_denied(host: Host, instance: Instance) -> None:
    assert "NOAUTH" in host.check_output(f"redis-cli -p {instance.port} SET key value")


def test_wrong_password_is_denied(host: Host, instance: Instance) -> None:
    answer = host.run(f"REDISCLI_AUTH=wrong redis-cli -p {instance.port} PING")
    assert "WRONGPASS" in answer.stdout + answer.stderr
    assert "PONG" not in answer.stdout


def test_the_password_is_accepted(instance: Instance, secret: Callable[[str], str]) -> None:
    assert instance.settings("requirepass") == {"requirepass": secret("redis_password")}
    assert instance.run("redis-cli PING") == "PONG"


def test_dangerous_commands_are_closed(instance: Instance) -> None:
    for command in ("FLUSHALL", "FLUSHDB", "KEYS x", "SHUTDOWN", "REPLICAOF localhost 1", "MODULE LIST", "SAVE"):
        assert instance.run(f"redis-cli {command}").startswith("NOPERM"), command
    # Redis itself refuses this one before it looks at permissions.
    assert "not allowed" in instance.run("redis-cli DEBUG SLEEP 0")


def test_an_operator_can_look_inside(instance: Instance) -> None:
    for command in (
        "CLIENT LIST",
        "SLOWLOG GET",
        "MEMORY DOCTOR",
        "LATENCY LATEST",
        "ACL LOG",
        "INFO",
        "CONFIG GET save",
    ):
        assert not instance.run(f"redis-cli {command}").startswith(("NOPERM", "ERR")), command


# Scripts


KNOWN = hashlib.sha1(b"return 'known'", usedforsecurity=False).hexdigest()


def test_scripts_are_there_after_each_start_and_come_back(host: Host, instance: Instance, converge: Converge) -> None:
    assert instance.run(f"redis-cli EVALSHA {KNOWN} 0") == "known"
    assert host.run(f"systemctl restart {instance.unit}").succeeded
    assert instance.run(f"redis-cli EVALSHA {KNOWN} 0") == "known"
    instance.run("redis-cli SCRIPT FLUSH")
    assert converge().returncode == 0
    assert instance.run(f"redis-cli EVALSHA {KNOWN} 0") == "known"


def test_a_script_that_never_ends_can_be_killed_and_does_not_keep_the_unit_from_stopping(
    host: Host, broker: Instance
) -> None:
    broker.run("redis-cli SET kept 1")
    busy = f"REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {broker.config_file}) setsid redis-cli -p {broker.port} EVAL"

    def keep_busy(script: str) -> None:
        host.check_output(f"{busy} '{script}' 0 >/dev/null 2>&1 </dev/null &")
        broker.run("timeout 20 sh -c 'until redis-cli PING | grep -q BUSY; do sleep 1; done'")

    keep_busy("while true do end")
    assert broker.run("redis-cli SCRIPT KILL") == "OK"
    assert broker.run("redis-cli PING") == "PONG"
    # It has written, so that Redis refuses to kill it, and it does not see SIGTERM.
    keep_busy('redis.call("SET", "unfinished", 1) while true do end')
    assert "UNKILLABLE" in broker.run("redis-cli SCRIPT KILL")
    took = host.check_output(f"s=$(date +%s); systemctl restart {broker.unit}; echo $(($(date +%s) - s))")
    assert 55 <= int(took) <= 75
    assert broker.run("redis-cli GET kept") == "1"
    assert broker.run("redis-cli GET unfinished") == ""
    assert broker.run(f"redis-cli EVALSHA {KNOWN} 0") == "known"


def test_listens_on_loopback_only(host: Host, instance: Instance) -> None:
    listening = host.check_output(f"ss -Hltn 'sport = :{instance.port}'").splitlines()
    assert listening
    assert {line.split()[3] for line in listening} <= {f"127.0.0.1:{instance.port}", f"[::1]:{instance.port}"}


# Settings and data, also after the host was restarted


def test_settings(instance: Instance) -> None:
    assert instance.settings(*SETTINGS) == SETTINGS


def test_eviction_policies(main: Instance, broker: Instance) -> None:
    assert main.settings("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
    assert broker.settings("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_settings_and_data_hold_after_a_restart_of_the_host(
    host: Host, main: Instance, broker: Instance, reboot: Callable[[], None]
) -> None:
    options = [*SETTINGS, "maxmemory-policy", "requirepass"]
    before = {}
    for instance in (main, broker):
        assert instance.run(f"redis-cli SET test:reboot {instance.name}") == "OK"
        before[instance.name] = (instance.run_id, instance.settings(*options))
    reboot()
    for instance in (main, broker):
        assert host.service(instance.unit).is_enabled
        run_id, settings = before[instance.name]
        assert instance.run_id != run_id
        assert instance.settings(*options) == settings
        assert instance.run("redis-cli GET test:reboot") == instance.name
        assert instance.run("redis-cli FLUSHALL").startswith("NOPERM")


def test_main_evicts_and_goes_on(main: Instance) -> None:
    before = main.evicted()
    assert "errors: 0, replies: 32000" in main.fill()
    assert main.evicted() > before
    assert main.run("redis-cli EXISTS fill:32000") == "1"
    main.empty()


def test_broker_rejects_writes_and_loses_nothing(broker: Instance) -> None:
    assert broker.run("redis-cli LPUSH test:queue first") == "1"
    assert "OOM command not allowed" in broker.fill()
    assert broker.run("redis-cli LPUSH test:queue second").startswith("OOM")
    assert broker.evicted() == 0
    assert broker.run("redis-cli EXISTS test:queue fill:1") == "2"
    broker.empty()
    assert broker.run("redis-cli DEL test:queue") == "1"


# Processes and files


def test_sandbox_is_in_force(instance: Instance) -> None:
    Process(instance.host, instance.unit).assert_sandboxed("redis")


def test_sandbox_is_no_weaker_than_the_package_made_it(instance: Instance) -> None:
    assert security_exposure(instance.host, instance.unit) <= 1.1


def test_loading_is_not_cut_short_and_no_restart_is_the_last(host: Host, instance: Instance) -> None:
    shown = host.check_output(
        f"systemctl show --property TimeoutStartUSec,StartLimitIntervalUSec,Restart {instance.unit}"
    )
    assert set(shown.splitlines()) == {"TimeoutStartUSec=infinity", "StartLimitIntervalUSec=0", "Restart=always"}


def test_limits_and_the_last_to_be_killed(host: Host, instance: Instance) -> None:
    shown = host.check_output(f"systemctl show --property OOMScoreAdjust,TasksMax,LimitCORE,MemoryMax {instance.unit}")
    assert set(shown.splitlines()) == {"OOMScoreAdjust=-900", "TasksMax=512", "LimitCORE=0", "MemoryMax=infinity"}


def test_files_are_closed_to_others(host: Host, instance: Instance) -> None:
    def access(path: str) -> tuple[str, str, int]:
        file = host.file(path)
        return file.user, file.group, file.mode

    settings = instance.settings("dir", "unixsocket")
    assert access(instance.config_file) == ("redis", "redis", 0o640)
    assert access(settings["dir"]) == ("redis", "redis", 0o750)
    assert access(settings["unixsocket"]) == ("redis", "redis", 0o700)
    assert host.file(f"{settings['dir']}/appendonlydir").is_directory


def test_password_is_in_the_two_configurations_only(
    host: Host, main: Instance, broker: Instance, secret: Callable[[str], str]
) -> None:
    found = host.check_output(
        "bash -c \"grep -rlFf <(sed -n 's/^requirepass //p' /etc/redis/redis.conf)"
        ' /etc /home /root /run /tmp /usr/local /var/lib /var/log /var/tmp 2>/dev/null" || true'
    )
    assert sorted(found.splitlines()) == sorted([main.config_file, broker.config_file])
    seen = host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager")
    assert seen.count(secret("redis_password")) == 0


# Changes


@pytest.fixture
def legacy(host: Host) -> Iterator[Instance]:
    """A server that somebody ran before: no password, snapshots only."""
    instance = Instance(host, "legacy", 6390, "redis-server@legacy", "/etc/redis/redis-legacy.conf")
    host.check_output(
        "install -d -o redis -g redis -m 750 /var/lib/redis/legacy"
        f" && printf 'port 6390\\nbind 127.0.0.1\\ndir /var/lib/redis/legacy\\n' >{instance.config_file}"
        f" && systemctl start {instance.unit}"
    )
    yield instance
    host.check_output(f"systemctl disable --quiet --now {instance.unit}")
    host.check_output(f"rm -r {instance.config_file} /var/lib/redis/legacy")


def test_a_run_applies_live_what_it_can_restarts_what_it_must_and_loses_nothing(
    main: Instance, broker: Instance, legacy: Instance, converge: Converge
) -> None:
    """Each instance gets its own kind of change: memory, number of databases, the append-only file."""
    before = main.run_id, broker.run_id
    broker.run("redis-cli SET test:restart kept")
    assert legacy.run("redis-cli SET test:legacy kept") == "OK"
    instances = [
        {"name": "main"},
        {"name": "broker", "port": 6380, "maxmemory_policy": "noeviction", "databases": 4},
        {"name": "legacy", "port": 6390},
    ]
    run = converge(redis_maxmemory="24mb", redis_instances=instances)
    assert run.returncode == 0, run.stdout
    assert main.settings("maxmemory") == {"maxmemory": str(24 * MEGABYTE)}
    assert main.run_id == before[0]
    assert {instance.settings("databases")["databases"] for instance in (main, broker)} == {"16", "4"}
    assert broker.run_id != before[1]
    assert broker.run("redis-cli GET test:restart") == "kept"
    assert legacy.settings("appendonly") == {"appendonly": "yes"}
    assert legacy.run("redis-cli GET test:legacy") == "kept"


def test_a_broken_configuration_never_reaches_the_server(
    host: Host, main: Instance, broker: Instance, converge: Converge, secret: Callable[[str], str]
) -> None:
    def state() -> list[object]:
        return [(instance.run_id, host.file(instance.config_file).sha256sum) for instance in (main, broker)]

    before = state()
    # What the preflight does not know of an option: Redis does.
    run = converge(redis_extra_settings={"cluster-announce-hostname": "a!b"})
    assert run.returncode != 0
    assert "cluster-announce-hostname a!b" in run.stdout
    assert run.stdout.count(secret("redis_password")) == 0
    assert state() == before


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ("s/^port .*/port 6379/", True),  # the running server's own port
        ("s/^bind .*/bind 192.0.2.1/", False),
        ("s/-flushall/-flushal/", False),
        ("s/^maxmemory .*/maxmemory lots/", False),
        ("s/^requirepass .*/& &/", False),
    ],
)
def test_a_configuration_can_be_tried(
    host: Host, main: Instance, change: str, accepted: bool, secret: Callable[[str], str]
) -> None:
    run_id = main.run_id
    host.check_output(f"sed '{change}' {main.config_file} | install -m 600 /dev/stdin /root/trial.conf")
    run = host.run("redis-check-config /root/trial.conf")
    host.check_output("rm /root/trial.conf")
    assert run.succeeded == accepted
    assert bool(run.stderr) != accepted
    assert (run.stdout + run.stderr).count(secret("redis_password")) == 0
    assert main.run_id == run_id
    assert main.run("redis-cli -s /run/redis/redis-server.sock PING") == "PONG"
    assert host.run("ls -d /tmp/redis-check-config.*").failed
