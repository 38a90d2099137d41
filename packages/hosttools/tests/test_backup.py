"""What the command backup decides without a server; molecule/backup has the rest on a host."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hosttools.backup import archive, figures, take
from hosttools.backup import host as files

ONE = {"hosts": ["new"], "instances": ["main", "broker"]}
TWO = {"hosts": ["a", "b"], "instances": ["main", "broker"]}
FIGURES = {"keys": 12, "lasting_keys": 3, "accepted": 2, "lists": {"celery": 2}}


def packed(directory: Path, host: str, instance: str, **manifest: Any) -> Path:
    """Write an archive as backup.yml names it; of its manifest's files it has those that have content."""
    path = directory / f"{host}-{instance}.tar.gz"
    content: dict[str, str] = manifest.pop("content", {})
    head = {"host": host, "instance": instance, "files": {}, **manifest}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {"manifest.json": json.dumps(head), **content}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def chosen(path: Path, known: dict[str, list[str]], instance: str = "", host: str = "") -> tuple[str, list[str]]:
    """Return which host gets which archives."""
    found = archive.choose(path, instance, host, known)
    return found["host"], [Path(entry["file"]).name for entry in found["archives"]]


def test_a_run_goes_to_the_only_host_there_is(tmp_path: Path) -> None:
    packed(tmp_path, "old", "main")
    packed(tmp_path, "old", "broker")
    assert chosen(tmp_path, ONE) == ("new", ["old-broker.tar.gz", "old-main.tar.gz"])
    assert chosen(tmp_path, ONE, instance="main") == ("new", ["old-main.tar.gz"])


def test_a_run_of_several_hosts_goes_back_to_the_one_that_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        packed(tmp_path, name, "main")
    assert chosen(tmp_path, TWO, host="b") == ("b", ["b-main.tar.gz"])
    assert chosen(tmp_path / "a-main.tar.gz", TWO) == ("a", ["a-main.tar.gz"])
    with pytest.raises(SystemExit, match=r"Write -e host=NAME, one of a, b: the backup is of a, b\."):
        chosen(tmp_path, TWO)
    with pytest.raises(SystemExit, match="has an instance of several hosts"):
        chosen(tmp_path, ONE)


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """A key of age, and its public part."""
    made = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    return made.stdout.splitlines()[-1], made.stderr.split()[-1]


def test_an_encrypted_archive_needs_its_key(tmp_path: Path, key: tuple[str, str]) -> None:
    identity, recipient = key
    clear, closed = packed(tmp_path, "old", "main", filler="x" * 100_000), tmp_path / "old-broker.tar.gz.age"
    manifest = {"host": "old", "instance": "broker", "files": {}}
    with closed.open("wb") as file, archive.encrypted(file, recipient) as target:
        archive.pack(target, manifest, tmp_path)
    assert closed.read_bytes().startswith(b"age-encryption.org/v1")
    assert b"broker" not in closed.read_bytes()
    found = archive.choose(tmp_path, "", "", ONE, identity)
    assert [entry["instance"] for entry in found["archives"]] == ["broker", "main"]
    assert found["archives"][1]["file"] == str(clear)
    with pytest.raises(SystemExit, match="is encrypted, and the inventory has no backup_key"):
        archive.choose(tmp_path, "", "", ONE)
    other = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True).stdout
    for wrong in (other, "no key at all", "x" * 10000):
        with pytest.raises(SystemExit, match=r"cannot be decrypted with backup_key: age: error: "):
            archive.choose(closed, "", "", ONE, wrong)
    whole = closed.read_bytes()
    for cut in (0, 10, 100, len(whole) // 2):
        closed.write_bytes(whole[:cut])
        with pytest.raises(SystemExit, match=r"cannot be decrypted with backup_key: |is damaged, or no backup"):
            archive.choose(closed, "", "", ONE, identity)


def test_what_cannot_be_encrypted_is_no_backup(tmp_path: Path) -> None:
    with (
        (tmp_path / "x.age").open("wb") as file,
        pytest.raises(SystemExit, match="age has not encrypted the archive: "),
        archive.encrypted(file, "age1wrong") as target,
    ):
        target.write(b"x" * 1_000_000)


def test_what_is_not_for_this_inventory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no archive"):
        chosen(tmp_path, ONE)
    packed(tmp_path, "a", "broker")
    with pytest.raises(SystemExit, match=r"is of instance broker, not of main\."):
        chosen(tmp_path, ONE, instance="main")
    with pytest.raises(SystemExit, match=r"is of instance broker, and Redis here has main\."):
        chosen(tmp_path, {"hosts": ["a"], "instances": ["main"]})
    (tmp_path / "other.tar.gz").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match=r"other\.tar\.gz is damaged, or no backup"):
        chosen(tmp_path, ONE)


