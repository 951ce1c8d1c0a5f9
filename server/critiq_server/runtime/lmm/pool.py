"""The LMMs that this process holds: each loaded once, however many models ask it, until the last of them goes.

Torch is imported here only when an LMM is loaded, so a process that serves stored features never pays for it.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from critiq_server.bundles.lmm import Backbone, OnMiss
from critiq_server.runtime.lmm.base import Extractor, Instruction, Pixels
from critiq_server.runtime.lmm.folder import LmmUnavailable, check_revision
from critiq_server.runtime.lmm.settings import LmmSettings

logger = structlog.get_logger("critiq")


class Lmms:
    """Extractors by backbone. Safe to use from several threads."""

    def __init__(self, settings: LmmSettings) -> None:
        self._settings = settings
        self._held: dict[tuple[Backbone, OnMiss], Extractor] = {}
        self._users: dict[tuple[Backbone, OnMiss], int] = {}
        self._lock = threading.Lock()

    def policy(self, bundle: OnMiss) -> OnMiss:
        """What happens to features that are not stored: the settings' word, or else the bundle's."""
        return bundle if self._settings.on_miss == "as-bundle" else self._settings.on_miss

    def open(self, backbone: Backbone, on_miss: OnMiss) -> Extractor | None:
        """Something that answers questions to ``backbone``, or ``None`` if only stored features are served. Blocks.

        Call its ``close`` when done.

        Raises ``LmmUnavailable`` if the LMM cannot be loaded here, or there is no remote one.
        """
        if on_miss == "stored":
            return None
        key = (backbone, on_miss)
        with self._lock:
            if key not in self._held:
                self._held[key] = self._open(backbone, on_miss)
            self._users[key] = self._users.get(key, 0) + 1
            return _Shared(self, key, self._held[key])

    def release(self, key: tuple[Backbone, OnMiss]) -> None:
        """One user less; the last one closes the extractor."""
        with self._lock:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._held.pop(key).close()

    def _open(self, backbone: Backbone, on_miss: OnMiss) -> Extractor:
        if on_miss == "remote":
            from critiq_server.runtime.remote import RemoteExtractor

            return RemoteExtractor(backbone, self._settings.remote)
        folder = self._settings.folders.get(backbone.model)
        if folder is None:
            raise LmmUnavailable(
                f"the bundle's features come from {backbone.model!r}, and lmm.folders names no folder of it (it has "
                f"{', '.join(self._settings.folders) or 'none'}); name one, or set lmm.on_miss to stored or remote"
            )
        logger.info("loading an LMM", model=backbone.model, folder=str(folder))
        check_revision(folder, backbone.model, backbone.revision)
        return open_extractor(folder, backbone, self._settings.device, self._settings.batch_tokens)


def open_extractor(folder: Path, backbone: Backbone, device: str = "auto", batch_tokens: int = 16_384) -> Extractor:
    """The extractor of ``backbone``'s kind for the model in ``folder``. Blocks while it loads.

    Raises ``LmmUnavailable`` if it cannot be loaded; the message says why. Does not check the revision.
    """
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        raise LmmUnavailable(
            f"computing features needs {' and '.join(missing)}: install critiq[lmm], or set lmm.on_miss to stored"
        )
    if not folder.is_dir():
        raise LmmUnavailable(f"{folder}, where {backbone.model!r} should lie, is no folder")
    if backbone.backbone == "mplug-owl2":
        from critiq_server.runtime.lmm.mplug_owl2 import OwlExtractor

        return OwlExtractor(folder, backbone, device, batch_tokens)
    from critiq_server.runtime.lmm.qwen3_vl import QwenExtractor

    return QwenExtractor(folder, backbone, device, batch_tokens)


class _Shared:
    """One user's hold on an extractor that others use too."""

    def __init__(self, pool: Lmms, key: tuple[Backbone, OnMiss], extractor: Extractor) -> None:
        self._pool, self._key, self._extractor = pool, key, extractor
        self._closed = False
        self.provider, self.concurrency = extractor.provider, extractor.concurrency
        self.gathers = extractor.gathers

    def bucket(self, height: int, width: int) -> Hashable:
        return self._extractor.bucket(height, width)

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        return self._extractor.extract(pictures, prompts, instructions)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.release(self._key)
