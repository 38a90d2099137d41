"""The ways from this host's services to Redis: name, TCP, TLS, user and password, answer, clock."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import hosttools
from hosttools import files, process
from hosttools.findings import CRITICAL, FILES, HOST, NETWORK, REACH, REDIS, RIGHTS, Finding
from hosttools.masking import quote
from hosttools.redis_client import Redis, RedisError, log_in, through_sentinels, trust

CLOCKS_DIFFER, SLOW_NETWORK = 2, 0.25  # seconds


def check(app: str, services: list[str], host: str, ports: list[int]) -> Iterator[Finding]:
    """Reach Redis from here as each service does: name, TCP, TLS, user and password, answer, clock."""
    told: dict[tuple[str, str, int, int], set[str]] = {}
    endpoints: dict[tuple[str, str], set[str]] = {}
    for service in services:
        for file in sorted(Path(f"/etc/{app}/secrets/{service}").glob("*")):
            value = files.read(file).strip()
            if value.startswith("sentinel://"):
                try:
                    value = through_sentinels(file)
                except ConnectionError as error:
                    told.setdefault((str(error), "BrokerUnreachable", REACH, CRITICAL), set()).add(f"{service}/")
            if re.match(r"rediss?://", value):
                endpoints.setdefault((value, service), set()).add(file.name)
    with ThreadPoolExecutor(16) as pool:
        asked = pool.map(lambda key: reach(key[0], key[1], host, ports), endpoints)
        for (value, service), found in zip(endpoints, asked, strict=True):
            for finding in found:
                key = (finding.what, finding.runbook, finding.layer, finding.severity)
                told.setdefault(key, set()).update(f"{service}/{name}" for name in endpoints[value, service])
    for (what, runbook, layer, severity), names in told.items():
        whose = sorted({name.partition("/")[0] for name in names})
        yield Finding(severity, f"{what} (for {', '.join(whose)})", runbook, layer)


def reach(secret: str, service: str, host: str, ports: list[int]) -> list[Finding]:
    """Reach Redis with one secret URL, and say where that ends."""
    page = "BrokerUnreachable"
    try:
        url = urlsplit(secret)
        name, port = str(url.hostname), url.port or 6379
    except ValueError:
        return [Finding(CRITICAL, f"a secret of {service} is no URL of Redis", page, FILES)]
    where = f"{name}:{port}"
    if host and (name != host.lower() or port not in ports or url.username != service):
        meant = f"{service}@{host}, ports {' and '.join(map(str, ports))}"
        wrong = f"a secret of {service} names {url.username}@{where}, the inventory {meant}"
        return [Finding(CRITICAL, wrong, "drift", FILES)]
    # Not by this process: it could not end the resolver's wait for servers that are silent.
    looked_up = process.run("getent", "ahosts", name)
    if not looked_up.output:
        servers = " and ".join(re.findall(r"^nameserver (\S+)", files.read("/etc/resolv.conf"), re.MULTILINE))
        silent = f"{servers} of /etc/resolv.conf did not answer within {hosttools.TIMEOUT:g} s"
        why = silent if looked_up.code == process.TIMED_OUT else ""
        why = why or f"look into /etc/hosts, /etc/nsswitch.conf and /etc/resolv.conf ({servers or 'no name server'})"
        return [Finding(CRITICAL, f"the name {name} is unknown here: {why}", page, NETWORK)]
    address = looked_up.output.split()[0]
    at = where if address == name else f"{where} ({address}{fixed(name, address)})"
    try:
        with socket.create_connection((address, port), hosttools.TIMEOUT) as plain:
            return talk(plain, url, at)
    except TimeoutError:
        way = re.search(r"(?:via \S+ )?dev \S+", process.run("ip", "route", "get", address).output)
        where = f" (they go {way[0]})" if way else ""
        return [Finding(CRITICAL, f"{at} does not answer: packets are dropped, or nobody is there{where}", page, REACH)]
    except OSError as error:
        return [Finding(CRITICAL, f"{at} cannot be reached: {error.strerror or error}", page, REACH)]


def fixed(name: str, address: str) -> str:
    """Say where a name's address comes from if that is a file of this host."""
    for line in files.read("/etc/hosts").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == [address] and name in words:
            return ", says /etc/hosts"
    return ""


def talk(plain: socket.socket, url: SplitResult, at: str) -> list[Finding]:
    """Speak with Redis over a connection."""
    page, speaking = "BrokerUnreachable", plain
    try:
        if url.scheme == "rediss":
            speaking = trust(url).wrap_socket(plain, server_hostname=url.hostname)
        connection = Redis(speaking)
        log_in(connection, url)
        took, sent = [], time.time()
        for _ in range(3):
            before = time.monotonic()
            connection.call("PING")
            took.append(time.monotonic() - before)
        found = []
        if min(took) > SLOW_NETWORK:
            found.append(Finding(CRITICAL, f"{at} is slow: an answer takes {min(took):.1f} s", page, NETWORK))
        if url.username in ("worker", "operator") and url.path == "/0":
            sent, answer = time.time(), connection.call("TIME")
            seconds = float(answer[0]) + float(answer[1]) / 1e6 if isinstance(answer, list) else sent
            ahead = (sent + time.time()) / 2 - seconds
            if abs(ahead) > CLOCKS_DIFFER:
                way = "ahead of" if ahead > 0 else "behind"
                found.append(Finding(CRITICAL, f"the clock is {abs(ahead):.0f} s {way} {at}'s", "ClockWrong", HOST))
        return found
    except RedisError as error:
        if "WRONGPASS" in str(error):
            what = f"{at} refuses the password of {url.username} that its secret file holds, or the user is off"
            return [Finding(CRITICAL, what, page, RIGHTS)]
        crowded = "max number of clients" in str(error) or "LOADING" in str(error)
        return [Finding(CRITICAL, f"{at} refuses: {quote(str(error))}", page, REDIS if crowded else RIGHTS)]
    except TimeoutError:
        what = f"{at} takes connections and does not answer within {hosttools.TIMEOUT:g} s"
        return [Finding(CRITICAL, what, page, REACH)]
    except (ssl.SSLError, ssl.CertificateError, FileNotFoundError) as error:
        return [Finding(CRITICAL, f"TLS with {at} fails: {quote(str(error))}", page, REACH)]
    except OSError as error:
        return [Finding(CRITICAL, f"{at} breaks off: {error.strerror or error}", page, REACH)]