@pytest.mark.parametrize(
    ("files", "named", "reason"),
    [
        ({"dump.rdb": "x"}, {"dump.rdb": "y"}, "dump.rdb is not what its manifest says"),
        ({}, {"dump.rdb": "x"}, "dump.rdb is missing"),
        ({"dump.rdb": "x"}, {}, "its manifest does not name dump.rdb"),
        ({"../escaped": "x"}, {"../escaped": "x"}, "its manifest does not name ../escaped"),
    ],
)
def test_an_archive_that_is_not_what_its_manifest_says_is_rejected(
    tmp_path: Path, files: dict[str, str], named: dict[str, str], reason: str
) -> None:
    entries = {name: {"size": 1, "sha256": archive.digest(io.BytesIO(text.encode()))} for name, text in named.items()}
    target = tmp_path / "target"
    target.mkdir()
    made = packed(tmp_path, "a", "main", content=files, files=entries)
    with made.open("rb") as file, pytest.raises(SystemExit, match=reason):
        archive.unpack(file, target)
    assert not (tmp_path / "escaped").exists()


@pytest.mark.attack("an archive holds no more than its manifest says")
def test_an_archive_grows_no_further_than_its_manifest_says(tmp_path: Path) -> None:
    """Anybody can encrypt one for the public key; a few bytes of gzip become as many as the disk or memory holds."""
    zeros, target = "\0" * 50_000_000, tmp_path / "target"
    entry = {"size": 1, "sha256": archive.digest(io.BytesIO(zeros.encode()))}
    made = packed(tmp_path, "a", "main", content={"dump.rdb": zeros}, files={"dump.rdb": entry})
    target.mkdir()
    with made.open("rb") as file, pytest.raises(SystemExit, match=r"dump\.rdb is not what its manifest says"):
        archive.unpack(file, target)
    assert not (target / "dump.rdb").exists()
    packed(tmp_path, "a", "main", figures=zeros)
    with pytest.raises(SystemExit, match="its manifest is larger than"):
        chosen(tmp_path, ONE)


def test_keys_may_have_expired_and_nothing_else_may_differ() -> None:
    assert figures.differences(FIGURES, {**FIGURES, "keys": 3}) == ""
    assert figures.differences(FIGURES, {**FIGURES, "keys": 13}) == "13 keys instead of 12 or fewer"
    assert figures.differences(FIGURES, {**FIGURES, "lasting_keys": 2, "accepted": 1, "lists": {"other": 1}}) == (
        "2 keys that do not expire instead of 3, 1 accepted tasks instead of 2, "
        "0 entries in celery instead of 2, 1 entries in other instead of 0"
    )


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "..", ".", "", "a/b", "a\x1b[2J", "a b", "-rf", "~"]
)
def test_a_manifest_names_files_of_its_own_directory_alone(name: str) -> None:
    with pytest.raises(SystemExit, match="which is not a file that Redis writes"):
        take.named([f"file {name} seq 1 type b"])
    assert take.named(["file appendonly.aof.1.base.rdb seq 1 type b"]) == ["appendonly.aof.1.base.rdb"]
    assert take.named(['file "appendonly.aof.1.base.rdb" seq 1 type b']) == ["appendonly.aof.1.base.rdb"]


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "dump.rdb"
    if kind == "link":
        place.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(SystemExit, match=r"cannot be read as a file of Redis|is not a file"):
        files.open_file(place)
    with pytest.raises(FileNotFoundError):
        files.open_file(tmp_path / "other")


def test_a_file_that_grows_meanwhile_is_copied_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"whole")
    with files.open_file(file) as source:
        file.write_bytes(b"whole and more")
        source.seek(0)
        files.copy(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"whole and more"


def test_of_the_append_only_file_what_waits_for_its_removal_is_left_out() -> None:
    manifest = "file a.2.base.rdb seq 2 type b\nfile a.1.incr.aof seq 1 type h\nfile a.2.incr.aof seq 2 type i\n"
    assert take.listed(manifest) == ["file a.2.base.rdb seq 2 type b", "file a.2.incr.aof seq 2 type i"]
