"""Archives: manifest.json, dump.rdb and, where Redis has one, appendonlydir; encrypted by age."""

import contextlib
import hashlib
import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hosttools.backup.host import AOF_MANIFEST, need_disk, open_file, reject
from hosttools.masking import last_line

# Nothing else is taken out of an archive.
FILE = re.compile(r"dump\.rdb|appendonlydir/[A-Za-z0-9._-]+")
ENCRYPTED = ".age"
# Of a manifest, which is read into memory: it names some files and queues.
LARGEST_MANIFEST = 16 * 1024 * 1024


def digest(file: BinaryIO, target: BinaryIO | None = None) -> str:
    """Return a file's SHA-256, and copy it on the way."""
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
        if target:
            target.write(block)
    return found.hexdigest()


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
            reject(f"age has not encrypted the archive: {last_line(age.stderr.read().decode(errors='replace'))}.")


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


def head(tar: tarfile.TarFile) -> dict[str, Any]:
    """Return the manifest, with which an archive begins.

    Raises:
        ValueError: it does not.
    """
    member = tar.next()
    content = tar.extractfile(member) if member and member.name == "manifest.json" else None
    if member is None or content is None:
        raise ValueError("it does not begin with a manifest")
    if member.size > LARGEST_MANIFEST:
        raise ValueError(f"its manifest is larger than {LARGEST_MANIFEST >> 20} MB")
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
        reject(f"{file.name} is encrypted, and the inventory has no backup_key: it is in the vault file of that time.")
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
            reject(f"{file.name} cannot be decrypted with backup_key: {said}.")
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
        reject(f"{path} is no archive, and no directory with archives.")
    found = []
    for file in files:
        try:
            manifest = first(file, identity)
            found.append({"file": str(file), "host": manifest["host"], "instance": manifest["instance"]})
        except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            reject(f"{file.name} is damaged, or no backup: {error}.")
    wanted = [archive for archive in found if instance in ("", archive["instance"])]
    there = ", ".join(sorted({archive["instance"] for archive in found}))
    if not wanted:
        reject(f"{path} is of instance {there}, not of {instance}.")
    if foreign := {archive["instance"] for archive in wanted} - set(known["instances"]):
        reject(
            f"{path} is of instance {', '.join(sorted(foreign))}, and Redis here has {', '.join(known['instances'])}."
        )
    hosts, origins = known["hosts"], {archive["host"] for archive in wanted}
    target = host or (hosts[0] if len(hosts) == 1 else next(iter(origins)) if len(origins) == 1 else "")
    if target not in hosts:
        came = ", ".join(sorted(origins))
        reject(f"Write -e host=NAME, one of {', '.join(hosts)}: the backup is of {came}.")
    # A run may have several hosts' data.
    own = [archive for archive in wanted if archive["host"] == target] or wanted
    if len({archive["instance"] for archive in own}) < len(own):
        reject(f"{path} has an instance of several hosts ({', '.join(sorted(origins))}): name one archive of it.")
    return {"host": target, "archives": own}


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
                    reject(f"{damaged}: its manifest does not name {member.name}.")
                named = missing.pop(member.name)
                if member.size != named["size"]:
                    reject(f"{damaged}: {member.name} is not what its manifest says.")
                with (directory / member.name).open("xb") as target:
                    if digest(content, target) != named["sha256"]:  # type: ignore[arg-type]
                        reject(f"{damaged}: {member.name} is not what its manifest says.")
    except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        reject(f"{damaged}: {error}.")
    if missing:
        reject(f"{damaged}: {', '.join(missing)} is missing.")
    if not (directory / AOF_MANIFEST).exists():
        (directory / "appendonlydir").rmdir()
    return manifest
