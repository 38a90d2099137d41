"""Keeps secrets out of answers and logs: those of the options, and whatever stands like a password in a URL."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "**"  # as kombu does it
# Shorter ones may be ordinary words; the settings demand more where they can.
MIN_LENGTH = 8
URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")


# Of the process, and never fewer: a line of one application must not show a secret of another.
_hidden: list[str] = []


def hide(secrets: Iterable[str]) -> None:
    """Mask these from now on."""
    parts = {part for secret in secrets for part in _parts(secret)}
    # The longest first: one may be part of another.
    _hidden[:] = sorted(parts.union(_hidden), key=len, reverse=True)


def mask(text: str) -> str:
    """Return ``text`` with each secret replaced by two stars."""
    if "://" in text:
        text = URL_PASSWORD.sub(rf"\1{HIDDEN}@", text)
    for secret in _hidden:
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


def _parts(secret: str) -> set[str]:
    """Return what may show up of a secret: the value, each of its keys, the password of a URL or of user:password."""
    if "://" in secret:
        password = urlsplit(secret).password or ""
        found = [password, unquote(password)]
    else:
        found = [secret, *secret.replace(",", " ").split()]
        found += [part.partition(":")[2] for part in found]
    return {part for part in found if len(part) >= MIN_LENGTH}
