"""Redis instances of this host, looked into through their sockets."""

import os
import pwd
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import hosttools
from hosttools import files, process, procfs
from hosttools.doctor.broker import broker, shapes, unnamed
from hosttools.doctor.checks import apart
from hosttools.doctor.rights import denials, rights, settings
from hosttools.findings import CRITICAL, HOST, REACH, REDIS, RIGHTS, Finding
from hosttools.redis_client import Instance, Redis, RedisError, local

MEMORY_FULL = 0.97  # of its limit


def check(name: str, port: int, queues: Sequence[str] = ()) -> Iterator[Finding]:
    """Look into one instance, through its socket on this host."""
    known = Instance(name)
    if not known.setting("requirepass"):
        what = f"Redis {name} is not configured: {known.config} has no requirepass"
        yield Finding(CRITICAL, what, "RedisDown", REDIS)
        return
    if port and not re.search(rf"^(tls-)?port {port}$", known.text, re.MULTILINE):
        wrong = f"Redis {name} does not listen on port {port}: {known.config} says something else"
        yield Finding(CRITICAL, wrong, "RedisDown", REDIS)
    yield from data_directory(name, known.text)
    try:
        with local(known.socket) as connection:
            try:
                connection.call("AUTH", known.setting("requirepass"))
            except RedisError as error:
                if "WRONGPASS" not in str(error) and "without any password" not in str(error):
                    raise
                wrong = f"refuses the administrator's password of {known.config}: changed, or default is off"
                yield Finding(CRITICAL, f"Redis {name} {wrong}", "RedisDown", RIGHTS)
                return
            yield from instance(name, known.config, connection, queues)
    except RedisError as error:
        if str(error).startswith("BUSY "):
            busy = f"Redis {name} is busy with a script, and refuses everything else: SCRIPT KILL"
            yield Finding(CRITICAL, busy, "RedisBusy", REDIS, certain=True)
            return
        layer = REDIS if "max number of clients" in str(error) or "LOADING" in str(error) else RIGHTS
        whose = holders(port) if "max number of clients" in str(error) else ""
        yield Finding(CRITICAL, f"Redis {name} refuses: {error}{whose}", "RedisDown", layer)
    except TimeoutError:
        slow = f"Redis {name} does not answer within {hosttools.TIMEOUT:g} s: {silence(known.suffix)}"
        yield Finding(CRITICAL, slow, "RedisDown", REACH)
    except OSError as error:
        what = f"Redis {name} does not answer at {known.socket} ({error.strerror or error})"
        yield Finding(CRITICAL, what, "RedisDown", REACH)


def holders(port: int) -> str:
    """Say who has most of the connections to a port, here and from where."""
    both_ways = f"( sport = :{port} or dport = :{port} )"
    lines = process.run("ss", "-tnpH", "state", "established", both_ways).output.splitlines()
    peers, here = Counter[str](), Counter[tuple[str, str]]()
    for line in lines:
        words = line.split()
        if len(words) > 3 and words[2].endswith(f":{port}"):
            peers[words[3].rpartition(":")[0]] += 1
        elif user := re.search(r'"([^"]+)",pid=(\d+)', line):
            here[user[1], user[2]] += 1
    told = [f"{count} from {peer}" for peer, count in peers.most_common(1)]
    for (program, number), count in here.most_common(1):
        group = procfs.group(number)
        told.append(f"{count} of {program}, process {number} of {group or 'no unit'}")
    return f": most are {'; '.join(told)}" if told else ""


def silence(suffix: str) -> str:
    """Say why a Redis that runs is silent: whether it works."""
    number = files.read(f"/run/redis{suffix}/redis-server.pid").strip()
    before = procfs.ticks()
    time.sleep(0.3)
    if number in before and procfs.ticks().get(number, 0) - before[number] > 0.15 * os.sysconf("SC_CLK_TCK"):
        return "it is busy with a slow command"
    return "it is halted, or holds all commands back (CLIENT PAUSE), which ends by itself or with a restart"


def instance(name: str, config: Path, connection: Redis, queues: Sequence[str] = ()) -> Iterator[Finding]:
    """Judge what an instance says of itself."""
    info = connection.info()
    if info.get("loading") == "1":
        yield Finding(CRITICAL, f"Redis {name} is loading its data", "RedisDown", REDIS)
    # How replicas stand to their primary, the command replication reports.
    if info.get("role") == "slave" and "\nmasteruser " not in files.read(config):
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        what = f"Redis {name} was made a replica of {master} and refuses to write: REPLICAOF NO ONE"
        yield Finding(CRITICAL, what, "RedisDown", REDIS)
    if info.get("paused_actions", "none") != "none":
        yield Finding(CRITICAL, f"Redis {name} holds commands back (CLIENT PAUSE): CLIENT UNPAUSE", "RedisDown", REDIS)
    if int(info["connected_clients"]) > 0.95 * int(info.get("maxclients", 0) or 1e9):
        full = f"Redis {name} has {info['connected_clients']} of {info['maxclients']} possible clients"
        port = re.search(r"^(?:tls-)?port ([1-9]\d*)", files.read(config), re.MULTILINE)
        full += holders(int(port[1])) if port else ""
        yield Finding(CRITICAL, full, "RedisDown", REDIS)
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(field, "ok") != "ok":
            yield Finding(CRITICAL, f"Redis {name} cannot write to its disk ({field})", "RedisCannotSave", REDIS)
    if info.get("aof_enabled") == "0":
        yield Finding(CRITICAL, f"Redis {name} keeps no append-only file", "RedisCannotSave", RIGHTS)
    yield from settings(name, config, connection)
    yield from rights(name, config, connection)
    if re.search(r"count=(\d+)", info.get("errorstat_NOPERM", "")):
        yield from denials(name, connection)
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if name == "broker":
        yield from broker(info)
        yield from shapes(connection, queues)
        yield from unnamed(connection, queues)
    if limit and used > MEMORY_FULL * limit and info.get("maxmemory_policy") == "noeviction":
        full = f"Redis {name} is full and refuses to write: it uses {used >> 20} of {limit >> 20} MiB (maxmemory)"
        yield Finding(CRITICAL, full, "RedisMemoryHigh", RIGHTS)
    if "paused_actions" not in info:  # before 7.4
        yield from paused(name, connection)


def paused(name: str, connection: Redis) -> Iterator[Finding]:
    """Find a CLIENT PAUSE of writes by a command that only reads and waits with them; it must come last."""
    try:
        connection.call("PFCOUNT", "doctor")
    except RedisError:
        return
    except TimeoutError:
        yield Finding(CRITICAL, f"Redis {name} holds writes back (CLIENT PAUSE): CLIENT UNPAUSE", "RedisDown", REDIS)


@apart
def data_directory(name: str, config: str) -> Iterator[Finding]:
    """Look whether Redis may write where its data is."""
    if (found := re.search(r"^dir (\S+)", config, re.MULTILINE)) is None:
        return
    try:
        directory = Path(found[1]).stat()
        owner = pwd.getpwuid(directory.st_uid).pw_name
    except KeyError:  # a user without a name is no fault of the directory
        return
    except OSError as error:
        yield Finding(CRITICAL, f"the data directory of Redis {name} is not there: {error}", "RedisCannotSave", HOST)
        return
    if owner != "redis" or not directory.st_mode & stat.S_IWUSR:
        mode = f"{stat.S_IMODE(directory.st_mode):04o}"
        what = f"Redis {name} may not write into {found[1]}: it belongs to {owner}, mode {mode}"
        yield Finding(CRITICAL, what, "RedisCannotSave", HOST)
