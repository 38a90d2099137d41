"""Certificates of this host: how long they are valid."""

from hosttools import process
from hosttools.findings import CRITICAL, WARNING

DAY = 24 * 3600
WARN_DAYS, CRITICAL_DAYS = 20, 3  # as the alerts have them


def is_valid_for(file: str, seconds: int) -> bool:
    """Tell whether a certificate is still valid in so many seconds."""
    return process.run("openssl", "x509", "-in", file, "-noout", "-checkend", str(seconds)).ok


def end(file: str) -> tuple[int, str]:
    """Return how severe it is that a certificate ends, and when it does; 0 where it is valid for long."""
    for days, severity in ((0, CRITICAL), (CRITICAL_DAYS, CRITICAL), (WARN_DAYS, WARNING)):
        if not is_valid_for(file, days * DAY):
            return severity, f"ends within {days} days" if days else "has ended, or cannot be read"
    return 0, ""
