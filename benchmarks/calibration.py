"""How far is a calibrated score off, by method and number of labels?

    python benchmarks/calibration.py               # the tables of docs/calibration.md
    python benchmarks/calibration.py --draws 5     # a quick look

The ratings are the mean opinion scores of AIGIQA-20K's 14,000 training pictures (``info_train.csv``). The scores are
simulated: rating plus normal noise, so much that SRCC is as stated, sent through a monotone distortion. What is fitted
is the code behind ``critiq calibrate``; each map is tested on all pictures that it was not fitted to.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from critiq_evaluation.calibration.curves import METHODS, Method, fit_map
from critiq_evaluation.calibration.validation import choose, cross_validated
from critiq_evaluation.errors import EvaluationError

RATINGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "mos" / "aigiqa20k_info_train.csv"
BOUNDS = (0.0, 5.0)
SIZES = (20, 50, 100, 200, 500, 1000)
AUTO_SIZES = (50, 200)
Scores = NDArray[np.float64]

DISTORTIONS: dict[str, Callable[[Scores], Scores]] = {
    "like cosines": lambda z: 0.2 + 0.15 / (1 + np.exp(-1.5 * z)),
    "exponential": lambda z: np.exp(1.2 * z),
    "straight": lambda z: 40 + 12 * z,
}
"""Of ratings with noise, standardised: S-shaped from 0.2 to 0.35, as of HPSv2 and CLIP; bent; a line."""


def read_ratings(path: Path = RATINGS) -> Scores:
    """The column ``mos``."""
    with path.open(encoding="utf-8", newline="") as file:
        return np.array([float(row["mos"]) for row in csv.DictReader(file)])


def simulate(ratings: Scores, srcc: float, distortion: str, seed: int = 0) -> Scores:
    """Raw scores whose SRCC with ``ratings`` is ``srcc``, to 0.001."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=ratings.size)
    low, high = 0.0, 20.0
    while high - low > 1e-4:
        spread = (low + high) / 2
        found = stats.spearmanr(ratings + spread * noise, ratings).statistic
        low, high = (spread, high) if found > srcc else (low, spread)
    latent = ratings + (low + high) / 2 * noise
    return DISTORTIONS[distortion]((latent - latent.mean()) / latent.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=Path, default=RATINGS, help="CSV with a column mos, 0 to 5.")
    parser.add_argument("--draws", type=int, default=40, help="Sets of labels of each size.")
    parser.add_argument("--auto-draws", type=int, default=10, help="The same for the method auto.")
    options = parser.parse_args()
    if not options.ratings.exists():
        sys.exit(f"{options.ratings} is missing; give AIGIQA-20K's info_train.csv with --ratings")
    ratings = read_ratings(options.ratings)
    for srcc in (0.9, 0.7):
        for distortion in DISTORTIONS:
            raw = simulate(ratings, srcc, distortion)
            print(f"\nSRCC {srcc}, {distortion}; RMSE before: {uncalibrated(raw, ratings):.3f}; ", end="")
            print(f"of the best map: {best(raw, ratings):.3f}; of the mean rating alone: {ratings.std():.3f}\n")
            print(f"| labels | {' | '.join(METHODS)} | auto |\n|{'---|' * (len(METHODS) + 2)}")
            for size in SIZES:
                cells = [cell(raw, ratings, method, size, options.draws) for method in METHODS]
                cells.append(cell(raw, ratings, None, size, options.auto_draws) if size in AUTO_SIZES else "")
                print(f"| {size} | {' | '.join(cells)} |", flush=True)


def uncalibrated(raw: Scores, ratings: Scores) -> float:
    """Raw values stretched from their own range to the ratings' scale."""
    stretched = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * (raw - raw.min()) / np.ptp(raw)
    return rmse(stretched, ratings)


def best(raw: Scores, ratings: Scores) -> float:
    """The isotonic map that is fitted to all pictures and tested on them: no map can do better by much."""
    return rmse(fit_map(raw, ratings, "isotonic", BOUNDS)(raw), ratings)


def cell(raw: Scores, ratings: Scores, method: Method | None, size: int, draws: int) -> str:
    """Mean and standard deviation over the draws, and how many fits failed."""
    found, failed = errors(raw, ratings, method, size, draws)
    if not found:
        return "failed"
    return f"{np.mean(found):.3f} ± {np.std(found):.3f}" + (f" ({failed} failed)" if failed else "")


def errors(
    raw: Scores, ratings: Scores, method: Method | None, size: int, draws: int, seed: int = 1
) -> tuple[list[float], int]:
    """RMSE of each draw on the pictures outside it; ``method`` ``None`` is auto."""
    rng = np.random.default_rng(seed)
    found, failed = [], 0
    for _ in range(draws):
        order = rng.permutation(raw.size)
        train, test = order[:size], order[size:]
        chosen = method
        if chosen is None:
            try:
                tried = {name: cross_validated(raw[train], ratings[train], name, BOUNDS, repeats=3) for name in METHODS}
                chosen = choose(tried)
            except EvaluationError:
                failed += 1
                continue
        fitted = fit_map(raw[train], ratings[train], chosen, BOUNDS)
        if fitted.state == "failed":
            failed += 1
        else:
            found.append(rmse(fitted(raw[test]), ratings[test]))
    return found, failed


def rmse(predicted: Scores, ratings: Scores) -> float:
    return float(np.sqrt(np.mean((predicted - ratings) ** 2)))


if __name__ == "__main__":
    main()
