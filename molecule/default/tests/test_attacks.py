"""What an attacker tries on a host: to read a secret, to use a service's rights for more, to forge a task."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from conftest import EPHEMERAL, PROJECT, Api
from shared import portscan
from testinfra.host import Host

from celery_durable.testing import wait_for

CANARIES = "/run/canaries"
PYTHON = "/opt/typesafe/backend/venv/bin/python"


@pytest.fixture
def put(name: str) -> Callable[[str, str, str], None]:
    """Write a file on the host without a trace of its content in any command."""

    def run(path: str, content: str, mode: str = "600") -> None:
        command = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", name]
        subprocess.run([*command, "install", "-m", mode, "/dev/stdin", path], input=content, text=True, check=True)

    return run


@pytest.fixture
def canaries(put: Callable[..., None]) -> list[str]:
    """All secrets of this run; the host gets them as patterns for grep."""
    secrets = [file.read_text().split()[0] for file in (EPHEMERAL / "secrets").iterdir()]
    assert len(secrets) >= 9
    put(CANARIES, "\n".join(secrets) + "\n")
    return secrets


# Where a secret must not be


@pytest.mark.attack("credentials of units")
def test_no_command_line_and_no_environment_holds_a_secret(host: Host, canaries: list[str]) -> None:
    # grep itself is told by a file.
    found = host.run(f"cd /proc; grep -alF -f {CANARIES} [0-9]*/cmdline [0-9]*/environ 2>/dev/null").stdout
    assert found == ""
    assert canaries


@pytest.mark.attack("masking")
def test_no_journal_and_no_log_holds_a_secret(host: Host, canaries: list[str]) -> None:
    assert host.run(f"journalctl --no-pager --all | grep -cF -f {CANARIES}").stdout.strip() == "0"
    assert host.run(f"grep -rlF -f {CANARIES} /var/log --exclude-dir=journal").stdout == ""
    assert canaries


@pytest.mark.attack("modes of files")
def test_no_file_that_all_can_read_holds_a_secret(host: Host, canaries: list[str]) -> None:
    find = "find / -xdev -type f -perm -o+r -not -path '/proc/*' -not -path '/sys/*' -print0"
    assert host.run(f"{find} | xargs -0 -r grep -lF -f {CANARIES} 2>/dev/null").stdout == ""
    assert canaries


@pytest.mark.attack("masking")
def test_no_answer_of_the_api_or_flower_holds_a_secret(host: Host, api: Api, canaries: list[str]) -> None:
    task = api.enqueue()
    pages = [
        f"{api.url}{path}"
        for path in ("/", "/docs", "/openapi.json", "/health/celery", "/health/ready", "/metrics/celery")
    ]
    flower = "http://127.0.0.1:5555/flower"
    for path in ("workers", "tasks", "broker", "api/workers?refresh=1", "api/tasks", "metrics"):
        pages.append(f"{flower}/{path}")  # noqa: PERF401 - reads better
    login = "sed 's/^/user = /;q' /etc/typesafe-flower/FLOWER_BASIC_AUTH"
    for page in [*pages, f"{api.url}/tasks/status/{task}"]:
        body = host.run(f"{login} | curl -s -K - {page}").stdout
        assert body, page
        assert not any(canary in body for canary in canaries), page


# What a service's own Redis user may not do


FORBIDDEN = {
    "everybody": [
        ["FLUSHALL"],
        ["KEYS", "*"],
        ["CONFIG", "GET", "*"],
        ["CONFIG", "SET", "dir", "/tmp"],  # noqa: S108 - an attack
        ["ACL", "SETUSER", "worker", "allcommands"],
        ["ACL", "LIST"],
        ["MODULE", "LIST"],
        ["SCRIPT", "FLUSH"],
        ["SHUTDOWN"],
        ["REPLICAOF", "127.0.0.1", "1"],
        ["MONITOR"],
        ["SET", "foreign", "1"],
        ["EVAL", "while true do end", "0"],
        ["EVAL", "return 1", "1", "celery"],
        ["EVAL", "return 1", "1", "app:1"],
        ["EVAL_RO", "return 1", "1", "celery-task-meta-1"],
        ["SCRIPT", "LOAD", "while true do end"],
        ["FUNCTION", "LOAD", "#!lua name=own\nredis.register_function('own', function() while true do end end)"],
    ],
    "worker": [["DEL", "idempotency:1"]],
    "api": [["RPOP", "celery"], ["LRANGE", "celery", "0", "-1"], ["DEL", "accepted"], ["LPUSH", "dead_letters", "x"]],
    "flower": [["LPUSH", "celery", "x"], ["LRANGE", "celery", "0", "-1"], ["GET", "idempotency:1"], ["DEL", "celery"]],
    "operator": [["DEL", "celery"], ["LREM", "celery", "1", "x"], ["SET", "idempotency:1", "x"]],
}
TRY = """
import json, sys, redis
from pathlib import Path
client = redis.Redis.from_url(Path(sys.argv[1]).read_text())
for command in json.loads(sys.argv[2]):
    try:
        client.execute_command(*command)
        print("allowed", *command)
    except redis.exceptions.NoPermissionError:
        pass
    except redis.exceptions.ResponseError as error:
        refusals = ("No permission", "no permissions", "can't access", "can't run", "ACL failure")
        if not any(words in str(error) for words in refusals):
            print("not judged", *command, error)
