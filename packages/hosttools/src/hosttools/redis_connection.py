"""Which hop between a service and Redis is broken: prints causes as JSON, each with the rank of what it follows from.

Runs on the host as root, and changes nothing. On Redis' host it looks at each instance from within; on each host it
goes every hop from the services there to Redis with their own URLs. With --end-script it does nothing but kill the
scripts that keep instances busy, and prints which of these do not answer then.
"""

import argparse
import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import hosttools
from hosttools import process, procfs, systemd
from hosttools.findings import Cause, show
from hosttools.redis_client import Instance, Redis, RedisError, log_in, through_sentinels, trust

URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
# What others follow from has the lower rank.
RANKS = "data sentinels unit busy hung loading maxclients listen foreign resolve firewall refused tls auth ping"
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


def broken(cause: str, what: str, subject: str) -> Cause:
    """Return a cause with its rank."""
    return Cause(cause, what, subject, RANKS.split().index(cause))


def instance(host: str, name: str, port: str) -> Iterator[Cause]:
    """Look at one Redis from within its host."""
    known = Instance(name)
    unit = known.unit
    if not known.config.exists():
        yield broken("unit", f"{host}: {known.config} is not there", name)
        return
    state = systemd.active(unit)
    if state != "active":
        log = systemd.journal("--lines=20", f"--unit={unit}")
        # What somebody has stopped says farewell in its log; what cannot start warns ("#").
        warnings = [line.partition(" # ")[2] for line in log.splitlines()]
        data = next((line for line in reversed(warnings) if DATA.search(line)), "") if state != "inactive" else ""
        last = next((line for line in reversed(warnings) if line), "no warning")
        yield broken("data" if data else "unit", f"{host}: {unit} is {state}; its log has: {data or last}", name)
        return
    pid = systemd.properties(unit, "MainPID").get("MainPID", "")
    if procfs.is_halted(pid):
        yield broken("hung", f"{host}: the process {pid} of {unit} is stopped (SIGSTOP)", name)
        return
    try:
        with known.connect() as redis:
            answer = str(redis.call("INFO"))
    except (OSError, RedisError) as error:
        answer = str(error)
    if answer.startswith("LOADING") or "\nloading:1" in answer:
        yield broken("loading", f"{host}: {unit} is loading its data", name)
    elif answer.startswith("BUSY "):
        yield broken("busy", f"{host}: {unit} is busy with a script, and refuses everything else", name)
    elif "max number of clients" in answer:
        peers = process.run("ss", "--no-header", "--tcp", "--numeric", f"( sport = :{port} )").output
        what = f"{host}: {unit} has as many clients as it takes ({peers.count(':' + port)} over TCP)"
        yield broken("maxclients", what, name)
    elif "redis_version" not in answer:
        what = f"{host}: {unit} runs and does not answer on its socket: {answer.splitlines()[:1] or 'nothing'}"
        yield broken("hung", what, name)
    elif not process.run("ss", "--no-header", "--listening", "--tcp", f"( sport = :{port} )").output:
        yield broken("listen", f"{host}: {unit} does not listen on port {port}", name)
    yield from foreign(host, name, port)


def foreign(host: str, name: str, port: str) -> Iterator[Cause]:
    """Look for rules of others that drop packets for this port; ours are repaired by the firewall role."""
    for line in process.run("nft", "list", "tables").output.splitlines():
        table = line.removeprefix("table ").strip()
        rules = "" if table == "inet platform" else process.run("nft", "-n", "list", "table", *table.split()).output
        if re.search(rf"dport [^\n]*\b{port}\b[^\n]*(drop|reject)", rules):
            yield broken("foreign", f"{host}: the nft table {table}, which is not ours, drops port {port}", name)


def service(host: str, name: str, secrets: Path) -> Iterator[Cause]:
    """Go all hops from a service to its Redis; the first that is broken ends the way."""
    seen = set()
    for file in URLS:
        secret = (secrets / file).read_text().strip() if (secrets / file).exists() else ""
        if secret.startswith("sentinel://"):
            try:
                secret = through_sentinels(secrets / file)
            except ConnectionError:
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
        with socket.create_connection((address, url.port or 0), timeout=hosttools.TIMEOUT) as connection:
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
            connection = trust(url).wrap_socket(connection, server_hostname=url.hostname)
        redis = Redis(connection)
        log_in(redis, url)
        redis.call("PING")
    except RedisError as error:
        return next((cause for word, cause in ANSWERS.items() if word in str(error)), "ping"), str(error)
    except ssl.SSLError as error:
        return "tls", f"TLS: {error}"
    except TimeoutError:
        return "ping", "it takes the connection and does not answer"
    except OSError as error:
        return "ping", f"it ends the connection ({error})"
    return "", ""


def end_script(name: str) -> bool:
    """Kill the script that keeps an instance busy; return whether it answers then. One that has written goes on."""
    try:
        with Instance(name).connect() as redis:
            # A function is ended by a command of its own.
            for kind in ("SCRIPT", "FUNCTION"):
                with contextlib.suppress(RedisError):
                    redis.call(kind, "KILL")
            return bool(redis.call("PING") == "PONG")
    except (OSError, RedisError):
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
    show(causes)
