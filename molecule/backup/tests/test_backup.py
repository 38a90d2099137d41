"""Backup and restore: everything is lost and comes back; what cannot be restored is refused, and nothing is touched."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import EPHEMERAL, PROJECT, Api
from testinfra.host import Host

from celery_durable.testing import wait_for
from plugins.lookup.hosttools import program

BACKUPS = EPHEMERAL / "backups"
HOST = "backup-host"
ACCESS, SECRET, REGION = "AKIAEXAMPLE", "a-secret-of-the-bucket", "eu-north-1"

# Writes transactions as fast as it can, as the administrator, and lets the append-only file be rewritten all the time.
WRITER = """
import re, socket
from pathlib import Path
password = re.search("^requirepass (.+)", Path("/etc/redis/redis.conf").read_text(), re.M)[1]
redis = socket.socket(socket.AF_UNIX)
redis.connect("/run/redis/redis-server.sock")
count = 0
redis.sendall(f"AUTH {password}\\r\\n".encode())
while True:
    count += 1
    redis.sendall(b"MULTI\\r\\nINCR app:count\\r\\nRPUSH app:list " + b"x" * 500 + b"\\r\\nEXEC\\r\\n")
    if count % 500 == 0:
        redis.sendall(b"BGREWRITEAOF\\r\\n")
    redis.recv(65536)
"""

# Runs on the host behind the script itself: a copy that ends in the middle of a transaction, and one that is broken.
TORN = """
import tempfile
from pathlib import Path
from hosttools.backup.host import AOF_MANIFEST, become_redis
from hosttools.backup.take import copy_append_only, named
from hosttools.backup.trial import broken, settle
become_redis()
with tempfile.TemporaryDirectory(dir="/var/lib/redis") as directory:
    place = Path(directory)
    copy_append_only(Path("/var/lib/redis"), place / "appendonlydir")
    whole = settle(place)
    last = place / "appendonlydir" / named((place / AOF_MANIFEST).read_text().splitlines())[-1]
    content = last.read_bytes()
    last.write_bytes(content + b"*1\\r\\n$5\\r\\nMULTI\\r\\n*2\\r\\n$4\\r\\nINCR\\r\\n$9\\r\\napp")
    assert broken(place)
    assert settle(place) == whole
    assert last.read_bytes() == content
    last.write_bytes(content + b"?" * 100 + content)
    settle(place)
"""


def playbook(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook with the scenario's inventory."""
    command = [
        "ansible-playbook",
        "-vvv",
        f"--inventory={EPHEMERAL / 'inventory'}",
        str(PROJECT / "playbooks/ops" / name),
    ]
    # Tests look into archives; one has them encrypted.
    common = {"backup_directory": str(BACKUPS), "backup_encrypted": False}
    command += [f"--extra-vars={json.dumps({**common, **variables})}"]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )


def back_up(**variables: object) -> Path:
    """Take a backup; return its directory."""
    run = playbook("backup.yml", **variables)
    assert run.returncode == 0, run.stdout
    return max(BACKUPS.iterdir())


def restore(backup: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """Restore it, unless it is refused."""
    return playbook("restore.yml", backup=str(backup), confirm="yes", **variables)


def rewritten(archive: Path, target: Path, **changes: bytes) -> Path:
    """Write an archive again; ``changes`` are bytes for the beginning of a file, whose checksum is put right."""
    with tarfile.open(archive) as source, tarfile.open(target, "w:gz") as copy:
        content = {member.name: source.extractfile(member).read() for member in source.getmembers()}  # type: ignore[union-attr]
        manifest = json.loads(content.pop("manifest.json"))
        snapshot = changes.get("snapshot", b"")
        content["dump.rdb"] = snapshot + content["dump.rdb"][len(snapshot) :]
        manifest["files"]["dump.rdb"]["sha256"] = hashlib.sha256(content["dump.rdb"]).hexdigest()
        manifest["redis_version"] = changes.get("version", manifest["redis_version"].encode()).decode()
        for name, body in {"manifest.json": json.dumps(manifest).encode(), **content}.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            copy.addfile(member, io.BytesIO(body))
    return target


def ask(host: Host, instance: str, command: str) -> str:
    """Ask an instance as its administrator."""
    suffix = "" if instance == "main" else f"-{instance}"
    login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis{suffix}.conf)"
    return str(host.check_output(f"{login}; redis-cli -s /run/redis{suffix}/redis-server.sock {command}")).strip()


