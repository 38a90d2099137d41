"""The hosts of a scenario, as drills and faults name and reach them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from conftest import PROJECT, SCENARIO

LIBRARY = Path(__file__).with_name("drill.sh").read_text()
PLATFORMS = [item["name"] for item in yaml.safe_load((SCENARIO / "molecule.yml").read_text())["platforms"]]
# Names for hosts that play a part for a time, each with the command that succeeds on such a host.
PARTS = {"primary": "is_primary", "replica": "is_replica"}


def bash(host: str, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands as root, behind drill.sh; on the controller, in the repository, what no host can do by itself."""
    inside = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", host]
    return subprocess.run(
        [*(inside if host != "controller" else []), "bash", "-e"],
        cwd=PROJECT,
        input=f"{LIBRARY}\n{commands}",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def present_hosts() -> dict[str, str]:
    """Return all names of hosts; the same host has several while it plays a part."""
    parts = {part: host for part, command in PARTS.items() for host in PLATFORMS if bash(host, command).returncode == 0}
    return {name: name for name in [*PLATFORMS, "controller"]} | parts
