#!/usr/bin/env python3
"""Backups of Redis instances: look at them, take one, try one, put data in place, count what is there.

Started on the host as root, with the system's Python alone. It opens what root alone may open, then is the redis user
for good: whatever that user has put in the place of its data leads to nothing that is not its own. What it finds it
prints as JSON; what it refuses it says in one sentence on standard error. An archive holds manifest.json, dump.rdb and,
where Redis has one, appendonlydir.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

PATIENCE = 1800  # seconds: gigabytes are written and read
REPLACED = 5  # seconds after which Redis has replaced its manifest
ANSWER = 30  # seconds in which a Redis answers one command
LONGEST = 16 * 1024**2  # bytes of one part of an answer; INFO has some thousand
SPARE = 32 * 1024**2  # bytes of disk and memory that stay free
STATE = Path("/var/lib")  # in which nobody but root makes directories
WORK = STATE / "redis"  # where the redis user may make one
AOF_MANIFEST = "appendonlydir/appendonly.aof.manifest"
# All of an instance's data; the last is what Redis takes over at its start when there is no appendonlydir.
DATA = ("appendonlydir", "dump.rdb", "appendonly.aof")
# Nothing else is taken out of an archive.
FILE = re.compile(r"dump\.rdb|appendonlydir/[A-Za-z0-9._-]+")
# What Redis calls its append-only files; a manifest that names others is not Redis'.
APPEND_ONLY_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
ENCRYPTED = ".age"
MANIFEST_SIZE = 1 << 20  # bytes; Redis' has a line for each file
# Tasks and routes keep there what they like.
OF_THE_APPLICATION = b"app:"


class RedisError(Exception):
    """What Redis says when it refuses a command."""


class Redis:
    """A connection to a Redis on this host."""

    def __init__(self, path: Path, password: str = "") -> None:
        """Connect and log in.

        Raises:
            OSError: nobody answers.
            RedisError: the login is refused.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER)
        self._socket.connect(str(path))
        self._reader = self._socket.makefile("rb")
        if password:
            self.call("AUTH", password)

    def call(self, *words: str | bytes) -> Any:
        """Return Redis' answer to one command: bytes, a number, None or a list of them.

        Raises:
            OSError: it does not answer.
            RedisError: it refuses.
        """
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        return self._answer()

    def _answer(self) -> Any:
        line = self._reader.readline(LONGEST).rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RedisError(rest.decode(errors="replace"))
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if kind == b"$":
            if int(rest) > LONGEST:
                raise ConnectionError("the answer is too long")
            return None if rest == b"-1" else self._reader.read(int(rest) + 2)[:-2]
        if kind == b":":
            return int(rest)
        if kind != b"+":
            raise ConnectionError("the connection was closed")
        return rest

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def figures(self) -> dict[str, Any]:
        """Count what a restored instance must hold again.

        Keys that expire become fewer; the others and the lists stay while nobody writes.
        """
        keyspace = [re.findall(r"(?:keys|expires)=(\d+)", value) for value in self.info("keyspace").values()]
        self.call("SELECT", "0")  # where the broker's keys are
        lists, cursor = {}, b"0"
        while True:
            cursor, names = self.call("SCAN", cursor, "COUNT", "1000", "TYPE", "list")
            for name in names:
                if not name.startswith(OF_THE_APPLICATION) and self.call("PTTL", name) == -1:
                    lists[name.decode(errors="backslashreplace")] = self.call("LLEN", name)
            if cursor == b"0":
                break
        return {
            "keys": sum(int(keys) for keys, _ in keyspace),
            "lasting_keys": sum(int(keys) - int(expires) for keys, expires in keyspace),
            "accepted": self.call("HLEN", "accepted"),
            "lists": dict(sorted(lists.items())),
        }


