"""Mean opinion scores from raw ratings. Arrays of ratings are ``[raters, pictures]`` with NaN for what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from critiq_evaluation.ratings.raw import Floats, RawRatings

Booleans = NDArray[np.bool_]

NORMAL = 1.96
"""Half the width of a 95 % interval in standard errors, as BT.500 takes it whatever the number of raters."""
LEAST_SRCC = 0.6
_OUTLYING_SHARE, _LOPSIDED = 0.05, 0.3
_ROUNDING = 1e-12
"""Values that differ by less, as a share of their size, are the same: what is left is rounding."""


@dataclass(frozen=True)
class Rater:
    """What became of one rater; ``rejected`` says why, and is empty for those who count.

    ``srcc`` is with the mean of all raters, ``None`` where it is not defined; ``outlying`` counts ratings that lie far
    from the picture's mean by BT.500's rule.
    """

    name: str
    ratings: int
    outlying: int
    srcc: float | None
    rejected: str = ""


@dataclass(frozen=True)
class Opinion:
    """A picture's mean opinion score, 95 % interval; what is not defined is ``None``, and ``reason`` says why."""

    picture: str
    mos: float | None
    std: float | None
    low: float | None
    high: float | None
    count: int
    reason: str = ""


@dataclass(frozen=True)
class Processed:
    """The scores and what became of the raters; of ``aigiqa20k``, ``std`` of opinions is that of the z-scores."""

    method: str
    opinions: tuple[Opinion, ...]
    raters: tuple[Rater, ...]


@dataclass(frozen=True)
class Options:
    """``screening``: whether raters are rejected; ``log_offset``: what AIGIQA-20K's eq. 3 adds before the logarithm."""

    screening: bool = True
    least_srcc: float = LEAST_SRCC
    log_offset: float = 1.0


def bt500(raw: RawRatings, options: Options) -> Processed:
    """ITU-R BT.500: raters are screened by the kurtosis rule, the score is the mean of the raw ratings that are left.

    The interval is mean +- 1.96 S / sqrt(N).
    """
    outlying = outliers(raw.scores)
    rejected = _unfit(raw.scores, 1)
    if options.screening:
        rejected = _or(rejected, rejected_by_bt500(raw.scores, outlying))
    kept = np.where(_fits(rejected), raw.scores, np.nan)
    return _processed("bt500", raw, outlying, rejected, kept, lambda mean: mean)


def mint(raw: RawRatings, options: Options) -> Processed:
    """MINT-IQA, eq. 1 to 3, for AIGCIQA2023+.

    Raters are screened by BT.500's kurtosis rule, and of the others single outlying ratings are dropped (the paper:
    "outlier detection and subject rejection", 2 % of the ratings). Then with the rating r_ij of rater i for picture j::

        z_ij = (r_ij - mu_i) / sigma_i          mu_i, sigma_i over the N_i pictures that i rated, N_i - 1     (1, 2)
        z'_ij = 100 (z_ij + 3) / 6                                                                           (1)
        MOS_j = mean of z'_ij over the raters                                                                (3)

    (The paper writes mu_j and sigma_j, while its sums run over the pictures of one rater.) Values beyond three standard
    deviations lie outside 0 to 100, and stay there.
    """
    outlying = outliers(raw.scores)
    rejected = _unfit(raw.scores, 2)
    single = raw.scores
    if options.screening:
        rejected = _or(rejected, rejected_by_bt500(raw.scores, outlying))
        single = np.where(outlying, np.nan, raw.scores)
        rejected = _or(rejected, _unfit(single, 2))
    kept = np.where(_fits(rejected), single, np.nan)
    return _processed("mint", raw, outlying, rejected, 100 * (z_scores(kept) + 3) / 6, lambda mean: mean)


