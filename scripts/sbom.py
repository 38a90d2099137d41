#!/usr/bin/env python3
"""Write a CycloneDX list of parts for each locked file: scripts/sbom.py DIRECTORY FILE...

Versions and hashes come from the locked file, licenses and descriptions from the packages installed in .venv.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def generate(*arguments: str) -> dict[str, Any]:
    """Return what cyclonedx-py makes of requirements or of an environment."""
    # What is written is validated once, at the end.
    options = ["--spec-version", "1.6", "--output-reproducible", "--no-validate"]
    command = [sys.executable, "-m", "cyclonedx_py", *arguments, *options]
    document = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout  # noqa: S603 - our own
    bom: dict[str, Any] = json.loads(document)
    return bom


def main(directory: Path, files: list[Path]) -> None:
    """Write ``<name>.cdx.json`` for each file.

    Raises:
        SystemExit: a list does not follow CycloneDX's schema.
    """
    installed = {part["purl"]: part for part in generate("environment", sys.prefix)["components"] if "purl" in part}
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        bom = generate("requirements", str(file))
        # What is locked for other Pythons or systems is not installed here and stays without a license.
        for part in bom["components"]:
            known = installed.get(part["purl"], {})
            part["description"] = known.get("description", "")
            part["licenses"] = known.get("licenses", [])
        document = json.dumps(bom, indent=2)
        if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(document):
            raise SystemExit(f"The list of {file} does not follow the schema of CycloneDX 1.6: {error}")
        (directory / f"{file.stem}.cdx.json").write_text(document)
        print(f"{directory / file.stem}.cdx.json: {len(bom['components'])} parts")  # noqa: T201 - its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