"""


@pytest.mark.attack("rules of Redis")
@pytest.mark.parametrize("instance", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
@pytest.mark.parametrize("service", ["worker", "api", "flower", "operator"])
def test_a_services_redis_user_can_do_no_more_than_it_needs(
    host: Host, put: Callable[..., None], service: str, instance: str
) -> None:
    put("/run/try.py", TRY, "644")
    commands = json.dumps(FORBIDDEN["everybody"] + (FORBIDDEN[service] if instance == "CELERY_BROKER_URL" else []))
    secret = f"/etc/typesafe/secrets/{service}/{instance}"
    quoted = commands.replace("'", "'\"'\"'")
    assert host.check_output(f"{PYTHON} /run/try.py {secret} '{quoted}'") == ""


def test_what_was_denied_is_in_redis_own_log(host: Host) -> None:
    login = "export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis-broker.conf)"
    assert "flushall" in host.check_output(f"{login}; redis-cli -p 6380 ACL LOG 128")


@pytest.mark.attack("owners of files, credentials of units")
def test_a_service_cannot_read_the_secrets_of_another(host: Host) -> None:
    for user, foreign in (
        ("typesafe", "api/BACKEND_API_KEY"),
        ("typesafe-api", "worker/CELERY_BROKER_URL"),
        ("typesafe-flower", "api/BACKEND_API_KEY"),
        ("typesafe-flower", "operator/TASK_SIGNING_KEY"),
        ("typesafe-flower", "operator/CONTROL_SIGNING_KEY"),
        ("typesafe-api", "worker/CONTROL_SIGNING_KEY"),
    ):
        assert host.run(f"sudo -u {user} cat /etc/typesafe/secrets/{foreign}").failed, (user, foreign)


@pytest.mark.attack("rules of Redis")
def test_the_operator_may_kill_a_script_and_services_may_not(host: Host, put: Callable[..., None]) -> None:
    put("/run/try.py", TRY, "644")
    for service in ("worker", "api", "flower", "operator"):
        for secret in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
            command = f'{PYTHON} /run/try.py /etc/typesafe/secrets/{service}/{secret} \'[["SCRIPT", "KILL"]]\''
            # "No scripts in execution right now" is the answer to who may.
            assert ("NOTBUSY" in host.check_output(command)) == (service == "operator"), service


# Messages that nobody has handed in


PUSH = """
import sys, redis
from pathlib import Path
client = redis.Redis.from_url(Path("/etc/typesafe/secrets/api/CELERY_BROKER_URL").read_text())
client.lpush("celery", sys.stdin.buffer.read())
"""


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        """Say what unpickling does."""
        return (Path.touch, (Path("/tmp/unpickled"),))  # noqa: S108 - looked for below


def message(content_type: str, body: bytes, padding: int = 0) -> str:
    """Return a task's message as Celery writes it, but not signed."""
    task_id = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": {
                "lang": "py",
                "task": "app.agents.tasks.example_task.example_agent_task",
                "id": task_id,
                "root_id": task_id,
                "padding": "x" * padding,
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "celery"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": task_id,
            },
        }
    )


ARGUMENTS = json.dumps([["1", {"key": "forged"}], {}, {}]).encode()


@pytest.mark.attack("signatures of messages")
@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(message("application/json", ARGUMENTS), id="forged"),
        pytest.param(message("application/x-python-serialize", pickle.dumps(Bomb())), id="pickled"),
        pytest.param(message("application/json", ARGUMENTS, padding=8 * 1024 * 1024), id="oversized"),
        pytest.param("\x00\xff{", id="garbage"),
    ],
)
def test_a_message_from_elsewhere_becomes_a_dead_letter(
    host: Host, api: Api, put: Callable[..., None], name: str, forged: str
) -> None:
    """Whoever has stolen the API's Redis password can push, but cannot sign."""
    letters = "/usr/local/sbin/typesafe-admin dead-letters"
    put("/run/push.py", PUSH, "644")
    command = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", name, PYTHON, "/run/push.py"]
    subprocess.run(command, input=forged.encode(), check=True)
    wait_for(lambda: "\n1 dead letters" in "\n" + host.check_output(f"{letters} list"), "the dead letter", 30)
    api.wait(api.enqueue())
    assert not host.file("/tmp/unpickled").exists  # noqa: S108
    assert "is deleted" in host.check_output(f"{letters} drop --all")