def aigiqa20k(raw: RawRatings, options: Options) -> Processed:
    """AIGIQA-20K, section 3.2 and eq. 1 to 3.

    Raters whose SRCC with the global average is below 0.6 are removed. Then with the rating r_ij of viewer j for
    picture i of session g::

        s_ij = r_ij - (mean of r_ij over the pictures of session g) + 2.5                            (1)
        z_ij = (s_ij - mu_j) / sigma_j          over the pictures that j rated, N - 1                (2)
        MOS_i = log(mean of z_ij over the viewers + 1),  MOS = 5 norm(MOS)                           (3)

    norm maps the smallest MOS to 0 and the largest to 1. Eq. 1 is printed with a sum over all pictures up to the end of
    the session divided by the size of one; we read it as the mean of the session, as the text says. The logarithm does
    not exist where the mean of z is -1 or less: such pictures have no score, unless ``log_offset`` is larger than 1.
    """
    rejected = _unfit(raw.scores, 3)
    if options.screening:
        rejected = _or(rejected, _rejected_by_srcc(raw.scores, options.least_srcc))
    levelled = level_sessions(raw.scores, raw.sessions)
    if raw.sessions:
        rejected = _or(rejected, _unfit(levelled, 3, " within each session"))
    z = z_scores(np.where(_fits(rejected), levelled, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _mean(z, 0) + options.log_offset
        logs = np.log(np.where(mean > 0, mean, np.nan))
    finite = logs[np.isfinite(logs)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    alike = high - low <= _ROUNDING

    def scaled(mean_z: float) -> float:
        if mean_z + options.log_offset <= 0 or alike:
            return float("nan")
        return float(5 * (np.log(mean_z + options.log_offset) - low) / (high - low))

    why = (
        "all pictures have the same mean, which cannot be normalised"
        if finite.size and alike
        else (
            f"the mean z-score is -{options.log_offset:g} or less, where the logarithm of eq. 3 does not "
            "exist; a larger --log-offset makes it exist"
        )
    )
    return _processed("aigiqa20k", raw, outliers(raw.scores), rejected, z, scaled, why)


METHODS: dict[str, Callable[[RawRatings, Options], Processed]] = {"aigiqa20k": aigiqa20k, "mint": mint, "bt500": bt500}


def outliers(scores: Floats) -> Booleans:
    """Ratings far from the picture's mean, ``[raters, pictures]`` (ITU-R BT.500, screening of observers).

    Far is 2 S where the kurtosis m4 / m2**2 of the picture's ratings lies in 2 to 4 (they are taken as normal), else
    sqrt(20) S; S is the standard deviation with N - 1. Pictures on which all agree have none.
    """
    count = np.sum(np.isfinite(scores), axis=0)
    deviation = scores - _mean(scores, 0)
    squares = np.nansum(deviation**2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(squares / (count - 1))
        kurtosis = np.nansum(deviation**4, axis=0) / count / (squares / count) ** 2
        far = np.where((kurtosis >= 2) & (kurtosis <= 4), 2.0, np.sqrt(20.0)) * spread
        differ = spread > _ROUNDING * np.abs(_mean(scores, 0))
        return np.asarray((np.abs(deviation) >= far) & differ)


def rejected_by_bt500(scores: Floats, outlying: Booleans) -> list[str]:
    """Why each rater is rejected; empty for those who are not.

    With P ratings far above and Q far below the mean, of N: (P + Q) / N > 0.05 and |P - Q| / (P + Q) < 0.3. A rater who
    is always too high, or always too low, is not rejected.
    """
    above = np.sum(outlying & (scores > _mean(scores, 0)), axis=1)
    below = np.sum(outlying, axis=1) - above
    count = np.sum(np.isfinite(scores), axis=1)
    reasons = []
    for p, q, n in zip(above.tolist(), below.tolist(), count.tolist(), strict=True):
        bad = n > 0 and (p + q) / n > _OUTLYING_SHARE and abs(p - q) / (p + q) < _LOPSIDED
        reasons.append(f"{p} ratings far above and {q} far below the mean, of {n} (BT.500)" if bad else "")
    return reasons


def z_scores(scores: Floats) -> Floats:
    """Each rater's ratings less their mean, by their standard deviation (N - 1); NaN where that is 0 or undefined."""
    mean = _mean(scores, 1)
    deviation = scores - mean[:, None]
    count = np.sum(np.isfinite(scores), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.sqrt(np.nansum(deviation**2, axis=1) / (count - 1))
        return np.asarray(
            np.where((sigma > _ROUNDING * np.abs(mean))[:, None], deviation / sigma[:, None], np.nan), np.float64
        )


def level_sessions(scores: Floats, sessions: Sequence[str]) -> Floats:
    """Eq. 1 of AIGIQA-20K: each rater's mean of each session becomes 2.5."""
    levelled = np.full_like(scores, np.nan)
    names = np.array(sessions if sessions else [""] * scores.shape[1])
    for name in np.unique(names):
        part = scores[:, names == name]
        levelled[:, names == name] = part - _mean(part, 1)[:, None] + 2.5
    return levelled


def srcc_with_mean(scores: Floats) -> list[float | None]:
    """Each rater's SRCC with the mean of all raters over the pictures that he rated; ``None`` where not defined."""
    mean = _mean(scores, 0)
    found: list[float | None] = []
    for row in scores:
        rated = np.isfinite(row)
        if rated.sum() < 3 or np.ptp(row[rated]) == 0 or np.ptp(mean[rated]) == 0:
            found.append(None)
        else:
            found.append(float(stats.spearmanr(row[rated], mean[rated]).statistic))
    return found


def _rejected_by_srcc(scores: Floats, least: float) -> list[str]:
    return [
        f"SRCC with the mean of all raters is {srcc:.3f}, below {least:g}" if srcc is not None and srcc < least else ""
        for srcc in srcc_with_mean(scores)
    ]


def _unfit(scores: Floats, least: int, where: str = "") -> list[str]:
    """Raters of whom nothing can be computed: too few ratings or, where z-scores are needed (2 or more), all alike."""
    reasons = []
    for row in scores:
        values = row[np.isfinite(row)]
        if values.size < least:
            reasons.append(f"{values.size} ratings, {least} are needed")
        elif least > 1 and np.ptp(values) <= _ROUNDING * np.abs(values).max():
            said = f"alike{where}" if where else f"{values[0]:g}"
            reasons.append(f"all {values.size} ratings are {said}: a z-score is not defined")
        else:
            reasons.append("")
    return reasons


def _or(first: list[str], second: list[str]) -> list[str]:
    return [one or other for one, other in zip(first, second, strict=True)]


def _fits(rejected: list[str]) -> Booleans:
    return np.array([[not reason] for reason in rejected])


def _mean(values: Floats, axis: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing: NaN, which the callers look for
        return np.asarray(np.nanmean(values, axis=axis), np.float64)


def _processed(
    method: str,
    raw: RawRatings,
    outlying: Booleans,
    rejected: list[str],
    values: Floats,
    scaled: Callable[[float], float],
    undefined: str = "",
) -> Processed:
    """Means of ``values`` over the raters, each taken through ``scaled``, which is monotone and NaN where undefined."""
    counted = zip(raw.raters, raw.scores, outlying, srcc_with_mean(raw.scores), rejected, strict=True)
    raters = tuple(
        Rater(name, int(np.isfinite(row).sum()), int(far.sum()), srcc, reason)
        for name, row, far, srcc, reason in counted
    )
    opinions = tuple(
        _opinion(picture, column[np.isfinite(column)], scaled, undefined)
        for picture, column in zip(raw.pictures, values.T, strict=True)
    )
    return Processed(method, opinions, raters)


def _opinion(picture: str, values: Floats, scaled: Callable[[float], float], undefined: str) -> Opinion:
    if not values.size:
        return Opinion(picture, None, None, None, None, 0, "no rating is left")
    mean = float(values.mean())
    mos = _defined(scaled(mean))
    reason = undefined if mos is None else ""
    if values.size < 2:
        return Opinion(picture, mos, None, None, None, 1, reason or "one rating: no interval")
    std = float(values.std(ddof=1))
    half = NORMAL * std / float(np.sqrt(values.size))
    low, high = _defined(scaled(mean - half)), _defined(scaled(mean + half))
    return Opinion(picture, mos, std, low if mos is not None else None, high, int(values.size), reason)


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
