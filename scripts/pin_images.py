#!/usr/bin/env python3
"""Bring the digests of the container images that this repository names up to date: scripts/pin_images.py [--check].

An image is named as NAME:TAG@sha256:DIGEST: the tag says what is meant, the digest what is pulled. Asks the registries
with skopeo what each tag means now, and writes it into every file that git knows. With --check it only says what
differs, and ends with 1.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PINNED = re.compile(r"\b([a-z0-9.-]+\.[a-z]+/[\w./-]+:[\w.-]+)@(sha256:[0-9a-f]{64})\b")
ROOT = Path(__file__).resolve().parent.parent


def pinned(root: Path) -> dict[Path, set[tuple[str, str]]]:
    """Return the images that each file below ``root`` names: NAME:TAG and digest."""
    listed = subprocess.run(  # noqa: S603 - our own words
        ["git", "-C", str(root), "grep", "--files-with-matches", "--null", "@sha256:"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,  # 1: no file
    ).stdout
    files = [root / name for name in listed.split("\0") if name]
    found = {file: set(PINNED.findall(file.read_text())) for file in files}
    return {file: images for file, images in found.items() if images}


def current(image: str) -> str:
    """Return the digest of what a tag means now, for all architectures.

    Raises:
        SystemExit: the registry, or skopeo, has no answer.
    """
    command = ["skopeo", "inspect", "--no-tags", "--format={{.Digest}}", f"docker://{image}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - matches PINNED
    except FileNotFoundError:
        sys.exit("skopeo is missing, which asks registries: apt-get install skopeo")
    digest = answer.stdout.strip()
    if answer.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        sys.exit(f"{image} cannot be looked up: {' '.join((answer.stderr or digest).split())[-200:]}")
    return digest


def main() -> None:
    """Do what the command line says; ends with 1 when --check finds an old digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    files = pinned(ROOT)
    images = {image for named in files.values() for image, _ in named}
    # All are asked before the first file is written.
    digests = {image: current(image) for image in sorted(images)}
    old = {(image, digest) for named in files.values() for image, digest in named if digests[image] != digest}
    for image, digest in sorted(old):
        print(f"{image}: {digest} is now {digests[image]}")  # noqa: T201 - its answer
    for file in files if not check else []:
        text = file.read_text()
        renewed = PINNED.sub(lambda match: f"{match[1]}@{digests[match[1]]}", text)
        if renewed != text:
            file.write_text(renewed)
    sys.exit(1 if check and old else 0)


if __name__ == "__main__":
    main()
