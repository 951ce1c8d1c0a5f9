"""Bundles on disk: which directories hold one, by model name and version."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from critiq_server.bundles.manifest import MANIFEST_FILE, Manifest
from critiq_server.bundles.model import BrokenBundle, read_manifest

BUILTIN = Path(__file__).parent / "builtin"
"""Where the bundles that come with the server lie."""

logger = structlog.get_logger("critiq")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that could be loaded."""

    directory: Path
    manifest: Manifest


def find_bundles(roots: Iterable[Path]) -> dict[str, dict[str, Bundle]]:
    """All bundles in ``roots`` (``ROOT``, ``ROOT/*``, ``ROOT/*/*`` with a manifest), by name and version, oldest first.

    The first root that has a version wins. Directories whose manifest is invalid are logged and left out.
    """
    found: dict[str, dict[str, Bundle]] = {}
    for root in roots:
        for directory in _directories(root):
            try:
                manifest = read_manifest(directory)
            except BrokenBundle as error:
                logger.warning("bundle ignored", directory=str(directory), reason=str(error))
                continue
            found.setdefault(manifest.name, {}).setdefault(manifest.version, Bundle(directory, manifest))
    return {
        name: dict(sorted(versions.items(), key=lambda item: version_order(item[0])))
        for name, versions in sorted(found.items())
    }


def version_order(version: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts versions as people read them: 2 before 10, 1.9 before 1.10, 1.0-rc1 before 1.0."""
    parts = re.findall(r"\d+|[a-z]+", version)
    # The end stands after a word and before a number.
    return (*((1, int(part)) if part.isdigit() else (0, part) for part in parts), (1, -1))


def _directories(root: Path) -> Iterable[Path]:
    for pattern in (MANIFEST_FILE, f"*/{MANIFEST_FILE}", f"*/*/{MANIFEST_FILE}"):
        # A name that starts with a dot is a bundle still being written.
        yield from sorted(p.parent for p in root.glob(pattern) if not p.parent.name.startswith("."))
