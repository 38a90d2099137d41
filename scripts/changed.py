#!/usr/bin/env python3
"""Print what a change can break: scripts/changed.py BASE prints `integration` and Molecule scenarios, one a line.

Linters and quick tests are not named: they always run. A file that is in no row can break everything.
"""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTEGRATION = "integration"
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
# Pattern of files (a star matches slashes, too) -> what runs. A file is judged by the first row that matches it.
ROWS: list[tuple[str, list[str]]] = [
    ("docs/*", []),
    ("*.md", []),
    ("deploy/*", [INTEGRATION]),
    ("inventories/example-app/*", [INTEGRATION, "foreign"]),
    ("inventories/*", []),
    ("examples/*", [INTEGRATION, "foreign"]),
    ("roles/hardening/*", ["default", "hardening"]),
    ("roles/firewall/*", ["default", "hardening", "logs", "load_balancer"]),
    ("roles/logs/*", ["default", "logs"]),
    ("roles/redis/*", ["default", "redis", "redis_tls", "chaos", "backup"]),
    ("roles/redis_sentinel/*", ["redis_tls"]),
    ("roles/app_release/*", [INTEGRATION, "default", "app_release", "deploy", "foreign", "rotation"]),
    ("roles/celery_worker/*", ["default", "celery_worker", "chaos", "foreign"]),
    ("roles/api/*", ["default", "api", "deploy", "foreign", "load_balancer"]),
    ("roles/console/*", ["foreign"]),
    ("roles/flower/*", ["default", "flower", "foreign"]),
    ("roles/load_balancer/*", ["load_balancer"]),
    ("roles/exporters/*", ["monitoring"]),
    ("roles/monitoring/*", ["monitoring"]),
    ("roles/compose/*", [INTEGRATION]),
    ("roles/kubernetes/*", [INTEGRATION]),
    ("playbooks/runbooks/*", ["monitoring"]),
    ("playbooks/*backup*", ["backup"]),
    ("playbooks/*restore*", ["backup"]),
    ("playbooks/*secrets*", ["rotation"]),
    ("playbooks/*roll*", ["deploy"]),
    ("playbooks/ops/deploy.yml", ["deploy"]),
    ("playbooks/containers/*", [INTEGRATION]),
    ("packages/*/tests/*", [INTEGRATION]),
    ("packages/*", [INTEGRATION, "default", "app_release", "celery_worker", "api", "flower", "chaos", "foreign"]),
    ("app/*", [INTEGRATION, "default", "app_release", "celery_worker", "api", "flower", "chaos"]),
    ("tests/chaos/*", ["chaos"]),
    ("tests/*", [INTEGRATION]),
    *((f"molecule/{name}/*", [name]) for name in SCENARIOS),
]


def affected(files: list[str]) -> list[str]:
    """Return what must run for these changed files: `integration` and names of scenarios, sorted."""
    wanted: set[str] = set()
    for file in files:
        wanted |= next(
            (set(targets) for pattern, targets in ROWS if fnmatchcase(file, pattern)), {INTEGRATION, *SCENARIOS}
        )
    return sorted(wanted)


def changed_files(base: str) -> list[str]:
    """Return the files that differ from where this branch left ``base``, those that git does not know yet included."""

    def git(*arguments: str) -> list[str]:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603 - git

    (fork,) = git("merge-base", base, "HEAD")
    return git("diff", "--name-only", "--no-renames", fork) + git("ls-files", "--others", "--exclude-standard")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(*affected(changed_files(sys.argv[1])), sep="\n")  # noqa: T201 - its answer
