"""A shadow's statistics, held against scipy's and numpy's."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from scipy import stats

from critiq.aliases import Alias, AliasRoute, AliasTarget, ShadowFlip
from critiq.types import ImageReport, Processes, Score, ScoreResult
from critiq_server.others import Replies
from critiq_server.routing.agreement import Agreement, rank_correlation
from critiq_server.scoring.policies import Policy

ALIAS = Alias("default", AliasRoute((AliasTarget("m", "1"),), since=5.0), AliasTarget("m", "2", 50))
POLICY = {
    "name": "gallery",
    "version": "1",
    "rules": [{"name": "poor", "when": {"dimension": "quality", "below": 0.5}, "decision": "reject"}],
}


def result(version: str, value: float, dimension: str = "quality", **changes: object) -> ScoreResult:
    values: dict[str, object] = {"raw": 10 * value, "calibrated": value, "percentile": None, **changes}
    score = Score(
        dimension=dimension,
        direction="higher_is_better",
        scope="absolute",
        model="m",
        model_version=version,
        from_store=False,
        **values,  # type: ignore[arg-type]
    )
    return ScoreResult((score,), ImageReport("PNG", 20, 20))


@pytest.mark.parametrize("decimals", [9, 1, 0])
def test_rank_correlation_is_spearmans_with_ties_too(decimals: int) -> None:
    random = np.random.default_rng(7)
    first = random.normal(size=500).round(decimals)
    second = (first + random.normal(size=500)).round(decimals)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.ones(500)) is None
    assert rank_correlation(first[:1], second[:1]) is None


def test_means_and_spread_are_those_of_all_pictures_and_correlation_that_of_the_last() -> None:
    random = np.random.default_rng(3)
    served = random.uniform(size=300)
    candidate = served**2 + 1e6  # far from 0: sums of squares would lose the digits
    agreement = Agreement(ALIAS, (), {}, window=100)
    for ours, theirs in zip(served, candidate, strict=True):
        agreement.add(result("1", ours), result("2", theirs))
    report = agreement.report()
    assert (report.alias, str(report.candidate), report.since, report.scored) == ("default", "m:2", 5.0, 300)
    (pair,) = report.pairs
    (found,) = pair.dimensions
    assert (str(pair.served), pair.scored, found.scale, found.count, found.window) == (
        "m:1",
        300,
        "calibrated",
        300,
        100,
    )
    assert found.served_mean == pytest.approx(served.mean())
    assert found.mean_shift == pytest.approx((candidate - served).mean())
    assert found.difference_stddev == pytest.approx((candidate - served).std(ddof=1), rel=1e-6)
    assert found.srcc == pytest.approx(stats.spearmanr(served[-100:], candidate[-100:]).statistic)


def test_processes_together_know_what_one_with_all_pictures_would() -> None:
    random = np.random.default_rng(5)
    served = random.uniform(size=300)
    candidate = served**2 + random.normal(scale=0.1, size=300)
    whole = Agreement(ALIAS, (), {"quality": 0.3}, window=100)
    parts = [Agreement(ALIAS, (), {"quality": 0.3}, window=100) for _ in range(3)]
    for at, (ours, theirs) in enumerate(zip(served.tolist(), candidate.tolist(), strict=True)):
        part = parts[0] if at % 10 else parts[1]  # the third gets nothing
        for agreement in (whole, part):
            agreement.add(result("3" if at % 7 == 0 else "1", ours), result("2", theirs))
    parts[1].dropped, parts[1].failed, parts[1].last_failure = 4, 1, "why"
    dumps = [orjson.loads(orjson.dumps(part.dump())) for part in parts]
    processes = Processes(3, 3)
    for part, others in ((parts[0], dumps[1:]), (parts[2], dumps[:2])):
        found = part.with_others(others, processes)
        assert (found.scored, found.dropped, found.failed, found.last_failure) == (300, 4, 1, "why")
        assert found.processes == processes
        expected = {pair.served: pair for pair in whole.report().pairs}
        assert len(found.pairs) == len(expected) == 2
        for pair in found.pairs:
            (one,), (other,) = pair.dimensions, expected[pair.served].dimensions
            assert (one.count, one.window) == (other.count, other.window)
            assert one.srcc == pytest.approx(other.srcc), "of the last 100 of all, whoever scored them"
            assert one.mean_shift == pytest.approx(other.mean_shift)
            assert one.difference_stddev == pytest.approx(other.difference_stddev, rel=1e-6)
            assert pair.decisions == expected[pair.served].decisions


def test_what_another_process_knows_of_another_candidate_does_not_count() -> None:
    moved = Alias("default", AliasRoute((AliasTarget("m", "1"),), since=6.0), AliasTarget("m", "2", 50))
    agreement = Agreement(ALIAS, (), {}, window=100)
    replies = Replies({1: Agreement(moved, (), {}, window=100).dump(), 2: agreement.dump()}, Processes(3, 4, (3,)))
    others, processes = replies.read(agreement.fitting)
    assert (len(others), processes) == (1, Processes(2, 4, (1, 3)))


def test_decisions_of_policies_and_thresholds_that_differ_are_counted_by_kind() -> None:
    mine = Policy.model_validate(POLICY)
    others = Policy.model_validate({**POLICY, "name": "others", "model": "another"})
    lacking = Policy.model_validate(
        {**POLICY, "name": "lacking", "rules": [{**POLICY["rules"][0], "when": {"dimension": "depth", "below": 0.5}}]}  # type: ignore[dict-item, index]
    )
    agreement = Agreement(ALIAS, (mine, others, lacking), {"quality": 0.3}, window=100)
    for ours, theirs in ((0.6, 0.7), (0.6, 0.4), (0.6, 0.4), (0.4, 0.6), (0.2, 0.4)):
        agreement.add(result("1", ours), result("2", theirs))
    policy, threshold = sorted(agreement.report().pairs[0].decisions, key=lambda entry: entry.rule)
    assert (policy.rule, policy.count, policy.flips) == ("policy gallery 1", 5, 3)
    assert policy.changes == (ShadowFlip("accept", "reject", 2), ShadowFlip("reject", "accept", 1))
    assert (threshold.rule, threshold.count, threshold.flips) == ("quality >= 0.3", 5, 1)
    assert threshold.changes == (ShadowFlip("missed", "reached", 1),)


def test_what_does_not_compare_is_left_out() -> None:
    agreement = Agreement(ALIAS, (), {}, window=100)
    agreement.add(result("1", 0.5), result("2", 0.5, degraded=True))
    assert agreement.report().pairs[0].dimensions == ()
    agreement.add(result("1", 0.5), result("2", 0.6, calibrated=None))
    (found,) = agreement.report().pairs[0].dimensions
    assert (found.scale, found.served_mean, found.mean_shift, found.srcc, found.difference_stddev) == (
        "raw",
        5.0,
        pytest.approx(1.0),
        None,
        None,
    )


def test_versions_of_a_split_are_kept_apart() -> None:
    agreement = Agreement(ALIAS, (), {}, window=100)
    agreement.add(result("1", 0.5), result("2", 0.6))
    agreement.add(result("3", 0.5), result("2", 0.6))
    assert [str(pair.served) for pair in agreement.report().pairs] == ["m:1", "m:3"]
