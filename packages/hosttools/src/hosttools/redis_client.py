"""Redis, spoken over a socket: passwords stay out of every process list."""

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import hosttools
from hosttools import files

LONGEST = 16 * 1024**2  # bytes of one part of an answer: the redis user may have put anything in its socket's place
DATA = Path("/var/lib/redis")


class RedisError(Exception):
    """What Redis says when it refuses a command."""


class Redis:
    """A connection."""

    def __init__(self, connected: socket.socket, errors: str = "replace") -> None:
        """Take a connected socket; ``errors`` says what becomes of bytes that are no text."""
        self._socket, self._stream, self._errors = connected, connected.makefile("rwb"), errors

    def __enter__(self) -> Self:
        """Stay open for a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, whatever is still to be sent."""
        with contextlib.suppress(OSError):
            self._stream.close()
        self._socket.close()

    def call(self, *words: str) -> Any:
        """Return the answer to one command: text, a number, None or a list of them.

        Raises:
            OSError: it does not answer.
            RedisError: it refuses.
        """
        parts = [word.encode(errors="surrogateescape") for word in words]
        self._stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        with contextlib.suppress(BrokenPipeError):  # it may have said why before it closed
            self._stream.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._stream.readline(LONGEST).rstrip(b"\r\n").decode(errors=self._errors)
        if not line:
            raise ConnectionResetError("Redis closed the connection")
        kind, rest = line[0], line[1:]
        if kind == "-":
            raise RedisError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$":
            if int(rest) > LONGEST:
                raise ConnectionError("the answer is too long")
            return None if rest == "-1" else self._stream.read(int(rest) + 2)[:-2].decode(errors=self._errors)
        if kind == "*":  # -1: nothing has come in time
            return None if rest == "-1" else [self._answer() for _ in range(int(rest))]
        return rest

    def info(self, section: str = "everything") -> dict[str, str]:
        """Return what INFO says."""
        return dict(line.split(":", 1) for line in self.call("INFO", section).splitlines() if ":" in line)


class Instance:
    """Where an instance has what, as roles/redis sets it up."""

    def __init__(self, name: str) -> None:
        """Read its configuration, as root alone can."""
        self.name = name
        self.suffix = "" if name == "main" else f"-{name}"
        self.unit = "redis-server" if name == "main" else f"redis-server@{name}"
        self.config = Path(f"/etc/redis/redis{self.suffix}.conf")
        self.socket = Path(f"/run/redis{self.suffix}/redis-server.sock")
        self.data = DATA if name == "main" else DATA / name
        self.text = files.read(self.config)

    def setting(self, option: str) -> str:
        """Return an option of its configuration, nothing if it has none."""
        return setting(self.text, option)

    def connect(self, timeout: float | None = None, errors: str = "replace") -> Redis:
        """Connect as its administrator.

        Raises:
            OSError: nobody answers.
            RedisError: the login is refused.
        """
        redis = local(self.socket, timeout, errors)
        if password := self.setting("requirepass"):
            redis.call("AUTH", password)
        return redis


def printable(key: str) -> str:
    """Return a key that was read with ``surrogateescape`` as it may be printed."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")


def setting(config: str, option: str) -> str:
    """Return an option of a configuration of Redis or Sentinel, nothing if it has none."""
    found = re.search(rf"^{option} \"?([^\s\"]+)", config, re.MULTILINE)
    return found[1] if found else ""


def local(path: Path | str, timeout: float | None = None, errors: str = "replace") -> Redis:
    """Connect to a socket of this host."""
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(hosttools.TIMEOUT if timeout is None else timeout)
    connected.connect(os.fspath(path))
    return Redis(connected, errors)


@contextlib.contextmanager
def opened(url: SplitResult) -> Iterator[socket.socket]:
    """Connect to the Redis of a URL."""
    with socket.create_connection((str(url.hostname), url.port or 6379), hosttools.TIMEOUT) as plain:
        if url.scheme != "rediss":
            yield plain
            return
        with trust(url).wrap_socket(plain, server_hostname=url.hostname) as speaking:
            yield speaking


def trust(url: SplitResult) -> ssl.SSLContext:
    """Return what a server is verified with, as its URL says."""
    authority = parse_qs(url.query).get("ssl_ca_certs", [""])[0]
    if authority and "BEGIN CERTIFICATE" not in files.read(authority):
        raise ssl.SSLError(f"{authority} is missing or holds no certificate")
    return ssl.create_default_context(cafile=authority)


def log_in(redis: Redis, url: SplitResult) -> None:
    """Log in as the user of a URL."""
    redis.call("AUTH", unquote(url.username or "") or "default", unquote(url.password or ""))


def through_sentinels(secret: Path) -> str:
    """Return the URL of the server that the sentinels of a secret, ETC/secrets/SERVICE/NAME, name as the primary.

    Raises:
        ConnectionError: none of them names one.
    """
    part = "BROKER" if secret.name == "CELERY_BROKER_URL" else "RESULTS"
    name = files.settings(secret.parents[2] / "backend.env")[f"DURABLE_{part}_PRIMARY"]
    password = files.read(secret.parent / "SENTINEL_PASSWORD").strip()
    asked = []
    for url in map(urlsplit, files.read(secret).strip().split(";")):
        authority = parse_qs(url.query).get("ssl_ca_certs", [""])[0]
        scheme, options = ("rediss", f"?ssl_ca_certs={authority}") if authority else ("redis", "")
        # As redis_urls() says it: only the broker is asked more in database 0.
        database = "" if secret.name == "REDIS_URL" else url.path
        asked.append(f"{url.hostname}:{url.port}")
        with contextlib.suppress(OSError, RedisError), opened(url._replace(scheme=scheme)) as stream:
            redis = Redis(stream)
            redis.call("AUTH", password)
            found = redis.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            if isinstance(found, list):
                return f"{scheme}://{url.netloc.rpartition('@')[0]}@{found[0]}:{found[1]}{database}{options}"
    raise ConnectionError(f"none of the sentinels {', '.join(asked)} names a primary to this host")
