"""Taking a backup of an instance while it serves."""

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from hosttools.backup.archive import FILE, digest, encrypted, pack
from hosttools.backup.host import AOF_MANIFEST, copy, data_of, need_disk, need_memory, open_file, reject, size, wait
from hosttools.backup.trial import ANSWER, settle
from hosttools.redis_client import DATA, Instance, Redis, RedisError

REPLACED = 5  # seconds after which Redis has replaced its manifest
# What Redis calls its append-only files; a manifest that names others is not Redis'.
APPEND_ONLY_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MANIFEST_SIZE = 1 << 20  # bytes; Redis' has a line for each file


def look(instance: Instance, host: str) -> dict[str, Any]:
    """Return whose data an instance has: servers with the same ``data`` replicate one another."""
    name = instance.name
    try:
        with instance.connect(ANSWER) as redis:
            info = redis.info("replication")
    except (OSError, RedisError) as error:
        return {"instance": name, "host": host, "error": f"Redis {name} of {host} does not answer ({error})"}
    # A replica first: copying and trying disturb nobody there. One that is cut off may be far behind.
    rank = 1 if info["role"] == "master" else 0 if info["master_link_status"] == "up" else 2
    return {"instance": name, "host": host, "data": info["master_replid"], "rank": rank}


def await_rewrite(redis: Redis) -> None:
    """Wait until Redis does not rewrite its append-only file."""
    wait(lambda: redis.info("persistence")["aof_rewrite_in_progress"] == "0", "The rewrite of the append-only file")


def save_snapshot(redis: Redis) -> None:
    """Let Redis write a new dump.rdb, which it puts in place as a whole."""
    while True:
        wait(lambda: redis.info("persistence")["rdb_bgsave_in_progress"] == "0", "The snapshot that is being written")
        await_rewrite(redis)
        saves = redis.info("persistence")["rdb_saves"]
        try:
            redis.call("BGSAVE")
        except RedisError as error:
            if "in progress" not in str(error):
                reject(f"Redis refuses to write a snapshot: {error}.")
            continue
        wait(lambda: redis.info("persistence")["rdb_bgsave_in_progress"] == "0", "The snapshot")
        if redis.info("persistence")["rdb_saves"] == saves:
            reject("Redis could not write its snapshot; its log says why.")
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
        reject(f"{AOF_MANIFEST} names {wrong[0][:200]!a}, which is not a file that Redis writes.")
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
    reject(f"{source} names files that are not there.")


def read_manifest(path: Path) -> str:
    """Return the text of an append-only file's manifest."""
    with open_file(path) as file:
        text = file.read(MANIFEST_SIZE + 1)
    if len(text) > MANIFEST_SIZE:
        reject(f"{path} is longer than {MANIFEST_SIZE >> 20} MB, and not a manifest that Redis writes.")
    return text.decode(errors="replace")


def take(instance: Instance, host: str, archive: BinaryIO, recipient: str = "") -> dict[str, Any]:
    """Write an archive of what an instance holds now; return its manifest."""
    os.nice(10)
    try:
        redis = instance.connect(ANSWER)
        memory = redis.info("memory")
    except (OSError, RedisError) as error:
        reject(f"Redis {instance.name} does not answer: {error}.")
    need_memory(int(memory["used_memory"]))
    save_snapshot(redis)
    # Beside the copy there will be the archive, which is smaller.
    need_disk(DATA, 2 * size(data_of(instance)))
    need_disk(archive.fileno(), size(data_of(instance)))
    with tempfile.TemporaryDirectory(prefix=".backup.", dir=DATA) as directory:
        place = Path(directory)
        with open_file(instance.data / "dump.rdb") as snapshot:
            copy(snapshot, place / "dump.rdb")
        if redis.info("persistence")["aof_enabled"] == "1":
            await_rewrite(redis)
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
