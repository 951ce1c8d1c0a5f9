"""Raw ratings to mean opinion scores: against values computed by hand, by property, and as a command."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from critiq_evaluation.commands.ratings import main
from critiq_evaluation.datasets.reading import read
from critiq_evaluation.datasets.types import Scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.ratings.processing import METHODS, Options, aigiqa20k, bt500, mint, outliers, srcc_with_mean
from critiq_evaluation.ratings.raw import RawRatings, read_ratings

NAN = math.nan
UNSCREENED = Options(screening=False)


def raw(scores: list[list[float]] | np.ndarray, sessions: tuple[str, ...] = ()) -> RawRatings:
    array = np.array(scores, np.float64)
    names = tuple(f"p{i}" for i in range(array.shape[1]))
    return RawRatings(tuple(f"r{i}" for i in range(array.shape[0])), names, array, sessions)


def test_mint_by_hand() -> None:
    """r0 gave 1, 2, 3: mean 2, deviation 1; r1 gave 2, 4: mean 3, deviation sqrt 2."""
    found = mint(raw([[1, 2, 3], [2, NAN, 4]]), UNSCREENED)
    root = 1 / math.sqrt(2)
    z: list[list[float]] = [[-1, -root], [0], [1, root]]
    for opinion, values in zip(found.opinions, z, strict=True):
        rescaled = [100 * (value + 3) / 6 for value in values]
        assert opinion.mos == pytest.approx(sum(rescaled) / len(values), abs=1e-9)
        assert opinion.count == len(values)
        if len(values) == 2:
            half = 1.96 * abs(rescaled[0] - rescaled[1]) / math.sqrt(2) / math.sqrt(2)
            assert opinion.mos is not None
            assert opinion.low == pytest.approx(opinion.mos - half, abs=1e-9)
            assert opinion.high == pytest.approx(opinion.mos + half, abs=1e-9)
    assert (found.opinions[1].low, found.opinions[1].reason) == (None, "one rating: no interval")


def test_aigiqa20k_by_hand() -> None:
    """Session a is p0 and p1, session b is p2 and p3; eq. 1 makes each session's mean 2.5."""
    found = aigiqa20k(raw([[1, 3, 2, 2.5], [0, 2, 4, 5]], ("a", "a", "b", "b")), UNSCREENED)
    levelled = [[1.5, 3.5, 2.25, 2.75], [1.5, 3.5, 2.0, 3.0]]
    means = []
    for i in range(4):
        z = []
        for row in levelled:
            mu = sum(row) / 4
            sigma = math.sqrt(sum((value - mu) ** 2 for value in row) / 3)
            z.append((row[i] - mu) / sigma)
        means.append(sum(z) / 2)
    assert means[0] < -1  # where the published logarithm does not exist
    logs = [math.log(mean + 1) for mean in means[1:]]
    assert found.opinions[0].mos is None
    assert "-1 or less" in found.opinions[0].reason
    for opinion, log in zip(found.opinions[1:], logs, strict=True):
        assert opinion.mos == pytest.approx(5 * (log - min(logs)) / (max(logs) - min(logs)), abs=1e-9)
    moved = aigiqa20k(raw([[1, 3, 2, 2.5], [0, 2, 4, 5]], ("a", "a", "b", "b")), Options(False, log_offset=4.0))
    assert moved.opinions[0].mos == pytest.approx(0.0, abs=1e-9)
    assert moved.opinions[1].mos == pytest.approx(5.0, abs=1e-9)


def test_bt500_by_hand() -> None:
    found = bt500(raw([[1, 5], [2, 5], [3, 5], [4, NAN]]), Options())
    first, second = found.opinions
    spread = math.sqrt(5 / 3)
    assert first.mos == 2.5
    assert first.std == pytest.approx(spread, abs=1e-9)
    assert first.low == pytest.approx(2.5 - 1.96 * spread / 2, abs=1e-9)
    assert (second.mos, second.std, second.low, second.high, second.count) == (5, 0, 5, 5, 3)
    assert not any(rater.rejected for rater in found.raters)