@dataclass
class Instance:
    """Where an instance has what, as roles/redis sets it up."""

    name: str
    config: str  # the text
    socket: Path
    data: Path

    @classmethod
    def named(cls, name: str) -> Instance:
        """Return an instance by its name; reads its configuration, which takes root."""
        suffix = "" if name == "main" else f"-{name}"
        data = Path("/var/lib/redis") if name == "main" else Path("/var/lib/redis") / name
        run = Path(f"/run/redis{suffix}/redis-server.sock")
        config = Path(f"/etc/redis/redis{suffix}.conf")
        return cls(name, config.read_text() if config.exists() else "", run, data)

    def setting(self, option: str) -> str:
        """Return an option of its configuration."""
        found = re.search(rf"^{option} (\S+)", self.config, re.MULTILINE)
        return found[1] if found else ""

    def connect(self) -> Redis:
        """Connect as its administrator."""
        return Redis(self.socket, self.setting("requirepass"))

    def files(self) -> list[Path]:
        """Return what there is of its data."""
        return [path for name in DATA if os.path.lexists(path := self.data / name)]


def refuse(sentence: str) -> NoReturn:
    """End with one sentence."""
    sys.exit(sentence)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            refuse(f"{what}: not within {PATIENCE} s.")
        time.sleep(0.1)


def size(paths: list[Path]) -> int:
    """Return the bytes of files and of what directories hold."""
    files = [file for path in paths for file in (path, *(path.rglob("*") if path.is_dir() else ()))]
    return sum(found.st_size for found in map(Path.lstat, files) if stat.S_ISREG(found.st_mode))


def need_disk(place: Path | int, wanted: int) -> None:
    """Refuse when the file system of a directory or an open file has too little room."""
    free = shutil.disk_usage(place).free
    if free < wanted + SPARE:
        name = place if isinstance(place, Path) else "The archive's directory"
        refuse(f"{name} has {free >> 20} MB left, and {(wanted + SPARE) >> 20} MB are needed.")


def need_memory(wanted: int) -> None:
    """Refuse when a second server with this data would take the memory of the first."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    if available < wanted + SPARE:
        refuse(f"{available >> 20} MB of memory are available, and trying the data needs {(wanted + SPARE) >> 20} MB.")


def make_for_redis(directory: Path) -> None:
    """Make a directory of the redis user, whose parents only root can change."""
    own = STATE / directory.relative_to(STATE).parts[0]
    for place in reversed([directory, *directory.parents]):
        if place.is_relative_to(own):
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
    shutil.chown(directory, "redis", "redis")
    directory.chmod(0o750)


def become_redis() -> None:
    """Be the redis user from now on, without a way back."""
    user = pwd.getpwnam("redis")
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.umask(0o027)
    os.chdir("/")


def open_file(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        SystemExit: it is a link, or no file: one that never ends, or that nobody writes.
        FileNotFoundError: it is not there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        refuse(f"{str(path)!a} cannot be read as a file of Redis: {error.strerror}.")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        refuse(f"{str(path)!a} is not a file, as Redis' data is.")
    return os.fdopen(handle, "rb")


def copy(source: BinaryIO, target: Path) -> None:
    """Copy as much of a file as there is now: Redis may go on writing."""
    left = os.fstat(source.fileno()).st_size
    with target.open("xb") as out:
        while left and (block := source.read(min(left, 1 << 20))):
            out.write(block)
            left -= len(block)


def look(instance: Instance, host: str) -> dict[str, Any]:
    """Return whose data an instance has: servers with the same ``data`` replicate one another."""
    name = instance.name
    try:
        info = instance.connect().info("replication")
    except (OSError, RedisError) as error:
        return {"instance": name, "host": host, "error": f"Redis {name} of {host} does not answer ({error})"}
    # A replica first: copying and trying disturb nobody there. One that is cut off may be far behind.
    rank = 1 if info["role"] == "master" else 0 if info["master_link_status"] == "up" else 2
    return {"instance": name, "host": host, "data": info["master_replid"], "rank": rank}


# Taking one


def save_snapshot(redis: Redis) -> None:
    """Let Redis write a new dump.rdb, which it puts in place as a whole."""
    while True:
        wait(lambda: redis.info("persistence")["rdb_bgsave_in_progress"] == "0", "The snapshot that is being written")
        wait(lambda: redis.info("persistence")["aof_rewrite_in_progress"] == "0", "The rewrite of the append-only file")
        saves = redis.info("persistence")["rdb_saves"]
        try:
            redis.call("BGSAVE")
        except RedisError as error:
            if "in progress" not in str(error):
                refuse(f"Redis refuses to write a snapshot: {error}.")
            continue
        wait(lambda: redis.info("persistence")["rdb_bgsave_in_progress"] == "0", "The snapshot")
        if redis.info("persistence")["rdb_saves"] == saves:
            refuse("Redis could not write its snapshot; its log says why.")
        return


def listed(manifest: str) -> list[str]:
    """Return the lines of an append-only file's manifest that belong to the data; others wait for their removal."""
    return [line for line in manifest.splitlines() if line.startswith("file ") and not line.endswith(" type h")]


