"""An extractor without an LMM: exact, quick, and as sensitive to its batches as a real one.

Run as a module, with IMAGES STORE SECONDS, it builds a store and takes so many seconds for each batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from critiq_exporters.features.build import Plan, Progress, build
from critiq_exporters.features.catalogue import Asked
from critiq_exporters.features.sources import Shard, open_source
from critiq_server.features.disk import DiskStore
from critiq_server.runtime.lmm.base import Instruction, Pixels, rounded
from critiq_server.runtime.lmm.instructions import QUESTIONS, ask, find_instructions, standard_backbone

WIDTH = 16
BACKBONE = standard_backbone("qwen3-vl", "drawn", "0123abcd", WIDTH, stored="float16")
TECHNICAL, AESTHETIC, ALIGNMENT = QUESTIONS["qwen3-vl"]


def asked(*ids: str) -> tuple[Asked, ...]:
    return tuple(Asked(ask(BACKBONE, one)) for one in find_instructions(ids or QUESTIONS["qwen3-vl"]))


class DrawnExtractor:
    """Features follow from the pixels, the words, and (a little) from how many pictures are computed together.

    ``calls`` notes how many pictures and which instructions each call had. Pictures of one grey level in ``failing``
    cannot be computed.
    """

    provider, concurrency, gathers = "drawn", 1, True

    def __init__(self, seconds: float = 0.0, failing: Sequence[int] = ()) -> None:
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.closed = False
        self._seconds = seconds
        self._failing = set(failing)

    def bucket(self, height: int, width: int) -> Hashable:
        return height // 32, width // 32

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        assert prompts is not None
        self.calls.append((len(pictures), tuple(one.id for one in instructions)))
        time.sleep(self._seconds)
        if any(int(picture.flat[0]) in self._failing for picture in pictures):
            raise RuntimeError("out of memory")
        features = np.stack(
            [
                np.stack([self._feature(picture, one.filled(prompt)) for one in instructions])
                for picture, prompt in zip(pictures, prompts, strict=True)
            ]
        )
        return rounded(features + np.float32(0.001 * len(pictures)), "float16")

    def close(self) -> None:
        self.closed = True

    def _feature(self, picture: Pixels, words: str) -> NDArray[np.float32]:
        seed = [int(picture.sum()), *picture.shape, *words.encode()]
        return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def build_store(
    images: Path,
    path: Path,
    extractor: DrawnExtractor,
    *,
    questions: Sequence[str] = (),
    shard: Shard | None = None,
    batch: int = 4,
) -> Progress:
    """A whole build into the store in ``path``."""
    source = open_source(images)
    progress = Progress(source.count)
    with DiskStore(path) as store:
        plan = Plan(asked(*questions), batch=batch, workers=2)
        build(source.items(), plan, extractor, store, progress, shard=shard or Shard())
    return progress


if __name__ == "__main__":
    build_store(Path(sys.argv[1]), Path(sys.argv[2]), DrawnExtractor(float(sys.argv[3])))
