"""What tables show of scores and stages that are not the usual ones."""

from __future__ import annotations

from critiq import types
from critiq.cli import tables


def test_a_degraded_score_is_flagged() -> None:
    score = types.Score("quality", 0.4, 0.5, None, "higher_is_better", "absolute", "m", "1", False, True, "no features")
    assert tables._shown(score).endswith(" (degraded)")


def test_a_stage_tells_which_lmm_it_asks() -> None:
    stage = types.StageInfo("coherence", "lmm", "stored features", 8, "ab", True, "MAGAer13/owl", "question", "stored")
    licence = types.Licence("a", "b", "c")
    model = types.Model("m", "1", "f", "t", "d", "ready", "", True, (), (stage,), licence)
    assert "asks MAGAer13/owl question, if not stored: stored" in "\n".join(tables.model_notes(model))
