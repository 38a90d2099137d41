"""What the parts of a state are made of: bounded values, and digests instead of secrets."""

import hashlib
from collections.abc import Iterator

# So many entries of a part and characters of a value are recorded.
ENTRIES, LONGEST = 4000, 160
State = dict[str, str]


def digest(value: str | bytes) -> str:
    """Return what shows that a value is another one, and does not show the value."""
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def short(value: str) -> str:
    """Return a value, or what stands for one that is too long to be kept."""
    return value if len(value) <= LONGEST else f"{value[: LONGEST // 2]}... ({digest(value)})"


def pairs(told: str, between: str = "\n") -> Iterator[tuple[str, str]]:
    """Return the names and values of lines that are NAME=VALUE."""
    for line in told.strip().split(between):
        name, _, value = line.partition("=")
        if name:
            yield name, value