def named(lines: list[str]) -> list[str]:
    """Return the files that lines of a manifest name.

    Raises:
        SystemExit: a name is no file's of the same directory, as all that Redis writes are.
    """
    names = [line.removeprefix("file ").partition(" seq ")[0].strip('"') for line in lines]
    if wrong := [name for name in names if not APPEND_ONLY_FILE.fullmatch(name)]:
        refuse(f"{AOF_MANIFEST} names {wrong[0][:200]!a}, which is not a file that Redis writes.")
    return names


def copy_append_only(data: Path, target: Path) -> None:
    """Copy the append-only files as one manifest names them, while Redis writes and may replace them.

    A file that is open stays what it is when its name is removed. The manifest is replaced as a whole: when it is the
    same after all of its files are open, they belong together.
    """
    source = data / AOF_MANIFEST
    deadline = time.monotonic() + REPLACED
    while time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            try:
                lines = listed(read_manifest(source))
                names = named(lines)
                opened = [stack.enter_context(open_file(source.parent / name)) for name in names]
                if listed(read_manifest(source)) != lines:
                    continue
            except FileNotFoundError:
                time.sleep(0.1)
                continue
            target.mkdir()
            (target / source.name).write_text("".join(f"{line}\n" for line in lines))
            for name, file in zip(names, opened, strict=True):
                copy(file, target / name)
            return
    refuse(f"{source} names files that are not there.")


def read_manifest(path: Path) -> str:
    """Return the text of an append-only file's manifest."""
    with open_file(path) as file:
        text = file.read(MANIFEST_SIZE + 1)
    if len(text) > MANIFEST_SIZE:
        refuse(f"{path} is longer than {MANIFEST_SIZE >> 20} MB, and not a manifest that Redis writes.")
    return text.decode(errors="replace")


def digest(file: BinaryIO, target: BinaryIO | None = None) -> str:
    """Return a file's SHA-256, and copy it on the way."""
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
        if target:
            target.write(block)
    return found.hexdigest()


def take(instance: Instance, host: str, archive: BinaryIO, recipient: str = "") -> dict[str, Any]:
    """Write an archive of what an instance holds now; return its manifest."""
    os.nice(10)
    try:
        redis = instance.connect()
        memory = redis.info("memory")
    except (OSError, RedisError) as error:
        refuse(f"Redis {instance.name} does not answer: {error}.")
    need_memory(int(memory["used_memory"]))
    save_snapshot(redis)
    # Beside the copy there will be the archive, which is smaller.
    need_disk(WORK, 2 * size(instance.files()))
    need_disk(archive.fileno(), size(instance.files()))
    with tempfile.TemporaryDirectory(prefix=".backup.", dir=WORK) as directory:
        place = Path(directory)
        with open_file(instance.data / "dump.rdb") as snapshot:
            copy(snapshot, place / "dump.rdb")
        if redis.info("persistence")["aof_enabled"] == "1":
            wait(
                lambda: redis.info("persistence")["aof_rewrite_in_progress"] == "0",
                "The rewrite of the append-only file",
            )
            copy_append_only(instance.data, place / "appendonlydir")
        figures = settle(place)
        manifest: dict[str, Any] = {
            "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": host,
            "instance": instance.name,
            "role": {"master": "primary"}.get(redis.info("replication")["role"], "replica"),
            "redis_version": redis.info("server")["redis_version"],
            "figures": figures,
            "files": {},
        }
        files = sorted(file for file in place.rglob("*") if FILE.fullmatch(str(file.relative_to(place))))
        for file in files:
            with open_file(file) as content:
                entry = {"size": os.fstat(content.fileno()).st_size, "sha256": digest(content)}
            manifest["files"][str(file.relative_to(place))] = entry
        with encrypted(archive, recipient) as target:
            pack(target, manifest, place)
    return manifest


