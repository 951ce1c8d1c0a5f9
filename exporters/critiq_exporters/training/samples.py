"""Pictures and their spoilt variants as cached features: the label-free supervision of ELIQ, section 3.2."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from critiq_exporters.training.degradations import Kind, Pixels, degrade, names
from critiq_exporters.training.features import GROUPS, MAPS, WINDOWS, Extractor
from critiq_exporters.training.sources import Source, harmonised, read, varied

CLEAN = "clean"
MIXED = "mixed"
WATCHED = 16
"""Every so many-th source picture is left out of training and watched: what is learned by heart does not help there."""
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
    """Gradient similarity to the clean base (1 = the same); NaN for aesthetic changes."""
    closeness: float
    """Peak signal-to-noise ratio against the base in decibels, at most 50; NaN for aesthetic changes."""


@dataclass(frozen=True)
class Samples:
    """One file of samples: features by group, pixels and maps by name, and what each sample is."""

    features: dict[str, NDArray[np.float16]]
    """``[samples, GROUPS[name]]``."""
    views: dict[str, NDArray[Any]]
    """``WINDOWS`` and ``MAPS`` as ``Extractor`` gives them, left on disk until they are read."""
    variants: list[Variant]
    number: int
    """Of the round, from 0."""


def make_rounds(
    sources: list[Source], graph: Path, folder: Path, *, rounds: int, seed: int, workers: int = 1, quiet: bool = False
) -> list[Samples]:
    """For each round and source one clean base and nine spoilt variants, extracted or read back from ``folder``.

    ``graph`` is what ``save_extractor`` wrote. Each round draws other sizes, families and levels; the same seed and
    number draw the same, whatever the workers. The bases of the first round are ``harmonised``, so that sets can be
    compared, those of later rounds ``varied``. Files hold some pictures each (0.9 MB a sample) and are written under
    a temporary name first, so that a stopped run goes on.
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
    parts: list[dict[str, NDArray[Any]]] = []
    for index, source in enumerate(job.sources, job.start):
        rng = np.random.default_rng([job.seed, job.number, index])
        base = harmonised(read(source), rng) if job.number == 0 else varied(read(source), rng)
        made = _variants(index, base, rng)
        variants += [variant for variant, _ in made]
        parts.append(extractor([pixels for _, pixels in made]))
    for name in (WINDOWS, *MAPS):
        np.save(_beside(path, name), np.concatenate([part.pop(name) for part in parts]))
    features = {name: np.concatenate([part[name] for part in parts]) for name in GROUPS}
    temporary = path.with_suffix(".partial.npz")
    np.savez(temporary, **features, **_columns(variants))  # type: ignore[arg-type]
    temporary.rename(path)  # last: the file stands for all of them
    return path


def load_chunk(path: Path) -> Samples:
    """Reads a file of samples back; pixels and maps stay on disk until they are used."""
    number = int(path.name.split("-")[1])
    views = {name: np.load(_beside(path, name), mmap_mode="r", allow_pickle=False) for name in (WINDOWS, *MAPS)}
    with np.load(path, allow_pickle=False) as file:
        columns = zip(*(file[item.name].tolist() for item in fields(Variant)), strict=True)
        return Samples({name: file[name] for name in GROUPS}, views, [Variant(*row) for row in columns], number)


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


def closeness(clean: Pixels, spoilt: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels over all colours, at most 50."""
    error = float(np.square(clean.astype(np.float32) - spoilt).mean())
    return min(50.0, 10 * float(np.log10(255**2 / max(error, 1e-3))))


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}.npy")


def _variants(index: int, base: Pixels, rng: np.random.Generator) -> list[tuple[Variant, Pixels]]:
    """The base; per kind one family at two levels; one more technical and one more generative family; a mixture."""
    plan: list[tuple[Kind, str, int]] = []
    kinds: tuple[Kind, ...] = ("technical", "aesthetic", "generative")
    for kind in kinds:
        chosen = rng.permutation(names(kind))[:2]
        low, high = sorted(rng.permutation(5)[:2] + 1)
        plan += [(kind, str(chosen[0]), int(low)), (kind, str(chosen[0]), int(high))]
        if kind != "aesthetic":
            plan.append((kind, str(chosen[1]), int(rng.integers(1, 6))))
    result = [(Variant(index, CLEAN, CLEAN, 0, 1.0, 50.0), base)]
    for kind, family, level in plan:
        spoilt = degrade(base, family, level, rng)
        measured = (float("nan"),) * 2 if kind == "aesthetic" else _measured(base, spoilt)
        result.append((Variant(index, family, kind, level, *measured), spoilt))
    first, second = (str(name) for name in rng.permutation(names("technical"))[:2])
    levels = rng.integers(1, 5, 2)
    mixed = degrade(degrade(base, first, int(levels[0]), rng), second, int(levels[1]), rng)
    result.append((Variant(index, MIXED, "technical", int(levels.max()), *_measured(base, mixed)), mixed))
    return result


def _measured(base: Pixels, spoilt: Pixels) -> tuple[float, float]:
    return gradient_similarity(base, spoilt), closeness(base, spoilt)


def _columns(variants: list[Variant]) -> dict[str, NDArray[Any]]:
    return {item.name: np.array([getattr(variant, item.name) for variant in variants]) for item in fields(Variant)}
