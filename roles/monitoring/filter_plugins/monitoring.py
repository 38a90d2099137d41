"""Filter of the monitoring role: a password as Prometheus and Alertmanager know it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import bcrypt

# Each step doubles the time of a check; Prometheus remembers passwords that it has checked. OpenBSD's default is 10.
ROUNDS = 10
SALT_BYTES = 16
STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BCRYPT = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def bcrypt_hash(password: str, name: str) -> str:
    """Return a bcrypt hash that is the same for the same password and name, so that a second run changes nothing."""
    digest = hashlib.sha256(f"{name}:{password}".encode()).digest()[:SALT_BYTES]
    salt = base64.b64encode(digest).decode().rstrip("=").translate(str.maketrans(STANDARD, BCRYPT))
    return bcrypt.hashpw(password.encode(), f"$2b${ROUNDS}${salt}".encode()).decode()


class FilterModule:
    """The filter under its name in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Tell Ansible about it."""
        return {"bcrypt_hash": bcrypt_hash}