def settle(directory: Path) -> dict[str, Any]:
    """Return what a copy holds, without the command or transaction in the middle of which it ends."""
    # Redis loads what ends too early, and nothing that is broken elsewhere. It leaves the beginning of a transaction:
    # the tool cuts that off, and has nothing else to cut any more.
    figures = trial(directory)
    if (directory / AOF_MANIFEST).exists():
        fix = ["redis-check-aof", "--fix", AOF_MANIFEST]
        subprocess.run(fix, cwd=directory, input="y\n", capture_output=True, text=True, check=False)
    if reason := broken(directory):
        refuse(f"The copy is not sound: {reason}.")
    return figures


@contextlib.contextmanager
def encrypted(archive: BinaryIO, recipient: str) -> Iterator[BinaryIO]:
    """Yield where to write what ``archive`` gets, encrypted for ``recipient`` unless that is empty."""
    if not recipient:
        yield archive
        return
    command = ["age", "--encrypt", "--recipient", recipient]
    age: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=archive, stderr=subprocess.PIPE)
    with age:
        with contextlib.suppress(BrokenPipeError):  # it says why
            yield age.stdin
            age.stdin.close()
        if age.wait() != 0:
            refuse(f"age has not encrypted the archive: {last_line(age.stderr.read().decode(errors='replace'))}.")


def pack(archive: BinaryIO, manifest: dict[str, Any], directory: Path) -> None:
    """Write an archive."""
    with tarfile.open(fileobj=archive, mode="w|gz") as tar:
        text = json.dumps(manifest, indent=2).encode()
        head = tarfile.TarInfo("manifest.json")
        head.size, head.mode, head.mtime = len(text), 0o600, int(time.time())
        tar.addfile(head, io.BytesIO(text))
        for name in manifest["files"]:
            with open_file(directory / name) as content:
                tar.addfile(tar.gettarinfo(arcname=name, fileobj=content), content)


# Trying one


def head(tar: tarfile.TarFile) -> dict[str, Any]:
    """Return the manifest, with which an archive begins.

    Raises:
        ValueError: it does not.
    """
    member = tar.next()
    content = tar.extractfile(member) if member and member.name == "manifest.json" else None
    if content is None:
        raise ValueError("it does not begin with a manifest")
    manifest: dict[str, Any] = json.load(content)
    return manifest


def first(file: Path, identity: str) -> dict[str, Any]:
    """Return the manifest of an archive, of which nothing is written down.

    Raises:
        OSError, EOFError, ValueError, tarfile.TarError: it is damaged.
        SystemExit: it is encrypted for another key.
    """
    if file.suffix != ENCRYPTED:
        with tarfile.open(file, "r:gz") as tar:
            return head(tar)
    if not identity:
        refuse(f"{file.name} is encrypted, and the inventory has no backup_key: it is in the vault file of that time.")
    command = ["age", "--decrypt", "--identity", "-", str(file)]
    age: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with age:
        age.stdin.write(identity.encode() + b"\n")
        age.stdin.close()
        try:
            with tarfile.open(fileobj=age.stdout, mode="r|gz") as tar:
                return head(tar)
        except tarfile.ReadError:
            said = next(iter(age.stderr.read().decode(errors="replace").splitlines()), "it says nothing")
            refuse(f"{file.name} cannot be decrypted with backup_key: {said}.")
        finally:
            age.kill()


