"""What Flower's gate needs to know, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Self

from celery_durable.options import OptionError, Variables, read
from celery_durable.web.clients import Network
from celery_durable.web.rate_limit import RULE, is_rate

LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value for each variable."""

    basic_auth: tuple[str, ...] = field(default=(), repr=False)  # user:password; none: Flower is open
    read_only: bool = True
    failed_login_limit: str = "30/minute"  # of one address
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For counts, beyond this host's own
    log_level: str = "info"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the variables; an empty one counts as absent.

        Raises:
            SystemExit: a value is wrong; the message is one sentence that holds no secret.
        """
        try:
            return cls(**read(VARIABLES, environ))
        except OptionError as error:
            raise SystemExit(str(error)) from None


def _logins(value: str) -> tuple[str, ...]:
    logins = tuple(value.split())
    if not all(user and password for user, _, password in (login.partition(":") for login in logins)):
        raise ValueError
    return logins


def _boolean(value: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]


def _limit(value: str) -> str:
    if not is_rate(value):
        raise ValueError
    return value


def _proxies(value: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, value.replace(",", " ").split()))


def _level(value: str) -> str:
    return LEVELS[LEVELS.index(value.lower())]


VARIABLES: Variables = {
    "FLOWER_BASIC_AUTH": (
        "basic_auth",
        _logins,
        "user:password, neither of them empty; several are separated by white space",
    ),
    "FLOWER_READ_ONLY": ("read_only", _boolean, "true or false"),
    "FLOWER_FAILED_LOGIN_LIMIT": ("failed_login_limit", _limit, RULE),
    "FLOWER_TRUSTED_PROXIES": ("trusted_proxies", _proxies, "IP addresses and networks like 10.0.0.5 or 10.0.0.0/24"),
    "FLOWER_LOG_LEVEL": ("log_level", _level, f"one of {', '.join(LEVELS)}"),
}
