"""What tables show of scores and stages that are not the usual ones."""

from __future__ import annotations

from dataclasses import replace

from critiq import types
from critiq.aliases import AliasTarget, ShadowReport
from critiq.cli import aliases, tables


def test_a_degraded_score_is_flagged() -> None:
    score = types.Score("quality", 0.4, 0.5, None, "higher_is_better", "absolute", "m", "1", False, True, "no features")
    assert tables._shown(score).endswith(" (degraded)")


def test_a_stage_tells_which_lmm_it_asks() -> None:
    stage = types.StageInfo("coherence", "lmm", "stored features", 8, "ab", True, "MAGAer13/owl", "question", "stored")
    licence = types.Licence("a", "b", "c")
    model = types.Model("m", "1", "f", "t", "d", "ready", "", True, (), (stage,), licence)
    assert "asks MAGAer13/owl question, if not stored: stored" in "\n".join(tables.model_notes(model))


def test_a_shadows_report_says_of_which_processes_it_does_not_tell() -> None:
    report = ShadowReport("live", AliasTarget("m", "2", 50.0), 0.0, 7, 1, 0)
    assert aliases._notes(report) == ["50 % of answers are offered: 7 scored, 1 left out (no room), 0 failed."]
    partly = replace(report, processes=types.Processes(2, 4, (1, 3)))
    assert aliases._notes(partly)[1:] == ["2 of 4 serving processes answered; these are left out: 1, 3."]