def choose(path: Path, instance: str, host: str, known: dict[str, list[str]], identity: str = "") -> dict[str, Any]:
    """Return which archives of ``path`` are to be restored, and on which host.

    Args:
        path: an archive, or a directory of archives.
        instance: the only one that is wanted; empty for all.
        host: where to; empty for the host that they came from, or the only one there is.
        known: the inventory's hosts and instances.
        identity: what age decrypts with, where an archive is encrypted.
    """
    files = [path] if path.is_file() else sorted([*path.glob("*.tar.gz"), *path.glob(f"*.tar.gz{ENCRYPTED}")])
    if not files:
        refuse(f"{path} is no archive, and no directory with archives.")
    found = []
    for file in files:
        try:
            manifest = first(file, identity)
            found.append({"file": str(file), "host": manifest["host"], "instance": manifest["instance"]})
        except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            refuse(f"{file.name} is damaged, or no backup: {error}.")
    wanted = [archive for archive in found if instance in ("", archive["instance"])]
    there = ", ".join(sorted({archive["instance"] for archive in found}))
    if not wanted:
        refuse(f"{path} is of instance {there}, not of {instance}.")
    if foreign := {archive["instance"] for archive in wanted} - set(known["instances"]):
        refuse(
            f"{path} is of instance {', '.join(sorted(foreign))}, and Redis here has {', '.join(known['instances'])}."
        )
    hosts, origins = known["hosts"], {archive["host"] for archive in wanted}
    target = host or (hosts[0] if len(hosts) == 1 else next(iter(origins)) if len(origins) == 1 else "")
    if target not in hosts:
        came = ", ".join(sorted(origins))
        refuse(f"Write -e host=NAME, one of {', '.join(hosts)}: the backup is of {came}.")
    # A run may have several hosts' data.
    own = [archive for archive in wanted if archive["host"] == target] or wanted
    if len({archive["instance"] for archive in own}) < len(own):
        refuse(f"{path} has an instance of several hosts ({', '.join(sorted(origins))}): name one archive of it.")
    return {"host": target, "archives": own}


def broken(directory: Path) -> str:
    """Return what Redis' own tools say against files; nothing when they are whole."""
    checks = [("redis-check-rdb", "dump.rdb"), ("redis-check-aof", AOF_MANIFEST)]
    for program, name in checks:
        if (directory / name).exists():
            run = subprocess.run([program, name], cwd=directory, capture_output=True, text=True, check=False)
            if run.returncode:
                return f"{program} says: {last_line(run.stdout + run.stderr)}"
    return ""


def read(log: Path) -> str:
    """Return the text of a log, as far as somebody reads it."""
    try:
        with open_file(log) as file:
            return file.read(1 << 20).decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")


