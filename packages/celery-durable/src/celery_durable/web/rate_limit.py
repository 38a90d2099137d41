"""Counting what clients do, in the memory of this process alone: no request costs Redis anything.

The library ``limits`` was tried: its memory storage starts a thread every 10 ms that walks through all clients. After
failed logins from 100,000 addresses, that took three quarters of a processor.
"""

import math
import re
import time
from collections import Counter

SECONDS = {"second": 1, "minute": 60, "hour": 3600}
# So many clients are told apart; a flood of more starts the count anew instead of filling the memory (about 20 MB).
MAX_CLIENTS = 100_000

RULE = "NUMBER/second, /minute or /hour, like 30/minute; or unlimited"


def is_rate(value: str) -> bool:
    """Tell whether this is a rate that RateLimiter takes."""
    return re.fullmatch(rf"[1-9]\d*/({'|'.join(SECONDS)})|unlimited", value) is not None


class RateLimiter:
    """Allows each client so many hits in each window; a window begins for all clients at once."""

    def __init__(self, rate: str) -> None:
        """Take a rate like "30/minute", or "unlimited"."""
        self.rate = rate
        amount, _, unit = rate.partition("/")
        self._amount = int(amount) if unit else math.inf
        self._window = SECONDS.get(unit, 1)
        self._window_ends = 0.0
        self._hits: Counter[str] = Counter()

    def hit(self, client: str) -> int:
        """Count a hit and return 0, or the seconds after which the client may try again."""
        now = time.monotonic()
        if now >= self._window_ends or len(self._hits) >= MAX_CLIENTS:
            self._hits.clear()
            self._window_ends = now + self._window
        self._hits[client] += 1
        return 0 if self._hits[client] <= self._amount else math.ceil(self._window_ends - now)
