"""The faults: how each is brought, how it ends, and what proves that it happened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from celery_durable.testing import wait_for
from tests.chaos.host import BEAT, PROJECT, ChaosError, Host, podman

# Seconds from the end of a fault until the next task must start.
RECOVERY_LIMIT = 15.0

BROKER = 6380
BROKER_DATA = "/var/lib/redis/broker"
ASIDE = "/var/lib/chaos/data"
BROKER_LOG = "journalctl --unit=redis-server@broker"
CUT = """
table inet chaos {
  chain input {
    type filter hook input priority 0
    tcp dport { 6379, 6380 } drop
    tcp sport { 6379, 6380 } drop
  }
}
"""
REDIS_UNITS = {6379: "redis-server", 6380: "redis-server@broker"}


def _nothing(host: Host) -> None:
    pass


def _heals_itself(host: Host, seen: str) -> None:
    pass


def _seen_already(host: Host, seen: str) -> str:  # noqa: ARG001 - one signature for all
    return seen


@dataclass(frozen=True)
class Fault:
    """One row. ``inject`` returns what ``heal`` and ``proof`` need; all raise ChaosError when it did not work."""

    name: str
    expected: str
    inject: Callable[[Host], str]
    proof: Callable[[Host, str], str] = _seen_already
    heal: Callable[[Host, str], None] = _heals_itself
    hold: float = 0  # seconds between the two
    prepare: Callable[[Host], None] = _nothing  # before the load
    cleanup: Callable[[Host], None] = _nothing  # after the row, whatever has become of it
    over_at_once: bool = False  # the recovery counts from the injection, else from the end of heal
    replaces_worker: bool = False  # only a task of a new process shows the recovery
    recovery_limit: float = RECOVERY_LIMIT
    why: str = ""  # that the limit is another one
    kills_tasks: bool = False  # a process dies that runs tasks; only these run again
    forgets: bool = False  # Redis loses what it had confirmed
    pools: tuple[str, ...] = ("prefork", "asyncio", "threads")
    quick: bool = False  # belongs to the short run too


# Worker and API


def _kill_worker(host: Host) -> str:
    pid = host.worker_pid()
    host.run(f"kill -KILL {pid}")
    return str(pid)


def _new_worker(host: Host, old: str) -> str:
    new = wait_for(lambda: (pid := host.worker_pid()) != int(old) and pid, "another main process of the worker", 90)
    return f"main process {old}, then {new}"


def _busy_child(host: Host) -> int:
    """Return a child of the pool that runs a task at this moment."""
    running = {}
    for event in host.ledger():
        if event["event"] != "done":
            running[event["id"]] = event["pid"] if event["event"] == "start" else 0
    return next((pid for pid in reversed(running.values()) if pid), 0)


def _kill_child(host: Host) -> str:
    pid = wait_for(lambda: _busy_child(host), "a child that runs a task", 10)
    main = host.worker_pid()
    if pid == main:
        raise ChaosError("the pool has no child processes")
    host.run(f"kill -KILL {pid}")
    return f"{pid} of {main}"


def _child_is_gone(host: Host, seen: str) -> str:
    child, _, main = seen.partition(" of ")
    wait_for(lambda: host.process_state(int(child)) in {"", "Z"}, "the child's end", 10)
    if host.worker_pid() != int(main):
        raise ChaosError("the main process has changed too")
    return f"child {child} gone, main process {main} the same"


def _stop_worker_process(host: Host) -> str:
    pid = host.worker_pid()
    host.run(f"kill -STOP {pid}")
    wait_for(lambda: host.process_state(pid) == "T", "the stopped state", 5)
    return f"main process {pid} in state T"


def _end_stopped_worker(host: Host) -> None:
    # A supervision without a watchdog would leave it stopped for all rows to come.
    pid = host.worker_pid()
    if host.process_state(pid) == "T":
        host.run(f"kill -KILL {pid}")


def _restart_worker(host: Host) -> str:
    pid = host.worker_pid()
    restart = "supervisorctl restart typesafe-celery-worker" if host.supervised else "systemctl restart typesafe-celery"
    host.run(restart, seconds=120)
    return str(pid)


def _restart_api(host: Host) -> str:
    pid = host.main_pid("typesafe-api")
    host.run("systemctl restart typesafe-api")
    new = host.main_pid("typesafe-api")
    if new in {0, pid}:
        raise ChaosError("the API's main process is the same")
    return f"main process {pid}, then {new}"


def _kill_beat(host: Host) -> str:
    pid = host.main_pid(BEAT)
    host.run(f"kill -KILL {pid}")
    return str(pid)


def _another_beat_sends(host: Host, old: str) -> str:
    began = time.monotonic()
    new = wait_for(
        lambda: next((e["pid"] for e in host.ledger() if e["event"] == "sent" and e["pid"] != int(old)), 0),
        "a run that another beat sends",
        RECOVERY_LIMIT,
    )
    return f"main process {old}, then {new}, which sent after {time.monotonic() - began:.0f} s"


# Redis


def _redis_pids(host: Host) -> dict[int, int]:
    return {port: host.main_pid(unit) for port, unit in REDIS_UNITS.items()}


def _restart_both(host: Host) -> str:
    before = _redis_pids(host)
    host.run("systemctl restart redis-server redis-server@broker")
    after = _redis_pids(host)
    if any(after[port] in {0, before[port]} for port in before):
        raise ChaosError("a Redis has the same main process")
    return "main processes " + ", ".join(f"{before[port]} then {after[port]} (port {port})" for port in before)


def _redis_is_back(host: Host, seen: str) -> None:  # noqa: ARG001 - one signature for all
    wait_for(host.redis_answers, "both Redis answer", 30)


def _kill_broker(host: Host) -> str:
    pid = host.main_pid(REDIS_UNITS[BROKER])
    host.run(f"kill -KILL {pid}")
    return str(pid)


def _new_broker(host: Host, old: str) -> str:
    new = host.main_pid(REDIS_UNITS[BROKER])
    if new in {0, int(old)}:
        raise ChaosError("the broker's main process is the same")
    return f"main process {old}, then {new}"


def _stop_broker_process(host: Host) -> str:
    pid = host.main_pid(REDIS_UNITS[BROKER])
    host.run(f"kill -STOP {pid}")
    if answer := host.redis(BROKER, "PING", seconds=1):
        raise ChaosError(f"the stopped broker answers {answer}")
    return str(pid)


def _continue_broker(host: Host, pid: str) -> None:
    host.run(f"kill -CONT {pid}")


def _did_not_answer(host: Host, pid: str) -> str:
    if host.main_pid(REDIS_UNITS[BROKER]) != int(pid):
        raise ChaosError("the broker's main process has changed")
    return f"process {pid} did not answer PING while stopped"


def _fill_memory(host: Host) -> str:
    """Write keys of 1 MiB until Redis refuses; the last of them leaves no room for small ones either."""
    for number in range(200):
        answer = host.redis(BROKER, f"SETRANGE chaos:filler:{number} 1048575 x")
        if answer.startswith("OOM"):
            return f"Redis said: {answer.split('.')[0]}"
        if answer != "1048576":
            raise ChaosError(f"Redis said: {answer}")
    raise ChaosError("200 MiB fit into the broker")


def _empty_memory(host: Host, seen: str = "") -> None:  # noqa: ARG001 - one signature for all
    host.redis(BROKER, "UNLINK " + " ".join(f"chaos:filler:{number}" for number in range(200)))


def _move_broker_to_small_disk(host: Host) -> None:
    """Put the broker's data on a file system of its own that can be filled."""
    host.run(f"""
      set -e
      systemctl stop redis-server@broker
      cp -a {BROKER_DATA} {ASIDE}
      mount -t tmpfs -o size=48m chaos {BROKER_DATA}
      cp -a {ASIDE}/. {BROKER_DATA}
      systemctl start redis-server@broker
    """)
    wait_for(host.is_healthy, "the stack on the small disk", 60)


