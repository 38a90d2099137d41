"""Keeps secrets out of answers and logs: the settings' own, and whatever stands like a password in a URL."""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from app.settings import get_settings, split_keys

HIDDEN = "**"  # as kombu does it
# Shorter ones may be ordinary words; the settings demand more where they can.
MIN_LENGTH = 8
URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")


def mask(text: str) -> str:
    """Return ``text`` with each secret replaced by two stars."""
    if "://" in text:
        text = URL_PASSWORD.sub(rf"\1{HIDDEN}@", text)
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    return text


def mask_all(value: Any) -> Any:
    """Return a value as JSON knows them, with each text in it masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list | tuple):
        return [mask_all(element) for element in value]
    if isinstance(value, dict):
        return {mask_all(name): mask_all(element) for name, element in value.items()}
    return value


@lru_cache
def _known_secrets() -> list[str]:
    values = (value for _, value in get_settings() if isinstance(value, SecretStr))
    # The longest first: one may be part of another.
    return sorted({part for value in values for part in _parts(value)}, key=len, reverse=True)


def _parts(value: SecretStr) -> set[str]:
    """Return what may show up of a secret: the value, each of its keys, the password of a URL or of user:password."""
    whole = value.get_secret_value()
    if "://" in whole:
        password = urlsplit(whole).password or ""
        found = [password, unquote(password)]
    else:
        found = [whole, *split_keys(value)]
        found += [part.partition(":")[2] for part in found]
    return {part for part in found if len(part) >= MIN_LENGTH}
