#!/usr/bin/env python3
"""Which hop between a service and Redis is broken: prints causes as JSON, each with the rank of what it follows from.

Runs on the host as root, with the system's Python alone, and changes nothing. On Redis' host it looks at each instance
from within; on each host it goes every hop from the services there to Redis with their own URLs. With --end-script it
does nothing but kill the scripts that keep instances busy, and prints which of these do not answer then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

PATIENCE = 3  # seconds for each step
URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
# What others follow from has the lower rank.
RANKS = (
    "data",
    "sentinels",
    "unit",
    "busy",
    "hung",
    "loading",
    "maxclients",
    "listen",
    "foreign",
    "resolve",
    "firewall",
    "refused",
    "tls",
    "auth",
    "ping",
)


# What Redis says that cannot start with what is on its disk.
DATA = re.compile(
    r"append only file|AOF file .*(exist|open)|No space left|Permission denied|Read-only|RDB|Fatal error loading"
)


# What Redis answers, and the hop that it means.
ANSWERS = {
    "BUSY ": "busy",
    "max number": "maxclients",
    "LOADING": "loading",
    "WRONGPASS": "auth",
    "NOAUTH": "auth",
    "NOPERM": "auth",
}


@dataclass
class Cause:
    """A hop that is broken."""

    cause: str
    what: str
    subject: str  # the instance, or the service
    rank: int


def broken(cause: str, what: str, subject: str) -> Cause:
    """Return a cause with its rank."""
    return Cause(cause, what, subject, RANKS.index(cause))


def say(*command: str, **environment: str) -> str:
    """Return what a command says, errors included; nothing when it takes too long."""
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **environment},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def instance(host: str, name: str, port: str) -> Iterator[Cause]:
    """Look at one Redis from within its host."""
    unit = "redis-server" if name == "main" else f"redis-server@{name}"
    suffix = "" if name == "main" else f"-{name}"
    state = say("systemctl", "is-active", unit)
    config = Path(f"/etc/redis/redis{suffix}.conf")
    if not config.exists():
        yield broken("unit", f"{host}: {config} is not there", name)
        return
    if state != "active":
        log = say("journalctl", "--no-pager", "--output=cat", "--lines=20", f"--unit={unit}")
        # What somebody has stopped says farewell in its log; what cannot start warns ("#").
        warnings = [line.partition(" # ")[2] for line in log.splitlines()]
        data = next((line for line in reversed(warnings) if DATA.search(line)), "") if state != "inactive" else ""
        last = next((line for line in reversed(warnings) if line), "no warning")
        yield broken("data" if data else "unit", f"{host}: {unit} is {state}; its log has: {data or last}", name)
        return
    pid = say("systemctl", "show", "--property=MainPID", "--value", unit)
    if re.search(r"^State:\s+[Tt]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
        yield broken("hung", f"{host}: the process {pid} of {unit} is stopped (SIGSTOP)", name)
        return
    password = re.search(r"^requirepass (\S+)", config.read_text(), re.MULTILINE)
    client = ["redis-cli", "-s", f"/run/redis{suffix}/redis-server.sock", "--no-auth-warning"]
    answer = say(*client, "INFO", REDISCLI_AUTH=password[1] if password else "")
    if answer.startswith("LOADING") or "\nloading:1" in answer:
        yield broken("loading", f"{host}: {unit} is loading its data", name)
    elif answer.startswith("BUSY "):
        yield broken("busy", f"{host}: {unit} is busy with a script, and refuses everything else", name)
    elif "max number of clients" in answer:
        peers = say("ss", "--no-header", "--tcp", "--numeric", f"( sport = :{port} )")
        yield broken(
            "maxclients", f"{host}: {unit} has as many clients as it takes ({peers.count(':' + port)} over TCP)", name
        )
    elif "redis_version" not in answer:
        yield broken(
            "hung",
            f"{host}: {unit} runs and does not answer on its socket: {answer.splitlines()[:1] or 'nothing'}",
            name,
        )
    elif not say("ss", "--no-header", "--listening", "--tcp", f"( sport = :{port} )"):
        yield broken("listen", f"{host}: {unit} does not listen on port {port}", name)
    yield from foreign(host, name, port)


def foreign(host: str, name: str, port: str) -> Iterator[Cause]:
    """Look for rules of others that drop packets for this port; ours are mended by the firewall role."""
    for line in say("nft", "list", "tables").splitlines():
        words = line.split()
        rules = say("nft", "--numeric", "list", "table", *words[1:]) if words[1:] != ["inet", "platform"] else ""
        if re.search(rf"dport [^\n]*\b{port}\b[^\n]*(drop|reject)", rules):
            table = " ".join(words[1:])
            yield broken("foreign", f"{host}: the nft table {table}, which is not ours, drops port {port}", name)


def service(host: str, name: str, secrets: Path) -> Iterator[Cause]:
    """Go all hops from a service to its Redis; the first that is broken ends the way."""
    seen = set()
    for file in URLS:
        secret = (secrets / file).read_text().strip() if (secrets / file).exists() else ""
        if secret.startswith("sentinel://") and not (secret := primary(secrets, file)):
            what = f"{host}: {name} -> sentinels: none of those in its {file} names a primary"
            yield broken("sentinels", what, name)
            return
        url = urlsplit(secret)
        if not where(url):
            yield broken("auth", f"{host}: {name} has no {file}, or one that names no port of Redis", name)
        elif url.port not in seen:
            seen.add(url.port)
            cause, what = hops(url)
            if cause:
                yield broken(cause, f"{host}: {name} -> {url.hostname}:{url.port}: {what}", name)


def primary(secrets: Path, file: str) -> str:
    """Return the URL of the server that the sentinels of a secret name as the primary; nothing when none does."""
    settings = (secrets.parents[1] / "backend.env").read_text()
    part = "BROKER" if file == "CELERY_BROKER_URL" else "RESULTS"
    name = dict(re.findall(r"^DURABLE_(\w+)_PRIMARY='(.*)'", settings, re.MULTILINE))[part]
    for url in map(urlsplit, (secrets / file).read_text().strip().split(";")):
        scheme, options = ("rediss", f"?{url.query}") if url.query else ("redis", "")
        try:
            with socket.create_connection((url.hostname or "", url.port or 0), timeout=PATIENCE) as connection:
                speaking = encrypted(connection, url) if url.query else connection
                call(speaking, "AUTH", (secrets / "SENTINEL_PASSWORD").read_text().strip())
                answer = words(speaking, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        except OSError:
            continue
        if len(answer) == 2:
            login = url.netloc.rpartition("@")[0]
            return f"{scheme}://{login}@{answer[0]}:{answer[1]}{url.path}{options}"
    return ""


def encrypted(connection: socket.socket, url: SplitResult) -> socket.socket:
    """Return the connection with TLS, the server verified as its URL says."""
    context = ssl.create_default_context(cafile=parse_qs(url.query)["ssl_ca_certs"][0])
    return context.wrap_socket(connection, server_hostname=url.hostname)


def where(url: SplitResult) -> bool:
    """Tell whether a URL names a host and a port."""
    try:
        return bool(url.hostname and url.port)
    except ValueError:
        return False


def hops(url: SplitResult) -> tuple[str, str]:
    """Return the first broken hop on the way to a URL and what is wrong with it, nothing when it answers PING."""
    try:
        address = str(socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        return "resolve", f"the name has no address ({error})"
    try:
        with socket.create_connection((address, url.port or 0), timeout=PATIENCE) as connection:
            return talk(connection, url)
    except TimeoutError:
        return "firewall", f"packets to {address} are dropped: the firewall there, or the way"
    except ConnectionRefusedError:
        return "refused", f"{address} refuses the connection: nothing listens"
    except OSError as error:
        return "firewall", f"{address} is not reached ({error})"


def talk(connection: socket.socket, url: SplitResult) -> tuple[str, str]:
    """Return what is broken above TCP, as ``hops`` does."""
    try:
        if url.scheme == "rediss":
            connection = encrypted(connection, url)
        login = call(connection, "AUTH", url.username or "default", unquote(url.password or ""))
        answer = call(connection, "PING") if login == "+OK" else login
    except (ssl.SSLError, FileNotFoundError) as error:  # the authority's certificate is not there
        return "tls", f"TLS: {error}"
    except TimeoutError:
        return "ping", "it takes the connection and does not answer"
    except OSError as error:
        return "ping", f"it ends the connection ({error})"
    if answer == "+PONG":
        return "", ""
    known = (cause for word, cause in ANSWERS.items() if word in answer)
    return next(known, "ping"), answer.lstrip("-") or "it ends the connection"


def call(connection: socket.socket, *command: str) -> str:
    """Send a command and return the first line of its answer."""
    return lines(connection, *command)[0]


def words(connection: socket.socket, *command: str) -> list[str]:
    """Send a command and return the words of its answer, a short list of them."""
    return lines(connection, *command)[2::2]


def lines(connection: socket.socket, *command: str) -> list[str]:
    """Send a command and return its answer, which comes in one piece."""
    parts = [word.encode() for word in command]
    connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
    return connection.recv(4096).decode(errors="replace").removesuffix("\r\n").split("\r\n")


def end_script(name: str) -> bool:
    """Kill the script that keeps an instance busy; return whether it answers then. One that has written goes on."""
    suffix = "" if name == "main" else f"-{name}"
    password = re.search(r"^requirepass (\S+)", Path(f"/etc/redis/redis{suffix}.conf").read_text(), re.MULTILINE)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(f"/run/redis{suffix}/redis-server.sock")
            call(connection, "AUTH", password[1] if password else "")
            call(connection, "SCRIPT", "KILL")
            # A function is ended by a command of its own.
            call(connection, "FUNCTION", "KILL")
            return call(connection, "PING") == "+PONG"
    except OSError:
        return False


def main() -> None:
    """Look at the instances that the arguments name, and at every service that has secrets here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's name in the inventory")
    parser.add_argument("--prefix", required=True, help="the installation's name")
    parser.add_argument("--redis", action="append", default=[], metavar="INSTANCE=PORT")
    parser.add_argument("--end-script", action="append", default=[], metavar="INSTANCE")
    arguments = parser.parse_args()
    if arguments.end_script:
        print(json.dumps([name for name in arguments.end_script if not end_script(name)]))
        return
    causes: list[Cause] = []
    for pair in arguments.redis:
        causes += instance(arguments.host, *pair.split("=", 1))
    for secrets in sorted(Path(f"/etc/{arguments.prefix}/secrets").glob("*")):
        causes += service(arguments.host, secrets.name, secrets)
    print(json.dumps([asdict(cause) for cause in causes]))


if __name__ == "__main__":
    main()