def _move_broker_back(host: Host) -> None:
    host.run(f"""
      set -e
      systemctl stop redis-server@broker
      rm -rf {ASIDE} {BROKER_DATA}/filler
      if mountpoint -q {BROKER_DATA}; then
        cp -a {BROKER_DATA} {ASIDE}
        umount {BROKER_DATA}
        cp -a {ASIDE}/. {BROKER_DATA}
        rm -rf {ASIDE}
      fi
      systemctl start redis-server@broker
    """)


def _fill_disk(host: Host) -> str:
    host.run(f"head -c 64M /dev/zero >{BROKER_DATA}/filler", check=False)

    def refusal() -> str:
        # "always" makes Redis exit when it cannot write; then nobody answers.
        answer = host.redis(BROKER, "SET chaos:probe 1")
        return "" if answer == "OK" else answer

    return f"Redis said: {wait_for(refusal, 'a refusal of Redis', 15)[:60]}"


def _free_disk(host: Host, seen: str) -> None:  # noqa: ARG001 - one signature for all
    host.run(f"rm {BROKER_DATA}/filler")
    wait_for(lambda: host.redis(BROKER, "DEL chaos:probe").isdigit(), "the broker takes writes", 30)


def _truncate_log(host: Host) -> str:
    """Cut the end off the append-only file as a crash of the machine would, while Redis cannot write on."""
    pid = host.main_pid(REDIS_UNITS[BROKER])
    return host.run(f"""
      set -e
      kill -STOP {pid}
      file=$(ls -t {BROKER_DATA}/appendonlydir/*.incr.aof | head -1)
      size=$(stat -c %s "$file")
      echo "$({BROKER_LOG} | grep -c 'short read' || true) of $size bytes"
      truncate -s $((size - 100)) "$file"
      kill -KILL {pid}
    """)


