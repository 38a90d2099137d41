"""Two balancers, as a client sees them: what they let through, whom they ask, and what is left when one dies."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from conftest import EPHEMERAL, PROJECT, diagnose_by_page, runbook_pages

from celery_durable.testing import wait_for
from tests.chaos.host import Host, podman

ADDRESSES = {"balancer-1": "10.213.2.1", "balancer-2": "10.213.2.2"}
HOSTS = [Host(name) for name in ADDRESSES]
VIRTUAL_IP = "10.213.2.100"
CA = EPHEMERAL / "secrets/redis_ca.pem"
STATE = "/run/backend"
ADMIN = """python3 -c '
import socket
with socket.socket(socket.AF_UNIX) as haproxy:
    haproxy.connect("/run/haproxy/admin.sock")
    haproxy.sendall(b"{}\\n")
    haproxy.recv(100)
'"""
# Forgets what was counted of each client.
CLEAR = ADMIN.format("clear table clients")
# Seconds until a host that is not ready gets no more requests, and until the virtual IP answers again.
LEAVES, MOVES = 2, 8


def trust(ca: str | None = str(CA)) -> ssl.SSLContext:
    """Return what a client verifies the balancers with."""
    return ssl.create_default_context(cafile=ca)


def client(address: str = VIRTUAL_IP, timeout: float = 10) -> httpx.Client:
    """Return a client with a new connection for each request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=f"https://{address}", verify=trust(), timeout=timeout, limits=limits)


def holders() -> list[Host]:
    """Return the hosts that have the virtual IP."""
    return [host for host in HOSTS if f" {VIRTUAL_IP}/" in host.run("ip -4 -oneline address", check=False)]


def seen(host: Host) -> list[dict[str, object]]:
    """Return the requests that reached a host's program."""
    return [json.loads(line) for line in host.run(f"cat {STATE}/requests 2>/dev/null", check=False).splitlines()]


def servers(requests: int = 12) -> Counter[str]:
    """Return who answers how many of some requests."""
    with client() as api:
        return Counter(api.get("/who").json()["server"] for _ in range(requests))


def up(host: Host, server: str) -> bool:
    """Tell whether a balancer sends requests to a server."""
    figures = host.run("curl -s http://127.0.0.1:8404/metrics", check=False)
    return f'haproxy_server_status{{proxy="api",server="{server}",state="UP"}} 1' in figures


def in_use() -> bool:
    """Tell whether both balancers send requests to both servers."""
    return all(up(host, server) for host in HOSTS for server in ADDRESSES)


@contextmanager
def state(host: Host, flag: str) -> Iterator[None]:
    """Let a host's program misbehave for a while."""
    host.run(f"touch {STATE}/{flag}")
    try:
        yield
    finally:
        host.run(f"rm -f {STATE}/{flag}")


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    """Begin each test with all servers in use, one virtual IP, and nothing counted."""
    for host in HOSTS:
        host.run(f"rm -f {STATE}/requests")
        host.run(CLEAR)
    wait_for(in_use, "both servers in use", 30)
    wait_for(lambda: len(holders()) == 1, "one virtual IP", 30)
    begin = time.time()
    yield
    for host in HOSTS:
        # pytest shows it of a test that failed.
        log = host.run(f"journalctl --unit haproxy --unit keepalived --output short-precise --since @{begin:.0f}")
        sys.stdout.write(f"{host.name}\n{log}\n")


@contextmanager
def stall() -> Iterator[Callable[[], float]]:
    """Ask the virtual IP all the time; the result tells the longest time without an answer."""
    answers = [time.monotonic()]
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.1):
            try:
                with client(timeout=1) as api:
                    if api.get("/who").status_code == 200:
                        answers.append(time.monotonic())
            except httpx.HTTPError:
                pass

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: max(after - before for before, after in pairwise([*answers, time.monotonic()]))
    finally:
        done.set()
        thread.join()


# TLS


def handshake(address: str, version: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0") -> str | None:
    """Return the cipher that a client with this version alone agrees on, None without one."""
    context = trust()
    context.set_ciphers(ciphers)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((address, 443), 5) as plain,
            context.wrap_socket(plain, server_hostname=address) as secure,
        ):
            assert secure.selected_alpn_protocol() == "h2"
            cipher = secure.cipher()
            return cipher[0] if cipher else None
    except ssl.SSLError:
        return None


