"""The figures of the model card, measured on an exported bundle with pictures of sources that training never saw."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from tqdm import tqdm

from critiq_exporters.training.alignment.evaluation import evaluate as alignment_figures
from critiq_exporters.training.bundle import BundleScorer
from critiq_exporters.training.degradations import FAMILIES, LEVELS, Kind, Pixels, degrade, names
from critiq_exporters.training.degradations.pixelwise import encoded
from critiq_exporters.training.golden import PROMPTS, drawings
from critiq_exporters.training.reduced import precision_lines
from critiq_exporters.training.sources import Source, held_out_sources, read, thinned

VISUAL = "visual_quality"
DEGRADED_SETS = ("kodak", "clic2025", "gpt4o_jamez")
"""The held-out sets whose pictures are spoilt."""
_PER_SET = 8

Values = NDArray[np.float64]


def evaluate_bundle(bundle: Path, data: Path, *, limit: int | None = None, seed: int = 7) -> Iterator[str]:
    """Lines of text, one figure each, with counts. ``limit``: at most so many pictures of each held-out set."""
    scorer = BundleScorer(bundle)
    yield from speed_lines(bundle, scorer)
    sources = held_out_sources(data)
    spoilt = thinned([item for item in sources if item.population in DEGRADED_SETS], min(limit or _PER_SET, _PER_SET))
    yield from degradation_lines(scorer, spoilt, seed)
    yield from across_lines(scorer, spoilt, seed)
    clean = thinned(sources, limit or 120)
    yield from population_lines(scorer, clean)
    yield from precision_lines(bundle, scorer, [read(item) for item in thinned(sources, 20)])
    if any(item.needs_prompt for item in scorer.manifest.dimensions):
        yield from (str(figure) for figure in alignment_figures(bundle, data, seed=seed, limit=limit))


def speed_lines(bundle: Path, scorer: BundleScorer) -> Iterator[str]:
    """Size and time of one picture on one thread."""
    size = sum(path.stat().st_size for path in bundle.iterdir())
    yield f"bundle size: {size / 1e6:.1f} MB"
    picture, prompt = drawings()[1], PROMPTS[1]
    yield f"picture alone, one thread, batch 1: {_milliseconds(scorer, picture, None):.1f} ms"
    if any(item.needs_prompt for item in scorer.manifest.dimensions):
        yield f"picture with prompt, one thread, batch 1: {_milliseconds(scorer, picture, prompt):.1f} ms"


def degradation_lines(scorer: BundleScorer, sources: list[Source], seed: int) -> Iterator[str]:
    """Pairwise accuracy by kind, level and family, and the order of levels."""
    clean = {index: _visual(scorer, read(source)) for index, source in enumerate(sources)}
    wins: dict[tuple[str, int], list[bool]] = defaultdict(list)
    orders: dict[str, list[float]] = defaultdict(list)
    for index, source in enumerate(tqdm(sources, "degradations", mininterval=10)):
        picture = read(source)
        for number, family in enumerate(FAMILIES):
            values = [
                _visual(scorer, degrade(picture, family, level, np.random.default_rng([seed, index, number])))
                for level in LEVELS
            ]
            for level, value in zip(LEVELS, values, strict=True):
                wins[family, level].append(clean[index] > value)
            orders[family].append(float(stats.spearmanr(LEVELS, [-value for value in values]).statistic))
    count = len(sources)
    kinds: tuple[Kind, ...] = ("technical", "aesthetic", "generative")
    for kind in kinds:
        members = names(kind)
        for low, high in ((1, 2), (3, 5)):
            hits = [hit for name in members for level in range(low, high + 1) for hit in wins[name, level]]
            yield f"clean above {kind} level {low}-{high}: {np.mean(hits):.3f} ({len(hits)} pairs, {count} pictures)"
        hits = [hit for name in members for level in LEVELS for hit in wins[name, level]]
        yield f"clean above {kind}, all levels: {np.mean(hits):.3f} ({len(hits)} pairs)"
        yield f"order of levels, {kind}: mean Spearman {np.mean([np.mean(orders[name]) for name in members]):.3f}"
    for name in FAMILIES:
        strong = [hit for level in (3, 4, 5) for hit in wins[name, level]]
        weak = [hit for level in (1, 2) for hit in wins[name, level]]
        yield (
            f"  {FAMILIES[name].kind:10s} {name:22s} level 1-2 {np.mean(weak):.2f}  level 3-5 {np.mean(strong):.2f}"
            f"  order {np.mean(orders[name]):.2f}"
        )


def across_lines(scorer: BundleScorer, sources: list[Source], seed: int) -> Iterator[str]:
    """Spearman across contents with multi-scale SSIM, which training does not use: per family, and all mixed."""
    members = [*names("technical"), *names("generative")]
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for index, source in enumerate(tqdm(sources, "across contents", mininterval=10)):
        picture = read(source)
        for number, family in enumerate(members):
            rng = np.random.default_rng([seed + 1, index, number])
            spoilt = degrade(picture, family, int(rng.integers(1, 6)), rng)
            pairs[family].append((_visual(scorer, spoilt), multi_scale_ssim(picture, spoilt)))
    single = [float(stats.spearmanr(*zip(*pairs[name], strict=True)).statistic) for name in members]
    everything = [pair for name in members for pair in pairs[name]]
    whole = float(stats.spearmanr(*zip(*everything, strict=True)).statistic)
    yield f"SRCC with MS-SSIM across contents, mean over {len(members)} families: {np.nanmean(single):.3f}"
    yield f"SRCC with MS-SSIM across contents, all families mixed: {whole:.3f} ({len(everything)} pictures)"


def population_lines(scorer: BundleScorer, sources: list[Source]) -> Iterator[str]:
    """Mean scores by set, and what the score must not depend on."""
    rows: list[tuple[Source, float, Pixels]] = []
    for source in tqdm(sources, "populations", mininterval=10):
        picture = read(source)
        rows.append((source, _visual(scorer, picture), picture))
    for population in dict.fromkeys(source.population for source, _, _ in rows):
        values = [value for source, value, _ in rows if source.population == population]
        yield f"  {population:22s} mean {np.mean(values):+.2f} spread {np.std(values):.2f} ({len(values)})"
    photographs = [(source, value, picture) for source, value, picture in rows if source.role == "photograph"]
    score = np.array([value for _, value, _ in photographs])
    traits = {
        "pixels": [picture.shape[0] * picture.shape[1] for _, _, picture in photographs],
        "aspect": [picture.shape[1] / picture.shape[0] for _, _, picture in photographs],
        "bytes of the file": [source.path.stat().st_size for source, _, _ in photographs],
        "brightness": [picture.mean() for _, _, picture in photographs],
        "red minus blue": [float(picture[..., 0].mean() - picture[..., 2].mean()) for _, _, picture in photographs],
    }
    yield f"clean photographs: spread of scores {score.std():.2f} ({len(score)})"
    for name, values in traits.items():
        yield f"photographs, SRCC of score and {name}: {stats.spearmanr(score, values).statistic:+.2f}"
    changes = defaultdict(list)
    for _, value, picture in photographs[::4]:
        changes["JPEG quality 95"].append(_visual(scorer, encoded(picture, "JPEG", quality=95)) - value)
        changes["WebP quality 95"].append(_visual(scorer, encoded(picture, "WEBP", quality=95)) - value)
        changes["mirrored"].append(_visual(scorer, np.ascontiguousarray(picture[:, ::-1])) - value)
    for name, differences in changes.items():
        yield f"change of score, {name}: mean {np.mean(differences):+.3f}, spread {np.std(differences):.3f}"
    sets = {source.population for source, _, _ in photographs}
    for name in sorted(sets):
        inside = np.array([source.population == name for source, _, _ in photographs])
        area = stats.mannwhitneyu(score[inside], score[~inside]).statistic / (inside.sum() * (~inside).sum())
        yield f"telling {name} from other photographs by score: AUC {area:.2f}"


def multi_scale_ssim(clean: Pixels, spoilt: Pixels) -> float:
    """Multi-scale structural similarity of the lumas (Wang, Simoncelli and Bovik, 2003; the five published weights).

    Gaussian windows of sigma 1.5; scales that would be under 11 pixels are left out and the weights normalised.
    """
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    first, second = (picture.astype(np.float64) @ [0.299, 0.587, 0.114] for picture in (clean, spoilt))
    product, used = 0.0, 0.0
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim(first, second)
        last = scale == len(weights) - 1 or min(first.shape) < 22
        product += weight * np.log(max(structure * (luminance if last else 1.0), 1e-6))
        used += weight
        if last:
            break
        first, second = (ndimage.uniform_filter(plane, 2)[::2, ::2] for plane in (first, second))
    return float(np.exp(product / used))


def _ssim(first: Values, second: Values) -> tuple[float, float]:
    def smooth(plane: Values) -> Values:
        result: Values = ndimage.gaussian_filter(plane, 1.5, truncate=3.5)
        return result

    mean_a, mean_b = smooth(first), smooth(second)
    variance_a, variance_b = smooth(first**2) - mean_a**2, smooth(second**2) - mean_b**2
    covariance = smooth(first * second) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
    structure = (2 * covariance + 58.5225) / (variance_a + variance_b + 58.5225)
    return float(luminance.mean()), float(structure.mean())


def _visual(scorer: BundleScorer, picture: Pixels) -> float:
    return scorer.score(picture, None, [VISUAL])[VISUAL]


def _milliseconds(scorer: BundleScorer, picture: Pixels, prompt: str | None, repeats: int = 15) -> float:
    scorer.score(picture, prompt)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        scorer.score(picture, prompt)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
