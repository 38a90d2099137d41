#!/usr/bin/env python3
"""Random secrets for an overlay: deploy/kubernetes/make_secrets.py deploy/kubernetes/overlays/NAME.

Writes the files of each Secret into OVERLAY/secrets, where git does not look, with a kustomization that generates the
Secrets from them. What is there already stays, and a file that you add, like secrets/typesafe-secrets/GROQ_API_KEY, is
taken up.
"""

import hashlib
import re
import secrets
import string
import sys
from pathlib import Path

TEMPLATES = Path(__file__).parent / "secret-files"
PLACEHOLDER = re.compile(r"PLACEHOLDER-[a-z_.-]+")
LENGTH = 48


def filled(templates: dict[Path, str]) -> dict[Path, str]:
    """Return the files with a random value for each placeholder, and its SHA-256 for the placeholder's."""
    new: dict[str, str] = {}
    for placeholder in {name for text in templates.values() for name in PLACEHOLDER.findall(text)}:
        value = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(LENGTH))
        new |= {placeholder: value, _digest(placeholder): _digest(value)}
    pattern = re.compile("|".join([PLACEHOLDER.pattern, "[0-9a-f]{64}"]))
    return {path: pattern.sub(lambda match: new.get(match[0], match[0]), text) for path, text in templates.items()}


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def main(overlay: Path) -> None:
    """Make what is missing."""
    directory = overlay / "secrets"
    if not directory.exists():
        directory.mkdir(mode=0o700)
        templates = {path.relative_to(TEMPLATES): path.read_text() for path in TEMPLATES.glob("*/*")}
        for path, text in filled(templates).items():
            file = directory / path
            file.parent.mkdir(mode=0o700, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(text)
    lines = ["---", "apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization", "secretGenerator:"]
    for secret in sorted(path for path in directory.iterdir() if path.is_dir()):
        lines += [f"  - name: {secret.name}", "    files:"]
        lines += [f"      - {file.relative_to(directory)}" for file in sorted(secret.iterdir())]
    (directory / "kustomization.yml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "kustomization.yml").is_file():
        sys.exit("usage: make_secrets.py OVERLAY, a directory with a kustomization.yml")
    main(Path(sys.argv[1]))
