"""What root does in a directory that a service's user can write: it follows no link there, and believes no name.

A Redis runs in a mount namespace with directories of its own, as the redis user, who has put there what may lead root
astray. Each program that root runs there is run; then nothing of root's has changed, and nothing of it is seen.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_durable.testing import wait_for
from plugins.lookup.hosttools import program
from tests.support import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.attack("root acts as the service's user, or follows no link")]

PROGRAM = program()
SENTENCE = "a line that only root may read"
TIMEOUT = 20  # seconds for a program; one that waits for a pipe never ends
AS_REDIS = ["setpriv", "--reuid=redis", "--regid=redis", "--init-groups", "--"]
CONFIG = """
port 0
unixsocket /run/redis/redis-server.sock
requirepass password-of-this-test
dir /var/lib/redis
appendonly yes
save ""
"""
# What the redis user does, in its directory. The append-only file's parts have the names that Redis gives them.
PLANTS = {
    "a manifest with a way out": "sed -i '1s|file .* seq|file ../../root-only/secret seq|' {manifest}",
    "a manifest with an absolute name": "sed -i '1s|file .* seq|file /var/lib/root-only/secret seq|' {manifest}",
    "a manifest with a line break": "printf 'file a\\nb seq 1 type b\\n' >{manifest}",
    "a manifest that is no text": "head -c 5000 /dev/urandom >{manifest}",
    "a manifest without an end": "truncate -s 1T {manifest}",
    "a manifest that is a pipe": "rm {manifest}; mkfifo {manifest}",
    "a manifest that is a device": "ln -sf /dev/zero {manifest}",
    "a manifest that is root's": "ln -sf /var/lib/root-only/secret {manifest}",
    "a directory that is root's": "rm -r appendonlydir; ln -s /var/lib/root-only appendonlydir",
    "a directory that is itself": "rm -r appendonlydir; ln -s . appendonlydir",
    "a part that is root's": "ln -sf /var/lib/root-only/secret appendonlydir/appendonly.aof.1.incr.aof",
    "a part that is a pipe": "rm appendonlydir/*.incr.aof; mkfifo appendonlydir/appendonly.aof.1.incr.aof",
    "a part without an end": "truncate -s 1T appendonlydir/appendonly.aof.1.incr.aof",
    "a second name for a file": "ln appendonlydir/appendonly.aof.1.incr.aof appendonlydir/again",
    "a snapshot that is root's": "ln -sf /var/lib/root-only/secret dump.rdb",
    "a snapshot that cannot be replaced": "rm -f dump.rdb; mkdir -p dump.rdb/x",
    "names with line breaks": 'name=$(printf \'x\\n1\\ty\'); mkdir "$name"; head -c 2M /dev/zero >"$name/$name"',
    "a copy that is root's": "ln -sf /var/lib/root-only/secret appendonly.aof",
    "a broker that is root's": "rm -rf broker; ln -s /var/lib/root-only broker",
}


class Host:
    """A mount namespace with a Redis and directories of its own."""

    def __init__(self, place: Path) -> None:
        """Make the directories and start the server."""
        assert os.geteuid() == 0, "these tests need root, as the programs that they run do"
        self.lib = place / "lib"
        for name, owner in (
            ("lib", 0),
            ("lib/redis", "redis"),
            ("lib/root-only", 0),
            ("etc", "redis"),
            ("run", "redis"),
        ):
            (place / name).mkdir()
            shutil.chown(place / name, owner, owner)
        (self.lib / "root-only").chmod(0o700)
        (self.lib / "root-only/secret").write_text(f"{SENTENCE}\n" * 10)
        (place / "etc/redis.conf").write_text(CONFIG)
        (place / "etc/redis-broker.conf").write_text(CONFIG)
        mounts = {"lib": "/var/lib", "etc": "/etc/redis", "run": "/run/redis"}
        binds = " && ".join(f"mount --bind {place / name} {target}" for name, target in mounts.items())
        Path("/run/redis").mkdir(exist_ok=True)
        command = ["unshare", "--mount", "sh", "-c", f"{binds} && echo ready && exec sleep infinity"]
        self.keeper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.keeper.stdout
        assert self.keeper.stdout.readline() == "ready\n"
        self.server = self.start([*AS_REDIS, "redis-server", "-"], CONFIG)
        wait_for(lambda: self.redis("PING").stdout == "PONG\n")
        self.redis("SET", "key", "value")

    def inside(self, command: list[str]) -> list[str]:
        """Return a command that runs another one inside."""
        return ["nsenter", f"--target={self.keeper.pid}", "--mount", f"--wdns={self.lib}", *command]

    def start(self, command: list[str], text: str) -> subprocess.Popen[str]:
        """Start a process that gets a text."""
        process = subprocess.Popen(
            self.inside(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin
        process.stdin.write(text)
        process.stdin.close()
        return process

    def run(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as root; one that does not end fails the test."""
        return subprocess.run(
            self.inside(list(command)),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            errors="replace",
        )

    def redis(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Say something to the server."""
        return self.run(
            "redis-cli",
            "--no-auth-warning",
            "-a",
            "password-of-this-test",
            "-s",
            "/run/redis/redis-server.sock",
            *words,
        )

    def plant(self, command: str) -> None:
        """Let the redis user do something in its directory."""
        text = "cd /var/lib/redis && " + command.format(manifest="appendonlydir/appendonly.aof.manifest")
        planted = self.run(*AS_REDIS, "sh", "-ec", text)
        assert planted.returncode == 0, planted.stderr

    def program(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of hosttools as root, from standard input as playbooks do."""
        ended = self.run("/usr/bin/python3", "-", *arguments, text=PROGRAM)
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    def roots(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Return all that is root's, as it is now."""
        places = [self.lib / "root-only", *(self.lib / "root-only").rglob("*")]
        return {
            str(path): (
                seen.st_uid,
                seen.st_gid,
                seen.st_mode,
                path.read_bytes() if stat.S_ISREG(seen.st_mode) else b"",
            )
            for path in places
            for seen in [path.lstat()]
        }

    def stop(self) -> None:
        """End what was started."""
        for process in (self.server, self.keeper):
            process.kill()
            process.wait()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Start one."""
    host = Host(tmp_path)
    yield host
    host.stop()


def everything(host: Host, archive: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run all that root runs in the directory: look, back up, give files away, make room, restore."""
    ran = [
        host.program("aof", "--host=h", "--redis=main", "--redis=broker"),
        host.program("backup", "look", "main", "--host=h"),
        host.program("backup", "take", "main", "--host=h", f"--archive={archive}", "--recipient="),
        host.program("disk_space", "--host=h", "--prefix=typesafe"),
        host.program("doctor", "--help"),
    ]
    host.server.kill()
    host.server.wait()
    if archive.exists():
        place = "--directory=/var/lib/redis-restore/main"
        ran += [
            host.program("backup", "try", "main", f"--archive={archive}", place),
            host.program("backup", "put", "main", place, "--aside=/var/lib/redis-aside/now/main"),
        ]
    ran += [
        host.program("aof", "--host=h", "--own", "--redis=main"),
        host.program("aof", "--host=h", "--own", "--redis=broker"),
        host.run(*AS_REDIS, "cp", "--remove-destination", "/var/lib/redis/dump.rdb", "/var/lib/redis/appendonly.aof"),
    ]
    return ran


@pytest.mark.parametrize("plant", PLANTS)
def test_root_is_not_led_astray(host: Host, tmp_path: Path, plant: str) -> None:
    host.plant(PLANTS[plant])
    before = host.roots()
    archive = tmp_path / "archive.tar.gz"
    ran = everything(host, archive)
    assert host.roots() == before
    told = "".join(run.stdout + run.stderr for run in ran)
    assert SENTENCE not in told
    if archive.exists():
        unpacked = tmp_path / "unpacked"
        unpacked.mkdir()
        subprocess.run(
            ["tar", "--extract", f"--file={archive}", f"--directory={unpacked}"], capture_output=True, check=False
        )
        files = [path for path in unpacked.rglob("*") if path.is_file()]
        assert all(SENTENCE.encode() not in path.read_bytes() for path in files)
    owned = [path for path in host.lib.rglob("*") if not path.is_symlink() and path.stat().st_uid == 0]
    assert {path.relative_to(host.lib).parts[0] for path in owned} <= {"root-only", "redis-aside", "redis-restore"}


def test_honest_data_goes_all_the_way(host: Host, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    looked, asked, taken, *rest = everything(host, archive)
    assert [json.loads(looked.stdout)[0]["what"], taken.returncode] == ["h: /var/lib/redis/broker is not there", 0]
    assert json.loads(asked.stdout)[0]["rank"] == 1
    assert json.loads(taken.stdout)["figures"]["keys"] == 1
    assert [run.stderr for run in rest if run.returncode and "broker" not in run.stderr] == []
    kept = host.lib / "redis-aside/now/main"
    assert (kept / "appendonlydir").is_dir()
    assert (host.lib / "redis/appendonlydir").owner() == "redis"


def test_an_archive_leaves_the_host_encrypted(host: Host, tmp_path: Path) -> None:
    made = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    archive, recipient = tmp_path / "archive.tar.gz.age", made.stderr.split()[-1]
    taken = host.program("backup", "take", "main", "--host=h", f"--archive={archive}", f"--recipient={recipient}")
    assert taken.returncode == 0, taken.stderr
    decrypt = ["age", "--decrypt", "--identity", "-", str(archive)]
    clear = subprocess.run(decrypt, input=made.stdout.encode(), capture_output=True, check=True).stdout
    names = subprocess.run(["tar", "--list", "--gzip"], input=clear, capture_output=True, check=True).stdout.decode()
    assert names.splitlines()[:1] == ["manifest.json"]
    assert "dump.rdb" in names
    rejected = host.program("backup", "take", "main", "--host=h", f"--archive={tmp_path}/x", "--recipient=age1x")
    assert "age has not encrypted the archive" in rejected.stderr


def test_a_link_of_a_service_is_no_way_to_roots_files(host: Host) -> None:
    """The module host_files, as the roles use it: root's own links are followed, a service's are not."""

    def keep(path: str) -> dict[str, object]:
        directory = {"path": path, "owner": "redis", "group": "redis", "mode": "0777"}
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {"directories": [directory]}})
        module = str(REPOSITORY / "plugins/modules/host_files.py")
        ran = subprocess.run(
            host.inside([sys.executable, module]),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        answer: dict[str, object] = json.loads(ran.stdout)
        return answer

    host.plant("ln -s /var/lib/root-only broker; ln -s /var/lib two")
    before = host.roots()
    for path in ("/var/lib/redis/broker", "/var/lib/redis/broker/below", "/var/lib/redis/two/root-only"):
        answer = keep(path)
        assert answer["failed"]
        assert "is a link of redis" in str(answer["msg"])
    assert host.roots() == before
    (host.lib / "disk").mkdir()
    (host.lib / "data").symlink_to("disk")
    assert keep("/var/lib/data")["changed"]
    assert (host.lib / "disk").owner() == "redis"
