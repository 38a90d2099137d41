"""Where a Redis is, as a URL says it: one server, or the sentinels that know which server is the primary now."""

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

REDIS_PORT, SENTINEL_PORT = 6379, 26379
RULE = (
    "must look like redis://[user:password@]host[:port][/database number] (for TLS rediss://...?ssl_ca_certs=FILE; the "
    "certificate is always verified), or name sentinels: sentinel://[user:password@]host[:port][/database number]"
    "[?ssl_ca_certs=FILE], several separated by semicolons and alike but for host and port"
)


@dataclass(frozen=True)
class RedisAddress:
    """A parsed URL."""

    servers: tuple[tuple[str, int], ...]  # of sentinels when these are
    sentinel: bool
    username: str | None
    password: str | None
    database: int
    tls: bool
    ca_file: str | None  # verifies certificates; None: the system's authorities do

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        """Take a URL apart.

        Raises:
            ValueError: it has not the form of RULE, which the message is.
        """
        try:
            parts = [urlsplit(part) for part in url.split(";")]
            first = parts[0]
            servers = tuple((part.hostname or "", _port(part)) for part in parts)
            database = first.path.removeprefix("/")
            valid = (
                all(host and port for host, port in servers)
                and (first.scheme == "sentinel" or (first.scheme in {"redis", "rediss"} and len(parts) == 1))
                and len({_without_host(part) for part in parts}) == 1
                and (database == "" or database.isdecimal())
                and _verifies(first)
            )
        except ValueError:  # a port that is no number
            valid = False
        if not valid:
            raise ValueError(RULE)
        return cls(
            servers,
            first.scheme == "sentinel",
            unquote(first.username) if first.username else None,
            unquote(first.password) if first.password else None,
            int(database or 0),
            first.scheme == "rediss" or _ca_file(first) is not None,
            _ca_file(first),
        )


def _port(url: SplitResult) -> int:
    default = SENTINEL_PORT if url.scheme == "sentinel" else REDIS_PORT
    return default if url.port is None else url.port


def _without_host(url: SplitResult) -> tuple[str, str, str, str]:
    return url.scheme, url.netloc.rpartition("@")[0], url.path, url.query


def _verifies(url: SplitResult) -> bool:
    options = dict(parse_qsl(url.query))
    if url.scheme == "redis":  # the clients differ in what they make of options for TLS here
        return not any(name.startswith("ssl_") for name in options)
    return (
        options.get("ssl_cert_reqs", "required") == "required"
        and options.get("ssl_check_hostname", "true").lower() == "true"
    )


def _ca_file(url: SplitResult) -> str | None:
    return dict(parse_qsl(url.query)).get("ssl_ca_certs")