@pytest.mark.parametrize("address", [*ADDRESSES.values(), VIRTUAL_IP])
def test_modern_tls_alone(address: str) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        assert handshake(address, ssl.TLSVersion.TLSv1_1) is None
    assert handshake(address, ssl.TLSVersion.TLSv1_2) is not None
    assert handshake(address, ssl.TLSVersion.TLSv1_3) is not None
    for weak in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES256-GCM-SHA384"):
        assert handshake(address, ssl.TLSVersion.TLSv1_2, f"{weak}:@SECLEVEL=0") is None


def test_the_certificate_has_the_names_of_the_inventory() -> None:
    for name in ("tasks.example.com", "balancer-1", VIRTUAL_IP):
        with socket.create_connection((ADDRESSES["balancer-1"], 443), 5) as plain:
            trust().wrap_socket(plain, server_hostname=name).close()
    with (
        socket.create_connection((VIRTUAL_IP, 443), 5) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        trust().wrap_socket(plain, server_hostname="elsewhere.example.com")


def test_the_key_is_for_the_balancer_alone() -> None:
    for host in HOSTS:
        assert host.run("stat -c '%U %G %a' /etc/haproxy/tls/platform.pem") == "root haproxy 640"
        assert host.run("sudo -u nobody cat /etc/haproxy/tls/platform.pem 2>&1 || true").endswith("Permission denied")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_plain_http_is_sent_to_https(method: str) -> None:
    answer = httpx.request(method, f"http://{VIRTUAL_IP}/tasks/status/1?a=b")
    assert answer.status_code == 308
    assert answer.headers["Location"] == f"https://{VIRTUAL_IP}/tasks/status/1?a=b"
    assert not any(seen(host) for host in HOSTS)


# What a request becomes


def test_the_api_hears_what_the_balancer_has_seen() -> None:
    lies = {
        "X-Forwarded-For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
        "X-Real-IP": "192.0.2.1",
        "X-Forwarded-Proto": "http",
    }
    with client() as api:
        headers = api.get("/who", headers=lies).json()["headers"]
    with socket.create_connection((VIRTUAL_IP, 443), 5) as probe:
        mine = probe.getsockname()[0]
    assert headers["x-forwarded-for"] == mine
    assert headers["x-forwarded-proto"] == "https"
    assert not {"forwarded", "x-real-ip"} & set(headers)


def test_a_request_keeps_its_id_and_is_found_in_the_log() -> None:
    with client() as api:
        for given in ("mine-1.2_3", 'not "valid"', "x" * 129, None):
            answer = api.get("/who?secret=hunter2", headers={"X-Request-ID": given} if given else {})
            told = answer.json()["headers"]["x-request-id"]
            assert answer.headers["X-Request-Id"] == told
            assert (told == given) == (given == "mine-1.2_3")
    (host,) = holders()
    lines = host.run("journalctl --no-pager --output=cat --unit=haproxy --lines=20").splitlines()
    (line,) = [json.loads(line) for line in lines if f'"{told}"' in line]
    assert (line["status"], line["method"], line["path"], line["backend"]) == (200, "GET", "/who", "api")
    assert not any("hunter2" in line for line in lines)


def test_security_headers_come_once() -> None:
    with client() as api:
        headers = api.get("/who").headers
    assert headers.get_list("X-Frame-Options") == ["DENY"]
    assert headers.get_list("Strict-Transport-Security") == ["max-age=31536000"]


def test_flowers_path_goes_to_flower() -> None:
    with client() as api:
        assert api.get("/flower").json()["port"] == api.get("/flower/tasks").json()["port"] == 5555
        assert api.get("/flowers").json()["port"] == 8000


# Limits


def test_a_body_that_is_too_large_reaches_nobody() -> None:
    with client() as api:
        answer = api.post("/tasks/enqueue", content=b"x" * 262145)
        assert answer.status_code == 413
        assert answer.json() == {"detail": "The body is larger than 262144 bytes."}
        assert api.post("/tasks/enqueue", content=b"x" * 262144).json()["length"] == 262144
    assert [(each["method"], each["path"], each["length"]) for host in HOSTS for each in seen(host)] == [
        ("POST", "/tasks/enqueue", 262144)
    ]


def test_one_address_gets_so_many_requests() -> None:
    """The flood comes from another address than the other tests; redirects count, and are quick."""
    address = ADDRESSES["balancer-1"]
    ask = f"curl -sk -i https://{address}/who"
    assert " 200" in HOSTS[1].run(ask).splitlines()[0]
    HOSTS[1].run(f"curl -s -o /dev/null 'http://{address}/who?[1-400]'")
    rejected = HOSTS[1].run(ask).lower()
    assert " 429" in rejected.splitlines()[0]
    assert "retry-after: 10" in rejected
    assert '{"detail":"there were more than 30 requests per second' in rejected
    with client(address) as api:
        assert api.get("/who").status_code == 200


def closed(connection: socket.socket) -> bool:
    """Tell whether the other side has closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_one_address_gets_so_many_connections() -> None:
    address = ADDRESSES["balancer-1"]
    opened: list[socket.socket] = []
    try:
        for _ in range(25):
            # One too many may be closed before it is open.
            with suppress(ConnectionResetError):
                opened.append(socket.create_connection((address, 443), 5))
        wait_for(lambda: len(opened) - sum(map(closed, opened)) == 20, "five connections too many closed", 5)
        with pytest.raises(httpx.TransportError), client(address) as api:
            api.get("/who")
        with client(ADDRESSES["balancer-2"]) as api:
            assert api.get("/who").status_code == 200
    finally:
        for connection in opened:
            connection.close()

    def answers() -> bool:
        try:
            with client(address) as api:
                return api.get("/who").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers, "the address let in again", 10)


@pytest.mark.parametrize("address", ADDRESSES.values())
def test_a_client_that_sends_its_headers_slowly_is_not_waited_for(address: str) -> None:
    with (
        socket.create_connection((address, 443), 5) as plain,
        trust().wrap_socket(plain, server_hostname=address) as secure,
    ):
        secure.settimeout(15)
        secure.sendall(b"GET /who HTTP/1.1\r\nHost: x\r\n")
        start = time.monotonic()
        assert secure.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert 8 < time.monotonic() - start < 12


# Whom it asks


def test_a_host_that_is_not_ready_gets_nothing_more_and_finishes_what_it_runs() -> None:
    assert set(servers()) == set(ADDRESSES)
    drained = HOSTS[0]
    answers: list[httpx.Response] = []

    def slow() -> None:
        with client() as api:
            answers.append(api.get("/slow?seconds=4"))

    threads = [threading.Thread(target=slow) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: any(str(request["path"]).startswith("/slow") for request in seen(drained)), "a request there", 3)
    with state(drained, "not-ready"):
        time.sleep(LEAVES)  # what is promised
        assert set(servers()) == {HOSTS[1].name}
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["server"] for answer in answers} == set(ADDRESSES)
        assert set(servers()) == {HOSTS[1].name}
    wait_for(lambda: up(holders()[0], drained.name), "the server in use again", LEAVES)
    assert set(servers()) == set(ADDRESSES)


def test_when_nobody_is_ready_they_are_asked_all_the_same() -> None:
    with state(HOSTS[0], "not-ready"), state(HOSTS[1], "not-ready"):
        time.sleep(LEAVES)
        assert set(servers()) == set(ADDRESSES)
        assert len(holders()) == 1


def test_requests_wait_while_all_servers_restart() -> None:
    """A changed setting restarts every API at once; systemd keeps their sockets open, like a stopped program's here."""
    signal = "systemctl kill --signal={} backend"
    answers: list[int] = []

    def ask() -> None:
        with client(timeout=20) as api:
            answers.append(api.post("/tasks/enqueue").status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for host in HOSTS:
        host.run(signal.format("STOP"))
    try:
        wait_for(lambda: not any(up(holders()[0], server) for server in ADDRESSES), "no server", 5)
        for thread in threads:
            thread.start()
        time.sleep(1)  # the longest that an answer of the balancer itself takes
        assert answers == []
    finally:
        for host in HOSTS:
            host.run(signal.format("CONT"))
    for thread in threads:
        thread.join()
    assert answers == [200] * 4


def test_when_nobody_is_there_the_balancer_says_so() -> None:
    for host in HOSTS:
        host.run("systemctl stop backend")
    try:
        wait_for(lambda: not any(up(holders()[0], server) for server in ADDRESSES), "no server", 5)
        with client() as api:
            answer = api.get("/who")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json() == {"detail": "No server is available at the moment; try again later."}
        assert len(holders()) == 1
    finally:
        for host in HOSTS:
            host.run("systemctl start backend")


def in_pieces() -> Iterator[bytes]:
    """A body that comes after its headers, in two parts."""
    for piece in (b"{", b"}"):
        time.sleep(0.05)
        yield piece


def test_nothing_is_sent_twice_that_is_not_safe() -> None:
    """One server reads requests, perhaps obeys, and closes the connection without an answer."""
    with state(HOSTS[0], "drop"), client() as api:
        gets = [api.get(f"/get/{number}").status_code for number in range(8)]
        keyed = {"Idempotency-Key": "k", "Content-Length": "2"}
        keys = [api.post(f"/keyed/{number}", headers=keyed, content=in_pieces()).status_code for number in range(8)]
        posts = [api.post(f"/bare/{number}").status_code for number in range(8)]
    assert gets == keys == [200] * 8
    assert set(posts) == {200, 502}
    times = Counter(str(request["path"]) for host in HOSTS for request in seen(host))
    assert all(times[f"/bare/{number}"] == 1 for number in range(8))
    assert any(times[f"/get/{number}"] == 2 for number in range(8))
    assert any(times[f"/keyed/{number}"] == 2 for number in range(8))


def test_what_was_never_sent_goes_to_another_server() -> None:
    """A POST too: the connection was refused."""
    HOSTS[0].run("systemctl stop backend")
    try:
        with client() as api:
            assert [api.post(f"/bare/{number}").status_code for number in range(8)] == [200] * 8
    finally:
        HOSTS[0].run("systemctl start backend")
    times = Counter(str(request["path"]) for host in HOSTS for request in seen(host))
    assert all(times[f"/bare/{number}"] == 1 for number in range(8))


def test_a_reload_cuts_nothing() -> None:
    (host,) = holders()
    answers: list[int] = []

    def ask(path: str) -> None:
        with client() as api:
            answers.append(api.get(path).status_code)

    slow = threading.Thread(target=ask, args=("/slow?seconds=3",))
    slow.start()
    wait_for(lambda: any(seen(host) for host in HOSTS), "the slow request", 3)
    host.run("systemctl reload haproxy")
    for _ in range(10):
        ask("/who")
    slow.join()
    assert answers == [200] * 11


def test_a_reload_ends_a_kept_connection_with_an_answer() -> None:
    (host,) = holders()
    with closing(http.client.HTTPSConnection(VIRTUAL_IP, timeout=10, context=trust())) as connection:

        def is_last() -> bool:
            connection.request("GET", "/who")
            with connection.getresponse() as answer:
                assert answer.status == 200
                answer.read()
            return answer.getheader("connection") == "close"

        assert not is_last()
        host.run("systemctl reload haproxy")
        wait_for(is_last, "the last answer", 5)


# Itself


def test_figures_and_statistics_are_private() -> None:
    for name, address in ADDRESSES.items():
        with pytest.raises(OSError, match=r"timed out|refused"):
            socket.create_connection((address, 8404), 1)
        host = Host(name)
        assert "haproxy_backend_active_servers" in host.run("curl -s http://127.0.0.1:8404/metrics")
        assert "Statistics Report" in host.run("curl -s http://127.0.0.1:8404/")
        assert 'name="action"' not in host.run("curl -s http://127.0.0.1:8404/")


def test_prometheus_asks_both_balancers() -> None:
    """What the alerts look at: servers, the certificate's end, and who has the virtual IP."""
    login = "sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K -"

    def hosts(expression: str) -> list[str]:
        query = f"{login} -G --data-urlencode 'query={expression}' http://127.0.0.1:9090/api/v1/query"
        return sorted(one["metric"]["host"] for one in json.loads(HOSTS[1].run(query))["data"]["result"])

    wait_for(lambda: hosts('up{job="balancer"} == 1') == list(ADDRESSES), "both balancers asked", 60)
    both = [*ADDRESSES, *ADDRESSES]
    wait_for(lambda: hosts('haproxy_server_status{proxy="api",state="UP"} == 1') == sorted(both), "all servers", 60)
    assert hosts('haproxy_backend_active_servers{proxy="api"} == 2') == list(ADDRESSES)
    ends = "balancer_certificate_not_after_seconds - time() > 390 * 24 * 3600"
    wait_for(lambda: hosts(ends) == list(ADDRESSES), "the certificates' ends", 60)
    assert hosts('node_systemd_unit_state{name="keepalived.service",state="active"} == 1') == list(ADDRESSES)
    seen_at = f'node_network_address_info{{address="{VIRTUAL_IP}"}}'
    wait_for(lambda: hosts(seen_at) == [holder.name for holder in holders()], "the virtual IP seen", 60)


@pytest.mark.parametrize(("unit", "most"), [("haproxy", 1.5), ("keepalived", 2.6)])
def test_the_units_are_closed(unit: str, most: float) -> None:
    for host in HOSTS:
        report = host.run(f"systemd-analyze security --no-pager {unit}").splitlines()[-1]
        assert float(report.split(":")[1].split()[0]) <= most


# There are no exporters here; molecule/monitoring_cluster has them.
PAGES = [page for page in runbook_pages()["balancers"] if page.stem != "BalancerCertificateExpires"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_runbook_looks_at_can_be_seen(page: Path) -> None:
    diagnose_by_page(page, HOSTS[0].name)


def test_haproxy_is_nobody_on_its_host() -> None:
    for host in HOSTS:
        assert set(host.run("ps -o user= -C haproxy").split()) == {"haproxy"}
        pid = host.run("systemctl show --value --property=MainPID haproxy")
        capabilities = host.run(f"grep -E '^Cap(Eff|Bnd)' /proc/{pid}/status")
        assert {line.split()[1] for line in capabilities.splitlines()} == {f"{1 << 10:016x}"}


def test_a_configuration_that_haproxy_rejects_changes_nothing() -> None:
    before = HOSTS[0].run("sha256sum /etc/haproxy/haproxy.cfg")
    wrong = json.dumps({"load_balancer_api_servers": [{"name": "api", "address": "10.213.2.1:99999"}]})
    run = subprocess.run(
        [
            *("ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", "--limit=balancer-1"),
            *(f"--extra-vars={wrong}", str(PROJECT / "playbooks/site/load_balancer.yml")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode != 0
    assert "invalid port" in run.stderr
    assert HOSTS[0].run("sha256sum /etc/haproxy/haproxy.cfg") == before
    assert HOSTS[0].run("systemctl is-active haproxy") == "active"


# A rolling release


def roll(step: str) -> str:
    """Run what a rolling release does with the API of the first host; return its output."""
    variables = json.dumps({"step": step, "app_drains_by_file": False, "app_ready_path": "/health/ready"})
    command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--extra-vars={variables}"]
    playbook = PROJECT / "molecule/load_balancer/drain.yml"
    run = subprocess.run([*command, str(playbook)], stdout=subprocess.PIPE, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_an_api_without_a_drain_file_is_drained_at_the_balancers() -> None:
    def slow(address: str) -> str:
        # Not by the virtual IP, which may move on a busy machine: each balancer waits for its own requests.
        with client(address, timeout=40) as api:
            answer = api.get("/who", params={"seconds": 20})
            assert answer.status_code == 200
            return str(answer.json()["server"])

    try:
        with ThreadPoolExecutor(4) as threads:
            begun = time.monotonic()
            answers = threads.map(slow, [*ADDRESSES.values()] * 2)
            roll("drain")
            # Not before what it was doing is done, unless that takes too long.
            assert time.monotonic() - begun > 10
            assert set(servers()) == {"balancer-2"}
            assert set(answers) == set(ADDRESSES)
        assert not any(up(host, "balancer-1") for host in HOSTS)
    finally:
        # The other tests need it.
        roll("undrain")
    assert set(servers()) == set(ADDRESSES)


# The virtual IP


@pytest.mark.parametrize("fault", ["stopped", "killed", "hung", "host dead"])
def test_the_virtual_ip_moves(fault: str) -> None:
    (holder,) = holders()
    (other,) = [host for host in HOSTS if host != holder]
    with stall() as longest:
        if fault == "stopped":
            holder.run("systemctl stop haproxy")
        elif fault == "killed":
            holder.run("systemctl mask --runtime haproxy && systemctl kill --kill-whom=all --signal=KILL haproxy")
        elif fault == "hung":
            holder.run("systemctl kill --kill-whom=all --signal=STOP haproxy")
        else:
            podman("kill", holder.name)
        wait_for(lambda: other in holders(), "the address on the other balancer", MOVES)
        time.sleep(2)  # it answers there
        print(f"{fault}: {longest():.1f} s without an answer")  # noqa: T201 - what docs/decisions/0020 quotes
        assert longest() < MOVES
        if fault == "stopped":
            holder.run("systemctl start haproxy")
        elif fault == "killed":
            holder.run("systemctl unmask --runtime haproxy && systemctl restart haproxy")
        elif fault == "hung":
            holder.run("systemctl kill --kill-whom=all --signal=CONT haproxy")
        else:
            podman("start", holder.name)
            wait_for(lambda: "active" in holder.run("systemctl is-active haproxy", check=False), "HAProxy", 60)
        wait_for(in_use, "both servers in use", 60)
        # It stays where it is: a move back would cut connections once more.
        time.sleep(4)
        assert holders() == [other]
        assert longest() < MOVES


def priority_fell(host: Host, since: float, *, back: bool = False) -> bool:
    """Tell whether keepalived has seen the last API go, or one come back."""
    log = host.run(f"journalctl --unit keepalived --since @{since:.0f}")
    return f"VRRP_Script(serving) {'succeeded' if back else 'failed'}" in log


def test_the_address_stays_when_the_last_api_comes_back() -> None:
    """The other balancer sees it first."""
    (holder,) = holders()
    (other,) = [host for host in HOSTS if host != holder]
    begin = time.time()
    for host in HOSTS:
        host.run("systemctl stop backend")
    wait_for(lambda: all(priority_fell(host, begin) for host in HOSTS), "lower priorities", 10)
    begin = time.time() + 1
    time.sleep(1)
    holder.run(ADMIN.format("set server api/balancer-1 state maint; set server api/balancer-2 state maint"))
    for host in HOSTS:
        host.run("systemctl start backend")
    wait_for(lambda: priority_fell(other, begin, back=True), "the other's priority", 10)
    time.sleep(1)  # two more of its checks
    holder.run(ADMIN.format("set server api/balancer-1 state ready; set server api/balancer-2 state ready"))
    wait_for(lambda: priority_fell(holder, begin, back=True), "the holder's priority", 10)
    assert holders() == [holder]
    assert "MASTER" not in other.run(f"journalctl --unit keepalived --since @{begin:.0f}")


def test_a_host_that_stands_still_for_a_moment_keeps_the_address() -> None:
    """As a virtual machine does when it is moved or saved: a move of the address would cut every connection."""
    (holder,) = holders()
    (other,) = [host for host in HOSTS if host != holder]
    signal = "systemctl kill --kill-whom=all --signal={} keepalived haproxy"
    holder.run(f"{signal.format('STOP')}; sleep 1.5; {signal.format('CONT')}")
    time.sleep(2)  # a move would be under way
    assert holders() == [holder]
    log = other.run("journalctl --unit=keepalived --since=-6s --no-pager")
    assert "MASTER" not in log


def test_a_crash_is_over_before_anybody_moves() -> None:
    (holder,) = holders()
    with stall() as longest:
        holder.run("systemctl kill --kill-whom=all --signal=KILL haproxy")
        time.sleep(6)
        assert longest() < MOVES
    assert len(holders()) == 1
