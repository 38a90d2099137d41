"""What systemd and the kernel say: units, processes, mounts, settings."""

import re
import shlex
from pathlib import Path
from typing import Any

from hosttools import files, process, procfs
from hosttools.state.values import State, digest, pairs, short

# What systemd says of a unit changes while it works, or follows from other units.
CHANGES = re.compile(
    r"Timestamp|Monotonic|PID|Current|Peak|Usage|Restarts|Invocation|State$|Result|^ExecMain|^Status|^Job|^ControlGroup"
    r"|^IP.*(?:Bytes|Packets)|^IO(?:Read|Write)|^MemoryAvail|Descriptor(?!sMax)|^Can|^(?:Wants|Before|After|Documentation)$"
    r"|^(?:Requir|Want|Trigger|Conflict|Consist|Bound|Propagat|Stop|Refer|Upheld|Part|Success|Failure|Reload|On).*(?:By|From|Of)$"
    r"|^[UG]ID$|^RestartUSecNext|^RequiresMountsFor|^WantsMountsFor|^Perpetual|^Transient|^Id$|^Names$|^Following|^DefaultDep|^LiveMount|^Accept|^NConn"
    r"|^NRef|^ExtensionImage|^Markers|^DebugInvoc|^CPUSet|EffectiveT|^Effective|^StartupM|^OOMPolicyDefault"
)
SYSCTLS = "vm net/core net/ipv4 net/ipv6/conf/all net/ipv4/conf/all net/unix kernel fs user"
STEADY = re.compile(
    r"random/|/ns_last_pid|entropy|dentry|inode|file-nr|aio-nr|/tainted|cad_pid|sched_domain|pty/nr|_ctr|epoch"
)
STATES = ("enabled", "disabled", "masked", "enabled-runtime", "masked-runtime", "linked", "static")
UNITS = "systemd-journald dbus cron ssh systemd-logind"
# Of a process, and of its control group.
STATUS = "Uid Gid Groups CapEff NoNewPrivs Seccomp Cpus_allowed_list Mems_allowed_list"
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = "memory.max memory.high pids.max cpu.max cpu.weight cpuset.cpus cgroup.freeze"
# Names that systemd or a start gives anew.
OWN_VARIABLES = re.compile(
    r"INVOCATION|JOURNAL|NOTIFY|PID|LISTEN|WATCHDOG|CREDENTIALS|MEMORY_PRESSURE|SYSTEMD|SUPERVISOR|^_$"
)


def units(_: str, given: Any) -> State:
    """Return the properties of our units and of those that they need, and what is masked or enabled on this host."""
    found: State = {}
    names = [*(pair.partition("=")[0] for pair in given.unit), *UNITS.split()]
    for unit, shown in zip(names, process.output("systemctl", "show", *names).strip().split("\n\n"), strict=False):
        loaded = dict(pairs(shown)).get("LoadState", "loaded")
        found[f"{unit} LoadState"] = loaded
        for name, value in pairs(shown):
            # One that is masked has nothing but defaults.
            if CHANGES.search(name) or loaded != "loaded":
                continue
            steady = re.sub(r" ; start_time=.*?(?=})", " ", value)
            if name == "Environment":
                words = (word.partition("=") for word in shlex.split(value.replace("'", "\\'")))
                steady = " ".join(f"{word[0]}={digest(word[2])}" for word in words)
            if "{" not in steady:  # lists of units have another order after each daemon-reload
                steady = " ".join(sorted(steady.split()))
            key = f"{unit} {name}"
            found[key] = short(f"{found[key]} {steady}" if key in found else steady)
    for line in process.output("systemctl", "list-unit-files", "--plain", "--no-legend").splitlines():
        unit, state = [*line.split(), "", ""][:2]
        # systemd-run numbers what has no name.
        named = state == "transient" and unit.endswith((".service", ".timer")) and not re.match(r"run-", unit)
        if named or state in STATES:
            found[f"{unit} as a unit file"] = state
    return found


def manager(_: str, __: Any) -> State:
    """Return what systemd gives to all units: variables, as digests, and defaults."""
    found = {}
    for name, value in pairs(process.output("systemctl", "show-environment")):
        found[f"systemd's environment variable {name}"] = digest(value)
    for name, value in pairs(process.output("systemctl", "show")):
        if name.startswith("Default") or name in ("LogLevel", "ShowStatus", "ConfirmSpawn", "UnitPath"):
            found[f"systemd's {name}"] = short(value)
    return found


def processes(_: str, given: Any) -> State:
    """Return limits, scheduling and variables of each unit's main process, and the limits of its control group."""
    found: State = {}
    names = [pair.partition("=")[0] for pair in given.unit]
    shown = process.output("systemctl", "show", "--property=MainPID,ControlGroup", *names).strip().split("\n\n")
    for unit, told in zip(names, shown, strict=False):
        about = dict(line.partition("=")[::2] for line in told.splitlines())
        number, group = about.get("MainPID", "0"), about.get("ControlGroup", "")
        place = Path("/proc") / number
        if number == "0" or not place.exists():
            continue
        for line in files.read(place / "limits").strip().splitlines()[1:]:
            limit, *values = re.split(r" {2,}", line)
            found[f"{unit}: {limit}"] = " ".join(values[:2])
        status = dict(line.partition(":")[::2] for line in files.read(place / "status").strip().splitlines())
        for name in STATUS.split():
            found[f"{unit}: {name}"] = " ".join(status.get(name, "").split())
        found[f"{unit}: oom_score_adj"] = files.read(place / "oom_score_adj").strip()
        found[f"{unit}: nice"] = procfs.stat(number)[16]
        for name, value in pairs(files.read(place / "environ").strip(), "\0"):
            if name and not OWN_VARIABLES.search(name):
                found[f"{unit}: the variable {name}"] = digest(value)
        for part in [Path(group), *Path(group).parents]:
            for name in LIMITS.split() if str(part) != "/" else ():
                if value := files.read(CGROUPS / str(part).lstrip("/") / name).strip():
                    found[f"{part}: {name}"] = value
    return found


def mounts(_: str, __: Any) -> State:
    """Return what is mounted where our programs look, with its options."""
    found = {}
    for line in files.read("/proc/mounts").strip().splitlines():
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
            if file.is_file() and not STEADY.search(str(file)) and (value := files.read(file).strip()):
                found[str(file.relative_to("/proc/sys")).replace("/", ".")] = short(" ".join(value.split()))
    return found
