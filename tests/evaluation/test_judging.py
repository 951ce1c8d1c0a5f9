"""What is compared with what, and that every figure is that of the pictures it claims to be of."""

from __future__ import annotations

import numpy as np
import pytest

from critiq_evaluation.datasets.types import Dataset, Preference, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.judging import judge
from critiq_evaluation.pairing import pair_up
from critiq_evaluation.protocols import Options, plan
from critiq_evaluation.scoring import Asked
from critiq_evaluation.statistics import compare_srcc, measure
from tests.evaluation.made_up import dimension, model, scores

GENERATOR = np.random.default_rng(11)
TRUTH = GENERATOR.uniform(0, 5, 120)
GOOD = TRUTH + GENERATOR.normal(0, 0.5, 120)
POOR = TRUTH + GENERATOR.normal(0, 2.5, 120)
PICTURES = tuple(
    RatedPicture(f"{i}.png", {"quality": float(rating)}, prompt=f"prompt {i % 30}", groups={"generator": "ab"[i % 2]})
    for i, rating in enumerate(TRUTH)
)
DATASET = Dataset("made", {"quality": Scale(0, 5)}, PICTURES)
ASKED = [Asked(picture.image, picture.prompt) for picture in PICTURES]


def answers(name: str, values: np.ndarray, dimension_name: str = "quality") -> dict[Asked, dict[str, float]]:
    return {asked: {dimension_name: float(value)} for asked, value in zip(ASKED, values, strict=True)}


def test_every_figure_is_of_its_pictures() -> None:
    good = scores(model("good", dimension("quality")), answers("good", GOOD))
    plans = [plan("all", DATASET), plan("random", DATASET, Options(repeats=3))]
    entry = judge(DATASET, [good], plans, resamples=200).comparisons[0]

    assert entry.whole.agreement == measure(GOOD, TRUTH)
    assert entry.whole.srcc_interval is not None
    assert entry.whole.srcc_interval.low < entry.whole.agreement.srcc < entry.whole.srcc_interval.high  # type: ignore[operator]
    assert entry.plans[0].rows[0].agreement == entry.whole.agreement
    for row, part in zip(entry.plans[1].repeats, plans[1].repeats, strict=True):
        chosen = [int(picture.image.removesuffix(".png")) for picture in part.pictures]
        assert row.agreement == measure(GOOD[chosen], TRUTH[chosen])
    medians = [row.agreement.srcc for row in entry.plans[1].repeats]
    assert entry.plans[1].spread["srcc"].median == pytest.approx(np.median(medians))
    assert entry.plans[1].spread["srcc"].deviation == pytest.approx(np.std(medians))
    assert [row.agreement for row in entry.groups["generator"]] == [
        measure(GOOD[::2], TRUTH[::2]),
        measure(GOOD[1::2], TRUTH[1::2]),
    ]
    assert entry.ranking is not None
    assert entry.ranking.groups == 30
    assert entry.points[7].score_rank == pytest.approx((GOOD[7] > GOOD).sum() / 119)


def test_two_models_are_compared_on_the_pictures_that_both_scored() -> None:
    good = scores(model("good", dimension("quality")), answers("good", GOOD))
    known = dict(list(answers("poor", POOR).items())[:100])
    errors = dict.fromkeys(ASKED[100:], "the server said no")
    poor = scores(model("poor", dimension("quality")), known, errors)
    found = judge(DATASET, [good, poor], [plan("all", DATASET)], resamples=200)
    assert [entry.whole.missing for entry in found.comparisons] == [0, 20]
    assert found.comparisons[1].failures == {f"{i}.png": "the server said no" for i in range(100, 120)}
    versus = found.versus[0]
    assert versus.count == 100
    assert versus.difference == compare_srcc(
        GOOD[:100], POOR[:100], TRUTH[:100], contents=[one.prompt for one in ASKED[:100]], resamples=200
    )
    assert versus.difference.contents == 30
    assert versus.adjusted == versus.difference.p_value


def test_lower_is_better_on_either_side_is_turned_round() -> None:
    niqe = scores(model("niqe", dimension("quality", "lower_is_better")), answers("niqe", -GOOD))
    entry = judge(DATASET, [niqe], [], resamples=0).comparisons[0]
    assert entry.negated
    assert entry.whole.agreement.srcc == pytest.approx(measure(GOOD, TRUTH).srcc)

    worse = Dataset("dmos", {"quality": Scale(0, 5, higher_is_better=False)}, PICTURES)
    entry = judge(worse, [niqe], [], resamples=0).comparisons[0]
    assert entry.rating_negated
    assert entry.whole.agreement.srcc == pytest.approx(-measure(GOOD, TRUTH).srcc)  # type: ignore[operator]


