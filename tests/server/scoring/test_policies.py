"""What a policy decides: properties of the rules, and the cases that documentation promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq import types
from critiq_server.scoring.policies import SEVERITY, Policy, decide

DIMENSIONS = ("quality", "alignment")
decisions = st.sampled_from(get_args(types.Decision))
shares = st.integers(0, 20).map(lambda step: step / 20)
"""Few values, so that scores often meet a threshold exactly."""


def score(dimension: str, value: float | None, **changes: Any) -> types.Score:
    percentile = None if value is None else 100 * value
    plain = types.Score(
        dimension, value or 0.0, value, percentile, "higher_is_better", "absolute", "tiny", "1", from_store=False
    )
    return replace(plain, **changes)


def result(*scores: types.Score, prompt: types.PromptReport | None = None, **image: bool) -> types.ScoreResult:
    return types.ScoreResult(scores, types.ImageReport("PNG", 8, 8, **image), prompt)


def policy(*rules: dict[str, Any], **fields: Any) -> Policy:
    named = [{"name": f"rule {number}", **rule} for number, rule in enumerate(rules)]
    return Policy.model_validate({"name": "p", "version": "1", "rules": named, **fields})


def below(threshold: float, decision: str = "reject", **when: Any) -> dict[str, Any]:
    return {"when": {"dimension": "quality", "below": threshold, **when}, "decision": decision}


comparisons = st.builds(
    lambda dimension, kind, low, high: {
        "dimension": dimension,
        kind: sorted((low, high)) if kind == "between" else low,
    },
    st.sampled_from(DIMENSIONS),
    st.sampled_from(["below", "above", "between"]),
    shares,
    shares,
)
singles = comparisons | st.builds(lambda flag: {"flag": flag}, st.sampled_from(get_args(types.Flag)))
conditions = (
    singles
    | st.lists(singles, min_size=1, max_size=3).map(lambda parts: {"all": parts})
    | st.lists(singles, min_size=1, max_size=3).map(lambda parts: {"any": parts})
)
rules = st.lists(
    st.builds(lambda when, decision: {"when": when, "decision": decision}, conditions, decisions),
    min_size=1,
    max_size=6,
)
results = st.builds(
    lambda values, flags, cut: result(
        *(score(name, value) for name, value in zip(DIMENSIONS, values, strict=True) if value != -1),
        prompt=types.PromptReport(5, 4, True) if cut else None,
        **dict.fromkeys(flags, True),
    ),
    st.tuples(*[shares | st.just(-1) | st.none()] * 2),
    st.sets(st.sampled_from(["resized", "first_frame_only", "colour_converted"])),
    st.booleans(),
)


@settings(deadline=None)
@given(rules, results, decisions, decisions, st.randoms())
def test_the_order_of_the_rules_does_not_change_the_decision(
    entries: list[dict[str, Any]], scored: types.ScoreResult, default: str, missing: str, random: Any
) -> None:
    first = policy(*entries, default=default, missing=missing)
    shuffled = random.sample(first.rules, len(first.rules))
    one, two = decide(first, scored), decide(first.model_copy(update={"rules": tuple(shuffled)}), scored)
    assert one.decision == two.decision
    assert sorted(map(repr, one.reasons)) == sorted(map(repr, two.reasons))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(shares, decisions, st.sampled_from(["calibrated", "percentile", "raw"])), min_size=1, max_size=5
    ),
    shares,
    shares,
)
def test_a_better_score_is_never_judged_more_severely_by_below_rules(
    entries: list[tuple[float, str, str]], one: float, two: float
) -> None:
    made = policy(
        *(
            below(threshold * (100 if scale == "percentile" else 1), decision, scale=scale)
            for threshold, decision, scale in entries
        )
    )
    worse, better = (decide(made, result(score("quality", value))).decision for value in sorted((one, two)))
    assert SEVERITY[better] <= SEVERITY[worse]


@settings(deadline=None)
@given(rules, results, decisions)
def test_the_decision_is_the_most_severe_of_its_reasons(
    entries: list[dict[str, Any]], scored: types.ScoreResult, default: str
) -> None:
    verdict = decide(policy(*entries, default=default), scored)
    ranks = [SEVERITY[reason.decision] for reason in verdict.reasons]
    assert ranks == sorted(ranks, reverse=True)
    assert verdict.decision == (verdict.reasons[0].decision if verdict.reasons else default)


@settings(deadline=None)
@given(shares, shares, shares)
def test_below_between_and_above_leave_no_gap_and_do_not_overlap(value: float, one: float, two: float) -> None:
    low, high = sorted((one, two))
    made = policy(
        below(low),
        {"when": {"dimension": "quality", "between": [low, high]}, "decision": "review"},
        {"when": {"dimension": "quality", "above": high}, "decision": "accept"},
    )
    verdict = decide(made, result(score("quality", value)))
    assert len(verdict.reasons) == 1
    assert verdict.decision == ("reject" if value < low else "accept" if value > high else "review")


def test_a_reason_says_what_was_compared() -> None:
    made = policy({**below(0.35), "reason": "low_quality"}, {"when": {"flag": "resized"}, "decision": "review"})
    verdict = decide(made, result(score("quality", 0.2), resized=True))
    assert verdict.reasons == (
        types.Reason(
            "rule 0",
            "reject",
            "low_quality",
            "quality (calibrated) 0.2 is below 0.35",
            "below",
            "quality",
            "calibrated",
            0.2,
            0.35,
        ),
        types.Reason("rule 1", "review", "rule 1", "resized is set", "flag", flag="resized"),
    )
    assert (verdict.policy, verdict.policy_version, verdict.image is not None) == ("p", "1", True)


def test_all_needs_every_part_and_any_one() -> None:
    parts = [{"dimension": "quality", "below": 0.5}, {"flag": "degraded"}]
    both = policy({"when": {"all": parts}, "decision": "reject"})
    either = policy({"when": {"any": parts}, "decision": "reject"})
    poor, degraded = result(score("quality", 0.1)), result(score("quality", 0.9, degraded=True))
    assert [decide(both, found).decision for found in (poor, degraded)] == ["accept", "accept"]
    assert [decide(either, found).decision for found in (poor, degraded)] == ["reject", "reject"]
    assert decide(both, result(score("quality", 0.1, degraded=True))).decision == "reject"


def test_where_nothing_speaks_the_default_holds() -> None:
    good = {"when": {"dimension": "quality", "above": 0.8}, "decision": "accept"}
    made = policy(good, default="reject")
    assert decide(made, result(score("quality", 0.9))).decision == "accept"
    assert decide(made, result(score("quality", 0.8))).decision == "reject"
    assert decide(made, result(score("quality", 0.8))).reasons == ()


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (result(), "quality: it was not scored"),
        (None, "quality: nobody has the features"),
        (result(score("quality", None)), "the model gives none"),
        (result(score("quality", None, degraded=True, degraded_reason="no features")), "degraded: no features"),
    ],
)
def test_a_missing_score_is_what_the_policy_says(found: types.ScoreResult | None, told: str) -> None:
    failures = {"quality": "nobody has the features"} if found is None else {}
    for missing in get_args(types.Decision):
        verdict = decide(policy(below(0.5), missing=missing, default="accept"), found, failures)
        assert verdict.decision == missing
        (reason,) = verdict.reasons
        assert (reason.kind, reason.code, reason.rule, reason.value) == ("missing", "score_missing", "", None)
        assert told in reason.message


def test_a_degraded_score_has_no_raw_value() -> None:
    made = policy(below(0.5, scale="raw"), missing="review")
    assert decide(made, result(score("quality", 0.1))).decision == "reject"
    assert decide(made, result(score("quality", 0.1, degraded=True))).decision == "review"


@pytest.mark.parametrize("flag", get_args(types.Flag))
def test_every_flag_can_be_asked_for(flag: str) -> None:
    made = policy({"when": {"flag": flag}, "decision": "review"})
    scored = score("quality", 0.5, degraded=flag == "degraded")
    cut = types.PromptReport(9, 4, flag == "prompt_truncated")
    image = {} if flag in ("degraded", "prompt_truncated") else {flag: True}
    assert decide(made, result(scored, prompt=cut, **image)).decision == "review"
    assert decide(made, result(score("quality", 0.5))).decision == "accept"
    assert made.dimensions == ()


def test_without_any_report_a_flag_is_not_known_to_be_unset() -> None:
    made = policy({"when": {"flag": "resized"}, "decision": "review"}, missing="reject")
    (reason,) = decide(made, None).reasons
    assert (reason.decision, reason.kind, reason.dimension) == ("reject", "missing", "")
    assert "resized" in reason.message


def test_values_next_to_a_threshold() -> None:
    made = policy(below(0.3))
    for value, decision in ((0.3, "accept"), (math.nextafter(0.3, 0), "reject"), (math.nextafter(0.3, 1), "accept")):
        assert decide(made, result(score("quality", value))).decision == decision
