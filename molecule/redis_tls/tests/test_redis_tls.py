"""Redis on other hosts: clients, replicas and sentinels speak TLS alone, and know each other by their certificates."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import testinfra
from conftest import EPHEMERAL, PROJECT, Api, wait_for
from testinfra.host import Host

PORTS = (6379, 6380)
SENTINEL = 26379
SERVERS = {"tls-redis-1": "10.213.4.1", "tls-redis-2": "10.213.4.2", "tls-redis-3": "10.213.4.3"}
CERTIFICATES = "/etc/redis/tls"
CA = "/etc/typesafe/ca.crt"


def connected(name: str) -> Host:
    """Return a host, entered as root."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(EPHEMERAL / "inventory"), sudo=True)


@pytest.fixture(scope="session")
def redis_hosts() -> list[Host]:
    """The hosts that run Redis."""
    return [connected(name) for name in SERVERS]


@pytest.fixture(scope="session")
def redis_host(redis_hosts: list[Host]) -> Host:
    """The first of them."""
    return redis_hosts[0]


@pytest.fixture(scope="session")
def app_host() -> Host:
    """The host that runs everything else."""
    return connected("tls-app")


def handshake(host: Host, port: int, *, check: str = "-verify_ip 10.213.4.1", ca: str = CA) -> str:
    """Return the fingerprint of the certificate that the first server shows, nothing when it is not to be trusted."""
    checks = f"-verify_return_error {check} -CAfile {ca}"
    address = SERVERS["tls-redis-1"]
    shown = host.run(
        f"openssl s_client -connect {address}:{port} {checks} </dev/null | openssl x509 -noout -fingerprint"
    )
    return str(shown.stdout).strip()


def playbook(name: str, **variables: str) -> str:
    """Run one of the project's playbooks, which must succeed; return what it says."""
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / f"playbooks/{name}.yml")]
    command += [f"--extra-vars={json.dumps(variables)}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=480)
    assert run.returncode == 0, run.stdout
    return run.stdout


def replication(host: Host, port: int) -> dict[str, str]:
    """Return what a server says of its replication."""
    file = "/etc/redis/redis.conf" if port == PORTS[0] else "/etc/redis/redis-broker.conf"
    login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {file})"
    client = f"redis-cli --tls --cacert {CERTIFICATES}/ca.crt -p {port}"
    lines = str(host.check_output(f"{login}; {client} info replication")).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def all_follow(hosts: list[Host], primary: int) -> bool:
    """Tell whether all servers follow the one at this place of the list."""
    return all(
        replication(host, port).get("connected_slaves" if place == primary else "master_link_status")
        == ("2" if place == primary else "up")
        for port in PORTS
        for place, host in enumerate(hosts)
    )


def test_a_task_runs_across_the_hosts(app_host: Host) -> None:
    api = Api(app_host)
    api.wait(api.enqueue(key="value"))
    assert api.call("GET", "/health/celery")[0] == 200


def test_the_doctor_sees_nothing() -> None:
    # The test hosts' clock is that of the machine, which may be unsynchronized.
    assert set(re.findall(r"-> docs/runbooks/(\w+)\.md", playbook("diagnose/doctor"))) <= {"ClockWrong"}


def test_no_client_is_told_of_another_way(app_host: Host) -> None:
    secrets = "/etc/typesafe/secrets/*"
    lines = app_host.check_output(
        f"grep -h . {secrets}/REDIS_URL {secrets}/CELERY_BROKER_URL {secrets}/CELERY_RESULT*"
    ).splitlines()
    assert len(lines) == 12
    for url in (url for line in lines for url in line.split(";")):
        assert url.startswith("sentinel://")
        assert url.endswith(f"?ssl_ca_certs={CA}")


@pytest.mark.parametrize("port", [*PORTS, SENTINEL])
def test_the_certificate_proves_the_address_that_clients_use(app_host: Host, port: int) -> None:
    assert "Fingerprint=" in handshake(app_host, port)
    assert "Fingerprint=" in handshake(app_host, port, check="-verify_hostname tls-redis-1")
    assert handshake(app_host, port, check="-verify_ip 10.213.4.9") == ""
    assert handshake(app_host, port, ca="/etc/ssl/certs/ca-certificates.crt") == ""


@pytest.mark.parametrize("port", [*PORTS, SENTINEL])
def test_nothing_is_answered_in_plain_text(app_host: Host, port: int) -> None:
    answer = app_host.run(f"timeout 5 bash -c 'exec 3<>/dev/tcp/10.213.4.1/{port}; echo PING >&3; cat <&3'")
    assert "PONG" not in answer.stdout
    assert "NOAUTH" not in answer.stdout


def test_an_operator_on_the_host_uses_redis_cli_and_replicas_follow(redis_hosts: list[Host]) -> None:
    wait_for(lambda: all_follow(redis_hosts, primary=0), "all follow the first")


def test_the_key_is_for_redis_alone(redis_host: Host) -> None:
    assert redis_host.check_output(f"stat -c '%U %G %a' {CERTIFICATES}/*.pem") == "root redis 640"
    assert redis_host.run(f"sudo -u nobody sh -c 'cat {CERTIFICATES}/*.pem'").failed


def test_a_new_certificate_is_in_force_and_no_task_is_lost(redis_hosts: list[Host], app_host: Host) -> None:
    """As in its last 30 days: without the old file the play makes a new one."""
    before = handshake(app_host, PORTS[1])
    for host in redis_hosts:
        host.check_output(f"rm {CERTIFICATES}/*.pem")
    api = Api(app_host)
    tasks = [api.enqueue(number=number) for number in range(5)]
    assert "PRIVATE KEY" not in playbook("site/redis")
    after = {handshake(app_host, port) for port in PORTS}
    assert len(after) == 1
    assert before not in after
    for task in tasks:
        api.wait(task, seconds=60)
    for host in redis_hosts:
        assert len(host.check_output(f"ls {CERTIFICATES}").split()) == 2


def task_id(api: Api) -> str | None:
    """Hand in a task; return its id, None when it is refused, as for some seconds after a switchover."""
    status, answer = api.call("POST", "/tasks/enqueue", {"data": {}})
    return answer["task_id"] if status == 202 else None


def test_another_primary_is_followed(redis_hosts: list[Host], app_host: Host) -> None:
    playbook("ops/promote_redis", to="tls-redis-2")
    wait_for(lambda: all_follow(redis_hosts, primary=1), "all follow the second")
    api = Api(app_host)
    accepted = wait_for(lambda: task_id(api), "a task that is accepted")
    api.wait(accepted, seconds=60)


def test_redis_is_watched_over_tls_from_another_host(app_host: Host) -> None:
    login = "sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K -"
    query = f"{login} 'http://127.0.0.1:9090/api/v1/query?query=redis_up'"

    def seen() -> dict[str, str]:
        found = json.loads(app_host.check_output(query))["data"]["result"]
        return {one["metric"]["redis"]: one["value"][1] for one in found if one["metric"]["host"] == "tls-redis-1"}

    wait_for(lambda: seen() == {"main": "1", "broker": "1", "sentinel": "1"}, "Redis and sentinel seen", 60)
    assert app_host.run("timeout 3 bash -c '</dev/tcp/10.213.4.1/9121'").succeeded
