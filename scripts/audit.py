#!/usr/bin/env python3
"""Look for known vulnerabilities in locked packages: scripts/audit.py FILE...

Ends with 0 when none is known, 1 when there is one, 2 when not every package could be looked up. AUDIT_OSV_URL names
another service that answers like OSV's /v1/query, AUDIT_TIMEOUT the seconds to wait for an answer.
"""

import json
import os
import subprocess
import sys
from typing import Any

FOUND, UNKNOWN = 1, 2
# Id of a vulnerability that does not concern us: the reason, and when to look again.
IGNORED: dict[str, str] = {}


def audit(file: str) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of each package, and its last words when it failed."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", file, "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", os.environ.get("AUDIT_TIMEOUT", "15")]
    if url := os.environ.get("AUDIT_OSV_URL"):
        command += ["--vulnerability-service", "osv", "--osv-url", url]
    command += [f"--ignore-vuln={identifier}" for identifier in IGNORED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    try:
        return json.loads(ended.stdout)["dependencies"], ""
    except ValueError:
        return [], (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1][:300]


def main(files: list[str]) -> int:
    """Print one line for each vulnerability and each file, and return the exit code."""
    lines, found, unknown = [], False, False
    for name in files:
        packages, problem = audit(name)
        for package in packages:
            for vulnerability in package.get("vulns", []):
                found = True
                fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
                lines.append(
                    f"{name}: {package['name']} {package['version']} has {vulnerability['id']}, fixed in {fixed}."
                )
        skipped = sum("skip_reason" in package for package in packages)
        unknown = unknown or not packages or skipped > 0
        if not packages:
            lines.append(f"{name} could not be audited: no service for vulnerabilities can be reached. ({problem})")
        elif skipped:
            lines.append(
                f"{name} could not be audited: the service knows nothing of {skipped} of {len(packages)} packages."
            )
        else:
            lines.append(f"{name}: {len(packages)} packages looked up.")
    print("\n".join(lines))  # noqa: T201 - its answer
    return FOUND if found else UNKNOWN if unknown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
