"""Redis on another host: API, workers and Flower reach it over TLS alone, and know it by its certificate."""

from __future__ import annotations

import json
import subprocess

import pytest
import testinfra
from conftest import EPHEMERAL, PROJECT, Api, wait_for
from testinfra.host import Host

PORTS = (6379, 6380)
CERTIFICATES = "/etc/redis/tls"
CA = "/etc/typesafe/ca.crt"


@pytest.fixture(scope="session")
def redis_host() -> Host:
    """The host that runs Redis."""
    return testinfra.get_host("ansible://tls-redis", ansible_inventory=str(EPHEMERAL / "inventory"), sudo=True)


@pytest.fixture(scope="session")
def app_host() -> Host:
    """The host that runs everything else."""
    return testinfra.get_host("ansible://tls-app", ansible_inventory=str(EPHEMERAL / "inventory"), sudo=True)


def handshake(host: Host, port: int, *, name: str = "tls-redis", ca: str = CA) -> str:
    """Return the fingerprint of the certificate that Redis shows, nothing when it is not to be trusted."""
    checks = f"-verify_return_error -verify_hostname {name} -CAfile {ca}"
    shown = host.run(
        f"openssl s_client -connect tls-redis:{port} {checks} </dev/null | openssl x509 -noout -fingerprint"
    )
    return str(shown.stdout).strip()


def test_a_task_runs_across_the_hosts(app_host: Host) -> None:
    api = Api(app_host)
    api.wait(api.enqueue(key="value"))
    assert api.call("GET", "/health/celery")[0] == 200


def test_no_client_is_told_of_another_way(app_host: Host) -> None:
    secrets = "/etc/typesafe/secrets/*"
    urls = app_host.check_output(f"grep -h . {secrets}/REDIS_URL {secrets}/CELERY_BROKER_URL {secrets}/CELERY_RESULT*")
    assert len(urls.splitlines()) == 12
    for url in urls.splitlines():
        assert url.startswith("rediss://")
        assert url.endswith(f"?ssl_cert_reqs=required&ssl_ca_certs={CA}")


@pytest.mark.parametrize("port", PORTS)
def test_the_certificate_proves_the_name_that_clients_use(app_host: Host, port: int) -> None:
    assert "Fingerprint=" in handshake(app_host, port)
    assert handshake(app_host, port, name="elsewhere.example") == ""
    assert handshake(app_host, port, ca="/etc/ssl/certs/ca-certificates.crt") == ""


@pytest.mark.parametrize("port", PORTS)
def test_nothing_is_answered_in_plain_text(app_host: Host, port: int) -> None:
    answer = app_host.run(f"timeout 5 bash -c 'exec 3<>/dev/tcp/tls-redis/{port}; echo PING >&3; cat <&3'")
    assert "PONG" not in answer.stdout
    assert "NOAUTH" not in answer.stdout


@pytest.mark.parametrize("port", PORTS)
def test_an_operator_on_the_host_uses_redis_cli(redis_host: Host, port: int) -> None:
    file = "/etc/redis/redis.conf" if port == PORTS[0] else "/etc/redis/redis-broker.conf"
    login = f"export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' {file})"
    assert redis_host.check_output(f"{login}; redis-cli --tls --cacert {CERTIFICATES}/ca.crt -p {port} ping") == "PONG"


def test_the_key_is_for_redis_alone(redis_host: Host) -> None:
    assert redis_host.check_output(f"stat -c '%U %G %a' {CERTIFICATES}/*.pem") == "root redis 640"
    assert redis_host.run(f"sudo -u nobody sh -c 'cat {CERTIFICATES}/*.pem'").failed


def test_a_new_certificate_is_in_force_and_no_task_is_lost(redis_host: Host, app_host: Host) -> None:
    """As in its last 30 days: without the old file the play makes a new one."""
    before = handshake(app_host, PORTS[1])
    redis_host.check_output(f"rm {CERTIFICATES}/*.pem")
    api = Api(app_host)
    tasks = [api.enqueue(number=number) for number in range(5)]
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", str(PROJECT / "playbooks/redis.yml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout
    assert "PRIVATE KEY" not in run.stdout
    after = {handshake(app_host, port) for port in PORTS}
    assert len(after) == 1
    assert before not in after
    for task in tasks:
        api.wait(task, seconds=60)
    assert len(redis_host.check_output(f"ls {CERTIFICATES}").split()) == 2


def test_redis_is_watched_over_tls_from_another_host(app_host: Host) -> None:
    login = "sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K -"
    query = f"{login} 'http://127.0.0.1:9090/api/v1/query?query=redis_up'"

    def seen() -> dict[str, str]:
        found = json.loads(app_host.check_output(query))["data"]["result"]
        return {one["metric"]["redis"]: one["value"][1] for one in found if one["metric"]["host"] == "tls-redis"}

    wait_for(lambda: seen() == {"main": "1", "broker": "1"}, "both Redis seen", 60)
    assert app_host.run("timeout 3 bash -c '</dev/tcp/tls-redis/9121'").succeeded
