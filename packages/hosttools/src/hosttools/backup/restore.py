"""Putting a backup in place of what there is."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from hosttools import process
from hosttools.backup.archive import unpack
from hosttools.backup.figures import described, differences, figures
from hosttools.backup.host import DATA, copy, data_of, need_memory, open_file, reject, size
from hosttools.backup.trial import ANSWER, broken, trial
from hosttools.redis_client import Instance, RedisError


def version(text: str) -> tuple[int, ...]:
    """Return a version's numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def attempt(instance: Instance, archive: BinaryIO, directory: Path) -> str:
    """Unpack an archive into ``directory`` and try it; say what it holds, and what the instance holds now."""
    name = Path(archive.name).name
    manifest = unpack(archive, directory)
    if manifest["instance"] != instance.name:
        reject(f"{name} is of instance {manifest['instance']}, not of {instance.name}.")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    program = process.run("redis-server", "--version").output
    installed = next(iter(re.findall(r"v=([0-9.]+)", program)), "")
    if reason := broken(directory):
        if version(manifest["redis_version"]) > version(installed):
            written = f"{name} was written by Redis {manifest['redis_version']}"
            reject(f"{written}, and the installed {installed} cannot read it ({reason}).")
        reject(f"{name} is damaged: {reason}.")
    need_memory(size([directory]))
    if difference := differences(manifest["figures"], trial(directory)):
        reject(f"{name} is damaged: loaded, it has {difference}.")
    now: dict[str, Any] | None = None
    replicated = False
    with contextlib.suppress(OSError, RedisError):
        redis = instance.connect(ANSWER, errors="surrogateescape")
        now, replication = figures(redis), redis.info("replication")
        replicated = replication["role"] != "master" or replication["connected_slaves"] != "0"
    if replicated:
        single = "this restores a single server only: see docs/operations/backup.md"
        reject(f"Redis {instance.name} is replicated here, and {single}.")
    present = described(now) if now else "it does not answer"
    origin = f"{instance.name} of {manifest['taken']} from {manifest['host']}, Redis {manifest['redis_version']}"
    return f"{origin}, can be loaded: {described(manifest['figures'])}. What is there now: {present}."


def put(instance: Instance, new: Path, aside: Path) -> None:
    """Move an instance's data aside, and other data into its place; the instance must be stopped."""
    instance.data.mkdir(mode=0o750, exist_ok=True)
    for path in data_of(instance):
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
        found = figures(instance.connect(ANSWER, errors="surrogateescape"))
    except (OSError, RedisError) as error:
        reject(f"Redis {instance.name} does not answer: {error}.")
    with open_file(directory / "manifest.json") as content:
        wanted = json.load(content)["figures"]
    if difference := differences(wanted, found):
        reject(f"Redis {instance.name} has {difference}.")
    return f"{instance.name} holds {described(found)}, as the backup says."