@contextlib.contextmanager
def loaded(directory: Path) -> Iterator[Redis]:
    """Load files into a server of their own, which nobody else reaches, as a restored one would load them."""
    with tempfile.TemporaryDirectory(prefix=".trial.", dir=directory) as place:
        path, log = Path(place) / "socket", Path(place) / "log"
        options = {
            "port": "0",
            "unixsocket": str(path),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes" if (directory / AOF_MANIFEST).exists() else "no",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "0",
            "databases": "1024",
            "logfile": str(log),
        }
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        # Should memory end after all, this one is to be killed and not the server beside it.
        command = ["choom", "-n", "1000", "--", "redis-server", *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait(lambda: server.poll() is not None or ready(path), "A server with the copy")
                if server.poll() is not None:
                    refuse(f"Redis cannot load the data: {last_line(read(log))}.")
                yield Redis(path)
            finally:
                server.terminate()


def ready(path: Path) -> bool:
    """Tell whether a server has loaded its data."""
    try:
        return bool(Redis(path).call("PING") == b"PONG")
    except (OSError, RedisError):
        return False


def trial(directory: Path) -> dict[str, Any]:
    """Return what files hold once they are loaded."""
    with loaded(directory) as redis:
        return redis.figures()


def unpack(archive: BinaryIO, directory: Path) -> dict[str, Any]:
    """Unpack an archive whose files are what its manifest says; return the manifest."""
    damaged = f"{Path(archive.name).name} is damaged"
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            manifest = head(tar)
            missing = dict(manifest["files"])
            need_disk(directory, sum(int(file["size"]) for file in missing.values()))
            (directory / "appendonlydir").mkdir()
            while member := tar.next():
                content = tar.extractfile(member)
                if content is None or not FILE.fullmatch(member.name) or member.name not in missing:
                    refuse(f"{damaged}: its manifest does not name {member.name}.")
                with (directory / member.name).open("xb") as target:
                    if digest(content, target) != missing.pop(member.name)["sha256"]:  # type: ignore[arg-type]
                        refuse(f"{damaged}: {member.name} is not what its manifest says.")
    except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        refuse(f"{damaged}: {error}.")
    if missing:
        refuse(f"{damaged}: {', '.join(missing)} is missing.")
    if not (directory / AOF_MANIFEST).exists():
        (directory / "appendonlydir").rmdir()
    return manifest


def version(text: str) -> tuple[int, ...]:
    """Return a version's numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def attempt(instance: Instance, archive: BinaryIO, directory: Path) -> str:
    """Unpack an archive into ``directory`` and try it; say what it holds, and what the instance holds now."""
    name = Path(archive.name).name
    manifest = unpack(archive, directory)
    if manifest["instance"] != instance.name:
        refuse(f"{name} is of instance {manifest['instance']}, not of {instance.name}.")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    program = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    installed = next(iter(re.findall(r"v=([0-9.]+)", program)), "")
    if reason := broken(directory):
        if version(manifest["redis_version"]) > version(installed):
            refuse(
                f"{name} was written by Redis {manifest['redis_version']}, "
                f"and the installed {installed} cannot read it ({reason})."
            )
        refuse(f"{name} is damaged: {reason}.")
    need_memory(size([directory]))
    if difference := differences(manifest["figures"], trial(directory)):
        refuse(f"{name} is damaged: loaded, it has {difference}.")
    now: dict[str, Any] | None = None
    replicated = False
    with contextlib.suppress(OSError, RedisError):
        redis = instance.connect()
        now, replication = redis.figures(), redis.info("replication")
        replicated = replication["role"] != "master" or replication["connected_slaves"] != "0"
    if replicated:
        refuse(
            f"Redis {instance.name} is replicated here, and this restores a single server only: "
            "see docs/operations/backup.md."
        )
    present = described(now) if now else "it does not answer"
    origin = f"{instance.name} of {manifest['taken']} from {manifest['host']}, Redis {manifest['redis_version']}"
    return f"{origin}, can be loaded: {described(manifest['figures'])}. What is there now: {present}."


def described(figures: dict[str, Any]) -> str:
    """Say in a few words what an instance holds."""
    lists = [f"{name} {length}" for name, length in figures["lists"].items()]
    parts = [f"{figures['keys']} keys"]
    if figures["accepted"] or lists:
        parts += [f"{figures['accepted']} accepted tasks", f"entries: {', '.join(lists) or 'none'}"]
    return ", ".join(parts)


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """Say in what an instance differs from what it must hold; keys that expire may be fewer."""
    told = [
        f"{found[name]} {what} instead of {wanted[name]}"
        for name, what in (("lasting_keys", "keys that do not expire"), ("accepted", "accepted tasks"))
        if found[name] != wanted[name]
    ]
    if found["keys"] > wanted["keys"]:
        told.append(f"{found['keys']} keys instead of {wanted['keys']} or fewer")
    told += [
        f"{found['lists'].get(name, 0)} entries in {name} instead of {wanted['lists'].get(name, 0)}"
        for name in sorted({*wanted["lists"], *found["lists"]})
        if found["lists"].get(name) != wanted["lists"].get(name)
    ]
    return ", ".join(told)


# Putting one in place


def put(instance: Instance, new: Path, aside: Path) -> None:
    """Move an instance's data aside, and other data into its place; the instance must be stopped."""
    instance.data.mkdir(mode=0o750, exist_ok=True)
    for path in instance.files():
        shutil.move(path, aside / path.name)
    for name in DATA:
        if (new / name).exists():
            shutil.move(new / name, instance.data / name)
    snapshot = instance.data / "dump.rdb"
    # Without an append-only file, a server that is to have one ignores its snapshot. It takes one over at this place.
    if (
        instance.setting("appendonly") == "yes"
        and snapshot.exists()
        and not any((instance.data / name).exists() for name in ("appendonlydir", "appendonly.aof"))
    ):
        with open_file(snapshot) as content:
            copy(content, instance.data / "appendonly.aof")


def verify(instance: Instance, directory: Path) -> str:
    """Say what a restored instance holds, which must be what the manifest says."""
    try:
        found = instance.connect().figures()
    except (OSError, RedisError) as error:
        refuse(f"Redis {instance.name} does not answer: {error}.")
    with open_file(directory / "manifest.json") as content:
        wanted = json.load(content)["figures"]
    if difference := differences(wanted, found):
        refuse(f"Redis {instance.name} has {difference}.")
    return f"{instance.name} holds {described(found)}, as the backup says."


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does, options in (
        ("look", "whose data each instance has", ("host",)),
        ("take", "write an archive", ("host", "archive", "recipient")),
        ("choose", "which archives are to be restored where", ("path", "instance", "host", "known")),
        ("try", "unpack and try an archive", ("archive", "directory")),
        ("put", "put data in place of what there is", ("directory", "aside")),
        ("verify", "compare with what was tried", ("directory",)),
    ):
        command = verbs.add_parser(verb, help=does)
        if verb != "choose":
            command.add_argument("instances", nargs="+", metavar="INSTANCE")
        for option in options:
            command.add_argument(f"--{option}", required=True)
    arguments = parser.parse_args()
    if arguments.verb == "choose":
        known = json.loads(arguments.known)
        # The key alone, on standard input: an argument is everybody's to see.
        identity = sys.stdin.read().strip()
        print(json.dumps(choose(Path(arguments.path), arguments.instance, arguments.host, known, identity)))
        return
    try:
        print(answer(arguments, [Instance.named(name) for name in arguments.instances]))
    except OSError as error:
        refuse(f"{error.strerror}: {error.filename!a}.")


def answer(arguments: argparse.Namespace, instances: list[Instance]) -> str:
    """Prepare as root what the verb needs, do it as the redis user, and return what is to be said."""
    instance = instances[0]
    if arguments.verb == "look":
        become_redis()
        return json.dumps([look(each, arguments.host) for each in instances])
    if arguments.verb == "take":
        with open_archive(Path(arguments.archive)) as archive:
            become_redis()
            return json.dumps(take(instance, arguments.host, archive, arguments.recipient))
    directory = Path(arguments.directory)
    if arguments.verb == "put":
        aside = Path(arguments.aside)
        if aside.exists():
            refuse(f"{aside} is there already.")
        make_for_redis(aside)
        if not WORK.exists():
            make_for_redis(WORK)
        become_redis()
        put(instance, directory, aside)
        return ""
    if arguments.verb == "verify":
        become_redis()
        return verify(instance, directory)
    shutil.rmtree(directory, ignore_errors=True)
    make_for_redis(directory)
    with Path(arguments.archive).open("rb") as archive:
        become_redis()
        return attempt(instance, archive, directory)


def open_archive(path: Path) -> BinaryIO:
    """Make an archive, for the owner of its directory alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    owner = path.parent.stat()
    os.fchown(handle, owner.st_uid, owner.st_gid)
    return os.fdopen(handle, "wb")


if __name__ == "__main__":
    main()