def _log_was_truncated(host: Host, seen: str) -> str:
    before, _, size = seen.partition(" of ")
    after = host.run(f"{BROKER_LOG} | grep -c 'short read' || true")
    if int(after) <= int(before):
        raise ChaosError("Redis did not notice that its append-only file is cut")
    return f"100 bytes cut off {size}; Redis logged a short read"


# Host and network


def _started_at(host: Host) -> str:
    return podman("container", "inspect", "--format", "{{.State.StartedAt}}", host.name)


def _reboot(host: Host) -> str:
    before = _started_at(host)
    subprocess.run([PROJECT / "scripts/testhost.sh", "reboot", host.name], check=True, timeout=240)
    return before


def _cut_power(host: Host) -> str:
    before = _started_at(host)
    podman("kill", "--signal", "KILL", host.name)
    podman("wait", host.name)
    podman("start", host.name)
    host.wait_for_boot()
    return before


def _started_anew(host: Host, before: str) -> str:
    if (after := _started_at(host)) == before:
        raise ChaosError("the host did not start anew")
    return f"started at {after[11:19]}, before at {before[11:19]}"


def _nft(host: Host, rules: str) -> None:
    """Load rules into the host's own network, with its own nft: an older one crashes on what a newer one has loaded."""
    host.enter("--net", "--mount", "nft", "--file", "-", stdin=rules)


def _cut_network(host: Host) -> str:
    _nft(host, CUT)
    if answer := host.run("timeout 2 redis-cli -p 6380 PING 2>&1", check=False):
        raise ChaosError(f"the broker answers over the cut network: {answer}")
    if host.redis(BROKER, "PING") != "PONG":
        raise ChaosError("the broker does not even answer on its socket")
    return "PING over TCP unanswered, over the socket answered"


def _mend_network(host: Host, seen: str) -> None:  # noqa: ARG001 - one signature for all
    _nft(host, "delete table inet chaos")


# Deployment


def _live_release(host: Host) -> str:
    return host.run("readlink /opt/typesafe/backend").rpartition("/")[2]


