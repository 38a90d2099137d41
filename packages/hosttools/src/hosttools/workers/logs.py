"""The last words of a worker."""

from __future__ import annotations

import contextlib
import json
import re

from hosttools import masking


def last_line(text: str) -> str:
    """Return the last line that is not blank, passwords in URLs masked; of a JSON log its message and exceptions."""
    line = masking.last_line(text)
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            # Of a printed chain, the lines that are not indented name each exception.
            raised = re.findall(r"^[\w.]+(?:: .*)?$", entry.get("exception", ""), re.MULTILINE)
            line = ": ".join([str(entry.get("message", line)).strip(), *([" -> ".join(raised)] if raised else [])])
    return masking.mask_urls(line)[:600]