def test_outliers_follow_the_kurtosis() -> None:
    """Of ten ratings the first lies alone: at a kurtosis over 4 it needs sqrt 20 deviations, at one of 2 to 4 two."""
    peaked = [9, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    normal = [5.0, 1, 1.5, 2, 2, 2, 2.5, 2.5, 3, 3.5]
    alike = [3] * 10
    kurtosis = [stats.kurtosis(values, fisher=False) for values in (peaked, normal)]
    assert kurtosis[0] > 4 > kurtosis[1] > 2
    found = outliers(np.array([peaked, normal, alike], np.float64).T)
    assert (5.0 - np.mean(normal)) / np.std(normal, ddof=1) > 2
    assert found.sum(axis=0).tolist() == [0, 1, 0]
    assert found[0].tolist() == [False, True, False]


def people(count: int = 28, pictures: int = 60, seed: int = 1, wild: int | None = None) -> np.ndarray:
    """Ratings within 1 of the truth; those of ``wild`` are 1.6 too high and too low in turn."""
    generator = np.random.default_rng(seed)
    truth = generator.uniform(1, 5, pictures)
    scores: np.ndarray = truth + generator.uniform(-1, 1, (count, pictures))
    if wild is not None:
        scores[wild] = truth + np.where(generator.permutation(pictures) % 2, 1.6, -1.6)
    return scores


def test_a_wild_rater_is_rejected_by_every_method_and_no_other() -> None:
    scores = people(wild=4)
    for name, method in METHODS.items():
        options = Options()
        found = method(raw(scores), options)
        assert [rater.name for rater in found.raters if rater.rejected] == ["r4"], name
        without = method(raw(np.delete(scores, 4, axis=0)), options)
        if name == "bt500":
            assert [o.mos for o in found.opinions] == pytest.approx([o.mos for o in without.opinions], abs=1e-9)
    assert "far above" in mint(raw(scores), Options()).raters[4].rejected
    assert "below 0.6" in aigiqa20k(raw(scores), Options()).raters[4].rejected


def test_bt500_cannot_see_one_wild_rater_among_few() -> None:
    """Alone at a distance, the kurtosis is high, and of 21 raters none can be sqrt 20 deviations from the mean."""
    for count, seen in ((21, False), (22, True)):
        scores = np.zeros((count, 1))
        scores[0] = 1
        assert outliers(scores)[0, 0] == seen


def test_a_rater_who_is_always_too_high_stays() -> None:
    scores = people()
    scores[4] += 2
    found = bt500(raw(scores), Options())
    assert found.raters[4].outlying > 15
    assert not any(rater.rejected for rater in found.raters)


def test_raters_of_whom_nothing_can_be_said() -> None:
    scores: list[list[float]] = [[1, 2, 3, 4], [3, 3, 3, 3], [NAN, 2, NAN, NAN], [1, 3, 2, 4]]
    found = mint(raw(scores), Options())
    reasons = [rater.rejected for rater in found.raters]
    assert reasons == ["", "all 4 ratings are 3: a z-score is not defined", "1 ratings, 2 are needed", ""]
    assert [opinion.count for opinion in found.opinions] == [2, 2, 2, 2]
    assert srcc_with_mean(np.array(scores, np.float64))[1] is None
    nobody = mint(raw([[3, 3], [4, 4]]), Options())
    assert [(opinion.mos, opinion.reason) for opinion in nobody.opinions] == [(None, "no rating is left")] * 2
    same = aigiqa20k(raw([[1, 2, 3], [3, 2, 1]]), UNSCREENED)
    assert {opinion.reason for opinion in same.opinions} == {
        "all pictures have the same mean, which cannot be normalised"
    }


def test_what_differs_by_rounding_is_the_same() -> None:
    """A rater whose sessions are constant has nothing left after eq. 1 but rounding, which is no opinion."""
    others = [[1.0, 2, 3, 1, 2, 3], [1.0, 2, 4, 1, 2, 3], [1.0, 3, 4, 2, 2, 3]]
    found = aigiqa20k(raw([*others, [3.1] * 3 + [4.3] * 3], ("a",) * 3 + ("b",) * 3), Options(False, log_offset=9))
    assert found.raters[3].rejected == "all 6 ratings are alike within each session: a z-score is not defined"
    without = aigiqa20k(raw(others, ("a",) * 3 + ("b",) * 3), Options(False, log_offset=9))
    assert [one.mos for one in found.opinions] == [one.mos for one in without.opinions]
    assert not outliers(np.full((30, 4), 3.1)).any()


SCORES = arrays(np.float64, (4, 6), elements=st.integers(1, 9).map(float))


@settings(deadline=None, max_examples=40)
@given(SCORES, st.integers(0, 3), st.integers(-50, 50), st.sampled_from(["mint", "aigiqa20k"]))
def test_a_constant_shift_of_one_rater_changes_no_z_scored_mos(
    scores: np.ndarray, rater: int, shift: int, method: str
) -> None:
    moved = scores.copy()
    moved[rater] += shift
    before, after = (METHODS[method](raw(each), Options(False, log_offset=9.0)) for each in (scores, moved))
    for first, second in zip(before.opinions, after.opinions, strict=True):
        assert (first.mos is None) == (second.mos is None)
        assert first.mos is None or second.mos == pytest.approx(first.mos, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(SCORES, st.permutations(range(4)), st.permutations(range(6)), st.sampled_from(list(METHODS)))
def test_the_order_of_rows_and_raters_does_not_matter(
    scores: np.ndarray, raters: list[int], pictures: list[int], method: str
) -> None:
    options = Options(least_srcc=-1.0, log_offset=9.0)
    before = METHODS[method](raw(scores), options).opinions
    after = METHODS[method](raw(scores[raters][:, pictures]), options).opinions
    for place, picture in enumerate(pictures):
        first, second = before[picture].mos, after[place].mos
        assert (first is None) == (second is None)
        assert first is None or second == pytest.approx(first, abs=1e-6)


def write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_long_and_wide_form_give_the_same(tmp_path: Path) -> None:
    scores: list[list[float]] = [[1, 2, 3], [2, NAN, 4]]
    long = [
        [f"p{j}", f"r{i}", value]
        for i, row in enumerate(scores)
        for j, value in enumerate(row)
        if not math.isnan(value)
    ]
    wide: list[list[object]] = [[f"p{j}", *("" if math.isnan(row[j]) else row[j] for row in scores)] for j in range(3)]
    first = read_ratings(write(tmp_path / "long.csv", [["image", "subject", "score"], *long]))
    second = read_ratings(write(tmp_path / "wide.csv", [["image", "r0", "r1"], *wide]))
    assert (first.raters, first.pictures) == (second.raters, second.pictures) == (("r0", "r1"), ("p0", "p1", "p2"))
    assert np.array_equal(first.scores, second.scores, equal_nan=True)
    assert np.array_equal(first.scores, np.array(scores), equal_nan=True)


def test_what_is_wrong_with_a_rating_is_said(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["a", "x", 3],
        ["a", "x", 4],
        ["a", "y", "good"],
        ["b", "x", 9],
        ["", "x", 1],
        ["b", "", 1],
        ["b", "y", 2],
    ]
    found = read_ratings(write(tmp_path / "raw.csv", [["image", "rater", "score"], *rows]), scale=Scale(0, 5))
    assert [problem.message for problem in found.problems] == [
        "x rated a before; the first rating counts",
        "y gave a 'good', no finite number; the rating is left out",
        "x gave b 9, outside 0 to 5; the rating is left out",
        "no picture's name; the row is left out",
        "no rater of b; the rating is left out",
    ]
    assert np.array_equal(found.scores, [[3, NAN], [NAN, 2]], equal_nan=True)


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("a,b,c", {}, "has no column for pictures; it has a, b, c"),
        ("image,rater,given", {}, "none of scores; it has image, rater, given"),
        ("image,one", {}, "neither a column of raters"),
        ("image,rater,score", {"score": "points"}, "has no column 'points' for score"),
        ("image,rater,score", {}, "no rating that can be used"),
    ],
)
def test_tables_that_are_no_ratings(header: str, columns: dict[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "raw.csv"
    path.write_text(header + "\n")
    with pytest.raises(EvaluationError, match=words):
        read_ratings(path, columns)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = people(wild=7)
    rows = [[f"p{j}.png", *scores[:, j].round(3)] for j in range(60)]
    path = write(tmp_path / "raw.csv", [["image"] + [f"r{i}" for i in range(28)], *rows])
    out = tmp_path / "new" / "mos.csv"
    assert main(["process", str(path), "--method", "mint", "--out", str(out), "--raters", str(tmp_path / "r.csv")]) == 0
    said = capsys.readouterr().out
    assert "rejected r7: " in said
    assert said.endswith(f"{out}: 60 of 60 pictures, 27 of 28 raters, method mint\n")
    dataset = read(out)  # what evaluate reads
    assert len(dataset.pictures) == 60
    assert dataset.pictures[0].spread["mos"] > 0
    order = [picture.ratings["mos"] for picture in dataset.pictures]
    assert stats.spearmanr(order, scores[[*range(7), *range(8, 28)]].mean(axis=0)).statistic > 0.98
    with (tmp_path / "r.csv").open() as file:
        raters = list(csv.DictReader(file))
    assert [row["rater"] for row in raters if row["rejected"]] == ["r7"]


def test_pictures_without_a_score_are_named_and_in_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[f"p{j}", value, value + 1, value + 2] for j, value in enumerate([0, 2, 2.5, 3])]
    path = write(tmp_path / "raw.csv", [["image", "a", "b", "c"], *rows])
    out = tmp_path / "mos.csv"
    command = ["process", str(path), "--method", "aigiqa20k", "--out", str(out)]
    assert main(command) == 1
    assert "p0 has no score: the mean z-score is -1 or less" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 4
    assert read(out).pictures[0].spread == {}  # that of the z-scores is on another scale
    assert main([*command, "--log-offset", "4"]) == 0
    values = [float(row["mos"]) for row in csv.DictReader(out.open())]
    assert (values[0], values[-1]) == (0, 5)
    assert all(low < high for low, high in pairwise(values))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "mean"], "--method 'mean': known are aigiqa20k, mint, bt500"),
        (["--method", "mint", "--column", "sex=x"], "--column 'sex=x': expected image, rater, score or session"),
        (["--method", "mint", "--scale", "5"], "--scale=5: expected MIN:MAX"),
        ([], "Missing option '--method'"),
    ],
)
def test_wrong_usage(more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "raw.csv", [["image", "a", "b"], ["p", 1, 2]])
    assert main(["process", str(path), "--out", str(tmp_path / "mos.csv"), *more]) == 2
    assert words in capsys.readouterr().err