def starts(host: Host) -> str:
    """Return when the units were started."""
    units = "redis-server redis-server@broker typesafe-celery typesafe-api typesafe-flower"
    return str(host.check_output(f"systemctl show --property=ActiveEnterTimestampMonotonic {units}"))


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What one test leaves for the next."""
    return {}


def test_everything_is_lost_and_comes_back(host: Host, api: Api, kept: dict[str, Any]) -> None:
    done = [api.enqueue({"number": number}) for number in range(3)]
    for task in done:
        api.wait(task)
    host.check_output("systemctl stop typesafe-celery")
    waiting = [api.enqueue({"number": number}) for number in range(5)]
    run = kept["run"] = back_up()
    archives = sorted(run.iterdir())
    assert [archive.name for archive in archives] == [f"{HOST}-broker.tar.gz", f"{HOST}-main.tar.gz"]
    assert {archive.stat().st_mode & 0o777 for archive in archives} == {0o600}
    assert run.stat().st_mode & 0o777 == 0o700
    with tarfile.open(archives[0]) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert manifest["figures"]["lists"]["celery"] == 5
    assert manifest["figures"]["accepted"] == 5
    assert set(manifest["files"]) > {"dump.rdb", "appendonlydir/appendonly.aof.manifest"}
    assert host.run("ls -d /var/tmp/redis-backup.* /var/lib/redis/.backup.*").stdout == ""

    host.check_output("systemctl stop redis-server redis-server@broker && rm -rf /var/lib/redis")
    told = playbook("restore.yml", backup=str(run))
    assert told.returncode == 0, told.stdout
    assert "celery 5" in told.stdout
    assert "Nothing was changed." in told.stdout
    assert not host.file("/var/lib/redis").exists
    assert not host.file("/var/lib/redis-restore").exists

    restored = restore(run)
    assert restored.returncode == 0, restored.stdout
    for task in done:
        assert api.state(task) == "SUCCESS"
    for task in waiting:
        api.wait(task)
    for place in ("/var/lib/redis", "/var/lib/redis/broker"):
        assert host.file(place).mode == 0o750
    assert host.check_output("find /var/lib/redis -not -user redis") == ""


def test_what_is_written_meanwhile_is_there_in_whole_transactions(host: Host, kept: dict[str, Any]) -> None:
    host.run_expect([0], f"cat >/run/writer.py <<'END'\n{WRITER}END\nsystemd-run --unit=writer python3 /run/writer.py")
    wait_for(lambda: int(ask(host, "main", "GET app:count") or 0) > 2000, "a load", 30)
    before = int(ask(host, "main", "GET app:count"))
    kept["load"] = back_up()
    after = int(ask(host, "main", "GET app:count"))
    host.check_output("systemctl stop writer")
    broker = ask(host, "broker", "INFO server")
    restored = restore(kept["load"], instance="main")
    assert restored.returncode == 0, restored.stdout
    count = int(ask(host, "main", "GET app:count"))
    assert before < count < after
    assert int(ask(host, "main", "LLEN app:list")) == count
    assert next(line for line in broker.splitlines() if "run_id" in line) in ask(host, "broker", "INFO server")


def test_a_copy_may_end_anywhere_but_not_be_broken() -> None:
    script = program().rpartition("from hosttools.__main__")[0]
    command = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", HOST, "python3", "-"]
    run = subprocess.run(command, input=script + TORN, capture_output=True, text=True, check=False, timeout=120)
    assert run.stderr.startswith("Redis cannot load the data: "), run.stderr


def test_an_encrypted_backup_is_restored_with_the_key_alone(host: Host, api: Api) -> None:
    rejected = playbook("backup.yml", backup_encrypted=True)
    assert rejected.returncode != 0
    assert "There is no backup_recipient" in rejected.stdout
    made = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    key, recipient = made.stdout.splitlines()[-1], made.stderr.split()[-1]
    host.check_output("systemctl stop typesafe-celery")
    waiting = api.enqueue({"number": 1})
    run = back_up(backup_encrypted=True, backup_recipient=recipient)
    archives = sorted(run.iterdir())
    assert [archive.name for archive in archives] == [f"{HOST}-broker.tar.gz.age", f"{HOST}-main.tar.gz.age"]
    assert all(archive.read_bytes().startswith(b"age-encryption.org/v1") for archive in archives)
    without = restore(run)
    assert without.returncode != 0
    assert "is encrypted, and the inventory has no backup_key" in without.stdout, without.stdout
    ask(host, "broker", "DEL celery accepted")
    restored = restore(run, backup_key=key)
    assert restored.returncode == 0, restored.stdout
    # All but the header of the extra variables, which the caller has given.
    assert key not in restored.stdout
    api.wait(waiting)


def test_what_the_redis_user_has_put_there_is_not_followed(host: Host) -> None:
    manifest = "/var/lib/redis/appendonlydir/appendonly.aof.manifest"
    host.check_output("mkdir -p /etc/cron.d && echo before >/etc/cron.d/x")
    host.check_output("cp -a /var/lib/redis/appendonlydir /root/kept")
    host.check_output(f"runuser -u redis -- sed -i '$ s|file [^ ]*|file ../../../../etc/cron.d/x|' {manifest}")
    try:
        run = playbook("backup.yml")
    finally:
        host.check_output(f"cp /root/kept/appendonly.aof.manifest {manifest} && rm -r /root/kept")
    assert run.returncode != 0
    assert "'../../../../etc/cron.d/x', which is not a file that Redis writes" in run.stdout, run.stdout
    assert host.file("/etc/cron.d/x").content_string == "before\n"
    host.check_output("rm /etc/cron.d/x")


def test_what_cannot_be_restored_is_rejected_and_nothing_is_touched(host: Host, kept: dict[str, Any]) -> None:
    main = kept["run"] / f"{HOST}-main.tar.gz"
    place = EPHEMERAL / "refused"
    place.mkdir(exist_ok=True)
    cut, changed = place / "cut.tar.gz", place / "changed.tar.gz"
    content = main.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    rewritten(main, changed, snapshot=b"REDIS0012\x00")
    newer = rewritten(main, place / "newer.tar.gz", snapshot=b"REDIS0099", version=b"99.0.0")
    before = starts(host), ask(host, "main", "DBSIZE")
    for archive, sentence in (
        (cut, "cut.tar.gz is damaged"),
        (changed, "changed.tar.gz is damaged: redis-check-rdb"),
        (newer, "newer.tar.gz was written by Redis 99.0.0, and the installed 8."),
    ):
        rejected = restore(archive)
        assert rejected.returncode != 0, archive
        assert sentence in rejected.stdout, rejected.stdout
    assert (starts(host), ask(host, "main", "DBSIZE")) == before
    assert host.run("ls -d /var/tmp/redis-restore.* /var/lib/redis-restore/*").stdout == ""


def test_the_former_data_is_back_when_the_new_one_does_not_stay(host: Host, api: Api, kept: dict[str, Any]) -> None:
    ask(host, "main", "DEL app:list app:count")
    ask(host, "main", "SET app:former yes")
    limit = ask(host, "main", "CONFIG GET maxmemory").split()[-1]
    # With so little memory, Redis throws away what it has loaded.
    host.check_output("sed -i 's/^maxmemory .*/maxmemory 2mb/' /etc/redis/redis.conf")
    try:
        failed = restore(kept["load"], instance="main")
    finally:
        host.check_output(f"sed -i 's/^maxmemory .*/maxmemory {limit}/' /etc/redis/redis.conf")
    assert failed.returncode != 0
    assert "The previous data is back." in failed.stdout, failed.stdout
    assert ask(host, "main", "GET app:former") == "yes"
    api.wait(api.enqueue())


class Bucket(BaseHTTPRequestHandler):
    """Takes what is signed as Amazon's documentation of Signature Version 4 says, under the keys above."""

    taken: dict[str, bytes]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = self.headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0]
        day = self.headers["X-Amz-Date"][:8]
        scope = f"{day}/{REGION}/s3/aws4_request"
        headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in signed.split(";"))
        request = f"PUT\n{self.path}\n\n{headers}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
        text = (
            f"AWS4-HMAC-SHA256\n{self.headers['X-Amz-Date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        )
        key = f"AWS4{SECRET}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        good = (
            self.headers["Authorization"].endswith(f"Signature={key.hex()}")
            and f"{ACCESS}/{scope}" in self.headers["Authorization"]
        )
        if good:
            self.taken[self.path] = body
        self.send_response(200 if good else 403)
        self.end_headers()
        self.wfile.write(b"" if good else b"<Code>SignatureDoesNotMatch</Code>")


@pytest.fixture
def bucket() -> Iterator[dict[str, Any]]:
    """A place that speaks S3; returns the value of backup_s3 that reaches it."""
    Bucket.taken = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "endpoint": f"http://127.0.0.1:{server.server_port}",
            "bucket": "backups",
            "region": REGION,
            "access_key": ACCESS,
            "secret_key": SECRET,
        }
        server.shutdown()


def test_a_bucket_gets_a_copy_and_old_runs_are_removed(bucket: dict[str, Any]) -> None:
    before = {back_up()}
    rejected = playbook("backup.yml", backup_keep=1, backup_s3={**bucket, "secret_key": "another"})
    assert rejected.returncode != 0
    assert "SignatureDoesNotMatch" in rejected.stdout, rejected.stdout
    # What has failed removes nothing.
    assert before < set(BACKUPS.iterdir())
    run = playbook("backup.yml", backup_s3=bucket, backup_keep=2)
    assert run.returncode == 0, run.stdout
    assert SECRET not in run.stdout
    newest = max(BACKUPS.iterdir())
    assert len(list(BACKUPS.iterdir())) == 2
    assert Bucket.taken == {
        f"/backups/{newest.name}/{archive.name}": archive.read_bytes() for archive in newest.iterdir()
    }
