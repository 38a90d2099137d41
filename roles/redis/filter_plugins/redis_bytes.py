"""The filter redis_bytes: a memory size as Redis writes it, or a share of the host's memory, in bytes."""

from __future__ import annotations

import re
from collections.abc import Callable

from ansible.errors import AnsibleFilterError

# redis.conf: 1k is 1000 bytes, 1kb is 1024.
UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1024,
    "m": 1000**2,
    "mb": 1024**2,
    "g": 1000**3,
    "gb": 1024**3,
}


def redis_bytes(value: object, host_memory: int) -> int:
    match = re.fullmatch(r"(\d+)\s*(%|[a-z]*)", str(value).strip().lower())
    if match is None or match[2] not in {"%", *UNITS}:
        raise AnsibleFilterError(f"{value!r} is not a memory size such as 2147483648, 512mb, 2gb or 25%")
    number, unit = int(match[1]), match[2]
    if unit == "%":
        return host_memory * number // 100
    return number * UNITS[unit]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., int]]:
        return {"redis_bytes": redis_bytes}
