"""The parts of a host's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hosttools.findings import FILES, HOST, LATER, NETWORK, NOTE, REDIS, WARNING
from hosttools.state import contents, services, system
from hosttools.state.values import State

# Severity and layer of what differs in each part; of files the layer is CONTENT's; ground first.
PARTS: dict[str, tuple[Callable[[str, Any], State], int, int]] = {
    "mounts": (system.mounts, WARNING, HOST),
    "sysctls": (system.sysctls, WARNING, HOST),
    "network": (services.network, WARNING, NETWORK),
    "names": (services.names, WARNING, NETWORK),
    "redis": (services.redis, WARNING, REDIS),
    "files": (contents.all_files, WARNING, FILES),
    "release": (contents.release, WARNING, FILES),
    "packages": (contents.packages, WARNING, FILES),
    "manager": (system.manager, WARNING, FILES),
    "units": (system.units, WARNING, FILES),
    "processes": (system.processes, WARNING, FILES),
    "system packages": (contents.system_packages, NOTE, LATER),
    "prometheus": (services.prometheus, WARNING, LATER),
}