# From the network


@pytest.mark.attack("the firewall")
def test_only_the_declared_ports_answer_an_unexpected_client(host: Host, name: str) -> None:
    """SSH alone: everything else listens on loopback, and the firewall is closed besides."""
    host.run("systemd-run --unit=foreign-service python3 -m http.server 9999")
    try:
        wait_for(lambda: host.socket("tcp://0.0.0.0:9999").is_listening, "a service that nobody declared", 30)
        with portscan.outsider(f"{name}-outsider") as outsider:
            assert outsider.scan(portscan.address(host)).answers == {22}
    finally:
        host.run("systemctl stop foreign-service")


# What a task may connect to

REACH = """
import json, socket, sys
outcomes = []
for address, port in json.loads(sys.argv[1]):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.settimeout(5)
        try:
            connection.connect((address, port))
            outcomes.append("open")
        except OSError as error:
            outcomes.append(type(error).__name__ if isinstance(error, ConnectionError) else repr(error))
print(json.dumps(outcomes))
"""
METADATA = "169.254.169.254"


@pytest.fixture
def reach(host: Host, put: Callable[..., None]) -> Iterator[Callable[[str, list[tuple[str, int]]], list[str]]]:
    """Connect as a user of the host; a service that nobody declared and one for metadata listen there."""
    put("/run/reach.py", REACH, "644")
    host.check_output(f"ip address add {METADATA}/32 dev lo")
    host.check_output("systemd-run --quiet --unit=foreign-service python3 -m http.server --bind :: 9999")
    try:
        wait_for(lambda: ":9999" in host.check_output("ss -Hltn"), "a service that nobody declared", 30)
        yield lambda user, targets: json.loads(
            host.check_output(f"cd / && sudo -u {user} python3 /run/reach.py '{json.dumps(targets)}'")
        )
    finally:
        host.run(f"systemctl stop foreign-service; ip address del {METADATA}/32 dev lo")


@pytest.mark.attack("nftables and the unit, by the workers' user")
def test_a_task_reaches_redis_and_no_other_service_of_this_host_or_its_neighbours(
    host: Host, name: str, api: Api, reach: Callable[[str, list[tuple[str, int]]], list[str]]
) -> None:
    """By the workers' user, which tasks have under systemd and supervisor alike."""
    neighbour = {"site-debian12": "site-debian13", "site-debian13": "site-debian12"}[name]
    other = portscan.address_of(neighbour)
    closed = [(address, 9999) for address in ("127.0.0.1", "::1", portscan.address(host), METADATA)]
    closed += [("127.0.0.1", 8000), ("127.0.0.1", 5555), ("127.0.0.1", 22), (other, 22)]
    redis = [("127.0.0.1", 6379), ("127.0.0.1", 6380)]
    # Nothing but the rules is in the way.
    wait_for(
        lambda: set(reach("typesafe-operator", closed + redis)) == {"open"}, "every service answers the operator", 30
    )

    def denied() -> int:
        table = host.check_output("nft list counter inet platform egress_refused")
        return int(table.partition("packets ")[2].split()[0])

    before = denied()
    assert reach("typesafe", closed + redis) == ["ConnectionRefusedError"] * len(closed) + ["open"] * len(redis)
    assert denied() >= before + len(closed)
    # Names are found, and tasks run.
    assert host.run(f"sudo -u typesafe getent ahostsv4 {neighbour}").succeeded
    api.wait(api.enqueue())


@pytest.mark.attack("the unit's address filter")
def test_a_workers_unit_closes_what_is_not_public(host: Host) -> None:
    denied = host.check_output("systemctl show --value --property=IPAddressDeny typesafe-celery").split()
    for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "fc00::1", "fe80::1", "::ffff:0:a9fe:a9fe"):
        assert any(ip_address(address) in ip_network(network) for network in denied), address


@pytest.mark.attack("the API's limit for wrong keys")
def test_guessing_a_key_is_slowed_down(host: Host, api: Api) -> None:
    codes = "-o /dev/null -w '%{http_code}\\n' -H 'X-API-Key: wrong'"
    # Each of the API's processes counts for itself.
    processes = int(host.check_output("nproc"))
    guess = f"for i in $(seq {80 * processes}); do curl -s {codes} {api.url}/metrics/celery; done"
    answers = host.run(guess).stdout.split()
    assert set(answers) <= {"401", "429"}
    assert "429" in answers
    assert api.get("/metrics/celery").status_code == 200
