"""Pictures and their spoilt variants as cached features: the label-free supervision of ELIQ, section 3.2."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from critiq_exporters.training.degradations import Kind, Pixels, degrade, names
from critiq_exporters.training.features import GROUPS, Extractor
from critiq_exporters.training.sources import Source, harmonised, read

CLEAN = "clean"
MIXED = "mixed"
_CHUNK = 64


@dataclass(frozen=True)
class Variant:
    """How one sample was made from its source picture."""

    source: int
    """Index of the source in the list that was given."""
    family: str
    kind: str
    level: int
    similarity: float
    """Gradient similarity to the clean base (1 = the same); NaN where shapes moved."""


@dataclass(frozen=True)
class Samples:
    """Features float16 ``[samples, GROUPS[name]]`` by group, and what each sample is."""

    features: dict[str, NDArray[np.float16]]
    variants: list[Variant]


def make_rounds(
    sources: list[Source], graph: Path, folder: Path, *, rounds: int, seed: int, workers: int = 1, quiet: bool = False
) -> list[Samples]:
    """For each round and source one clean base and nine spoilt variants, extracted or read back from ``folder``.

    ``graph`` is what ``save_extractor`` wrote. Each round draws other sizes, families and levels; the same seed and
    number draw the same, whatever the workers. Files hold some pictures each and are written under a temporary name
    first, so that a stopped run goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        _Job(tuple(sources[start : start + _CHUNK]), start, number, seed, graph, folder)
        for number in range(rounds)
        for start in range(0, len(sources), _CHUNK)
    ]
    progress = partial(tqdm, desc="samples", total=len(jobs), disable=quiet, mininterval=5)
    if workers == 1:
        return [load_chunk(_make_chunk(job)) for job in progress(jobs)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [load_chunk(path) for path in progress(pool.map(_make_chunk, jobs))]


@dataclass(frozen=True)
class _Job:
    sources: tuple[Source, ...]
    start: int
    number: int
    seed: int
    graph: Path
    folder: Path


def _make_chunk(job: _Job) -> Path:
    recipe = repr([(item.population, item.path.name) for item in job.sources]).encode()
    path = job.folder / f"{job.seed}-{job.number}-{job.start}-{hashlib.sha256(recipe).hexdigest()[:12]}.npz"
    if path.exists():
        return path
    extractor = Extractor(job.graph)
    variants: list[Variant] = []
    parts: list[dict[str, NDArray[np.float16]]] = []
    for index, source in enumerate(job.sources, job.start):
        rng = np.random.default_rng([job.seed, job.number, index])
        made = _variants(index, read(source), rng)
        variants += [variant for variant, _ in made]
        parts.append(extractor([pixels for _, pixels in made]))
    features = {name: np.concatenate([part[name] for part in parts]) for name in GROUPS}
    temporary = path.with_suffix(".partial.npz")
    np.savez(temporary, **features, **_columns(variants))  # type: ignore[arg-type]
    temporary.rename(path)
    return path


def load_chunk(path: Path) -> Samples:
    """Reads a file of samples back."""
    with np.load(path, allow_pickle=False) as file:
        columns = zip(
            *(file[name].tolist() for name in ("source", "family", "kind", "level", "similarity")), strict=True
        )
        return Samples({name: file[name] for name in GROUPS}, [Variant(*row) for row in columns])


def gradient_similarity(clean: Pixels, spoilt: Pixels) -> float:
    """1 - GMSD of the lumas (Xue et al., "Gradient magnitude similarity deviation", eq. 4-6): 1 means the same.

    The measure is computed at half resolution with Sobel gradients and their constant for 0..255.
    """
    maps = []
    for picture in (clean, spoilt):
        luma = ndimage.uniform_filter(picture.astype(np.float32).mean(-1), 2)[::2, ::2]
        maps.append(np.hypot(ndimage.sobel(luma, 0), ndimage.sobel(luma, 1)) / 4)
    similarity = (2 * maps[0] * maps[1] + 170) / (maps[0] ** 2 + maps[1] ** 2 + 170)
    return 1.0 - float(similarity.std())


def _variants(index: int, picture: Pixels, rng: np.random.Generator) -> list[tuple[Variant, Pixels]]:
    """The base; per kind one family at two levels; one more technical and one more generative family; a mixture."""
    base = harmonised(picture, rng)
    plan: list[tuple[Kind, str, int]] = []
    kinds: tuple[Kind, ...] = ("technical", "aesthetic", "generative")
    for kind in kinds:
        chosen = rng.permutation(names(kind))[:2]
        low, high = sorted(rng.permutation(5)[:2] + 1)
        plan += [(kind, str(chosen[0]), int(low)), (kind, str(chosen[0]), int(high))]
        if kind != "aesthetic":
            plan.append((kind, str(chosen[1]), int(rng.integers(1, 6))))
    result = [(Variant(index, CLEAN, CLEAN, 0, 1.0), base)]
    for kind, family, level in plan:
        spoilt = degrade(base, family, level, rng)
        similarity = gradient_similarity(base, spoilt) if kind != "aesthetic" else float("nan")
        result.append((Variant(index, family, kind, level, similarity), spoilt))
    first, second = (str(name) for name in rng.permutation(names("technical"))[:2])
    levels = rng.integers(1, 5, 2)
    mixed = degrade(degrade(base, first, int(levels[0]), rng), second, int(levels[1]), rng)
    result.append((Variant(index, MIXED, "technical", int(levels.max()), gradient_similarity(base, mixed)), mixed))
    return result


def _columns(variants: list[Variant]) -> dict[str, NDArray[Any]]:
    return {
        "source": np.array([item.source for item in variants]),
        "family": np.array([item.family for item in variants]),
        "kind": np.array([item.kind for item in variants]),
        "level": np.array([item.level for item in variants]),
        "similarity": np.array([item.similarity for item in variants]),
    }