def test_constant_scores_are_no_number() -> None:
    flat = scores(model("flat", dimension("quality")), answers("flat", np.ones(120)))
    good = scores(model("good", dimension("quality")), answers("good", GOOD))
    found = judge(DATASET, [flat, good], [plan("random", DATASET, Options(repeats=2))], resamples=100)
    assert found.comparisons[0].whole.agreement.srcc is None
    assert "all 120 scores are 1" in found.comparisons[0].whole.agreement.reason
    assert found.comparisons[0].plans[0].spread == {}
    assert found.versus[0].difference.difference is None
    assert found.versus[0].adjusted is None


def test_scores_that_are_not_numbers_are_left_out_and_named() -> None:
    values = GOOD.copy()
    values[3] = np.nan
    entry = judge(
        DATASET, [scores(model("m", dimension("quality")), answers("m", values))], [], resamples=0
    ).comparisons[0]
    assert entry.whole.missing == 1
    assert entry.whole.agreement == measure(np.delete(GOOD, 3), np.delete(TRUTH, 3))
    assert entry.failures == {"3.png": "the model gave nan"}


def test_a_model_that_fails_on_every_picture_has_no_figures() -> None:
    failed = scores(model("m", dimension("quality")), {}, dict.fromkeys(ASKED, "out of order"))
    found = judge(DATASET, [failed], [plan("random", DATASET, Options(repeats=2))])
    assert found.comparisons[0].whole.missing == 120
    assert "0 pictures" in found.comparisons[0].whole.agreement.reason
    assert len(found.comparisons[0].failures) == 120


def test_preferences() -> None:
    pairs = tuple(
        Preference(f"{i}.png", f"{j}.png", PICTURES[i].prompt, {"set": "xy"[i % 2]})
        for i in range(0, 30)
        for j in range(i + 30, 120, 30)
    )
    values = answers("m", GOOD)
    missing = values.pop(ASKED[60])
    assert missing
    made = Dataset("pairs", {}, preferences=pairs)
    found = judge(made, [scores(model("m", dimension("quality")), values)], [])
    entry = found.preferences[0]
    expected = [GOOD[int(p.better[:-4])] > GOOD[int(p.worse[:-4])] for p in pairs if p.worse != "60.png"]
    assert entry.accuracy.pairs == len(expected) == 89
    assert entry.accuracy.accuracy == pytest.approx(np.mean(expected))
    assert entry.missing == 1
    assert {name: one.pairs for name, one in entry.groups["set"].items()} == {"x": 44, "y": 45}


def test_nothing_scored_is_an_error_with_its_reason() -> None:
    made = Dataset("pairs", {}, preferences=(Preference("0.png", "1.png"),))
    failed = dict.fromkeys([Asked("0.png"), Asked("1.png")], "cannot read it")
    with pytest.raises(EvaluationError, match="no picture of pairs was scored; the first error was: cannot read it"):
        judge(made, [scores(model("m", dimension("quality")), {}, failed)], [])


def test_dimensions_and_ratings_are_paired_by_name_and_as_told() -> None:
    made = Dataset("d", {"quality": Scale(0, 5), "alignment": Scale(0, 5), "mos": Scale(0, 5)}, PICTURES)
    built_in = model("m", *map(dimension, ("visual_quality", "technical", "alignment")))
    found = {pair.rating: pair for pair in pair_up(built_in, made)}
    assert {rating: pair.dimension for rating, pair in found.items()} == {
        "quality": "visual_quality",
        "alignment": "alignment",
        "mos": "visual_quality",
    }
    assert "nearest to quality" in found["quality"].why
    told = pair_up(built_in, made, ["technical=quality", "of_another_model=mos"])
    assert [(pair.dimension, pair.rating, pair.why) for pair in told] == [("technical", "quality", "as told")]
    only = pair_up(model("m", dimension("beauty")), made)
    assert [(pair.dimension, pair.rating) for pair in only] == [("beauty", "quality")]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["quality"], "not of the form DIMENSION=RATING"),
        (["quality=beauty"], "no rating 'beauty'; it has quality"),
        (["beauty=quality"], "nothing to compare: the model m has a, b, the dataset made has quality; .* --map"),
        ([], "nothing to compare"),
    ],
)
def test_pairs_that_cannot_be_are_refused(wanted: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        pair_up(model("m", dimension("a"), dimension("b")), DATASET, wanted)