def _deploy(host: Host) -> str:
    """Change the application and run the whole playbook; the change is in a copy, not in the working tree."""
    before = _live_release(host)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for part in ("app", "requirements"):
            shutil.copytree(PROJECT / part, copy / part)
        with (copy / "app/__init__.py").open("a") as file:
            file.write(f"# {host.name} {time.time()}\n")
        variables = {"app_release_source": str(copy), "app_release_cache": str(PROJECT / ".cache/releases")}
        command = ["ansible-playbook", f"--inventory={os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory"]
        command += [f"--limit={host.name}", f"--extra-vars={json.dumps(variables)}"]
        command += [str(PROJECT / "molecule/chaos/converge.yml")]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=900
        )
    if result.returncode:
        raise ChaosError(f"the playbook failed: {result.stdout[-600:]}")
    if (after := _live_release(host)) == before:
        raise ChaosError(f"the live release is still {before}")
    return f"release {before}, then {after}"


FAULTS = (
    Fault(
        "worker killed",
        "The supervisor starts a new one; its tasks run again.",
        _kill_worker,
        _new_worker,
        kills_tasks=True,
        over_at_once=True,
        replaces_worker=True,
        quick=True,
    ),
    Fault(
        "pool child killed",
        "Its tasks run again; those of other processes do not notice.",
        _kill_child,
        _child_is_gone,
        kills_tasks=True,
        over_at_once=True,
        pools=("prefork", "asyncio"),
        quick=True,
    ),
    Fault(
        "worker stopped (SIGSTOP)",
        "The watchdog ends it; a new one runs its tasks again.",
        _stop_worker_process,
        cleanup=_end_stopped_worker,
        kills_tasks=True,
        over_at_once=True,
        replaces_worker=True,
        recovery_limit=25,
        why="the watchdog waits 10 s, which come on top",
        quick=True,
    ),
    Fault(
        "worker restarted",
        "It finishes what it runs; nothing runs twice.",
        _restart_worker,
        _new_worker,
        over_at_once=True,
        replaces_worker=True,
        quick=True,
    ),
    Fault(
        "beat killed",
        "The next one sends as soon as the lease is over, and nothing twice.",
        _kill_beat,
        _another_beat_sends,
        over_at_once=True,
        quick=True,
    ),
    Fault("API restarted", "No request is refused.", _restart_api, over_at_once=True, quick=True),
    Fault(
        "both Redis restarted",
        "API and worker connect again.",
        _restart_both,
        heal=_redis_is_back,
        quick=True,
    ),
    Fault(
        "broker killed",
        "systemd starts it; the append-only file has all.",
        _kill_broker,
        _new_broker,
        _redis_is_back,
        quick=True,
    ),
    Fault(
        "broker stopped 10 s (SIGSTOP)",
        "Requests are refused with 503 in time, then all goes on.",
        _stop_broker_process,
        _did_not_answer,
        _continue_broker,
        hold=10,
    ),
    Fault(
        "broker's memory full 10 s",
        "Requests are refused; what was accepted runs.",
        _fill_memory,
        heal=_empty_memory,
        hold=10,
        cleanup=_empty_memory,
        quick=True,
    ),
    Fault(
        "broker's disk full 10 s",
        "Requests are refused; what was accepted runs.",
        _fill_disk,
        heal=_free_disk,
        hold=10,
        prepare=_move_broker_to_small_disk,
        cleanup=_move_broker_back,
        quick=True,
    ),
    Fault(
        "broker's append-only file cut by 100 bytes",
        "Redis loads what is whole. What the lost end had confirmed may run again.",
        _truncate_log,
        _log_was_truncated,
        _redis_is_back,
        forgets=True,
        quick=True,
    ),
    Fault("host rebooted", "Tasks end before the shutdown or run after it.", _reboot, _started_anew, quick=False),
    Fault("host lost power", "Tasks that ran run again.", _cut_power, _started_anew, kills_tasks=True, quick=True),
    Fault(
        "network to Redis cut 30 s",
        "Running tasks end; their results arrive late. Requests are refused.",
        _cut_network,
        heal=_mend_network,
        hold=30,
    ),
    Fault(
        "new release deployed",
        "Running tasks end in the old release; no request is refused.",
        _deploy,
    ),
)
