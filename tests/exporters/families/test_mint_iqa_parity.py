"""MINT-IQA with the published Q-Former and tower width (four of the tower's blocks) against the authors' numbers.

Through the readers of real checkpoints, from files. Tolerances are those of the fixtures: float32 on a CPU,
|difference| <= atol + rtol * |expected|.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.export import Settings, export
from critiq_exporters.families.mint_iqa.checkpoint import EXPLAINING, SCORING, build_explanation
from critiq_exporters.families.mint_iqa.family import load
from tests.exporters.families.mint_made import (
    SCORES,
    activations,
    check_activations,
    fixture_state,
    watch,
    write_bert,
)
from tests.exporters.families.rule_made import fixture_arrays, needs_fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_fixtures]


def test_the_scores_are_the_authors_in_torch_and_in_the_exported_graphs(tmp_path: Path) -> None:
    """One test for all of it: the checkpoint has 1.2 GB, and so has the bundle."""
    checkpoint = tmp_path / "MINTIQA.safetensors"
    save_file(fixture_state("mint_iqa_scores"), checkpoint)
    write_bert(tmp_path)
    model = load(checkpoint)
    inputs, expected = (fixture_arrays("mint_iqa_scores", kind) for kind in ("inputs", "expected"))
    seen: dict[str, NDArray[Any]] = {}
    vision, scores = model.modules["vision"], model.modules["scores"]
    both = nn.ModuleDict({"vision": vision, "scores": scores})
    hooks = watch(both, activations(SCORING, (0, 1, 11), (0, 3), "scores.transformer"), seen)
    picture, ids, mask = (torch.from_numpy(inputs[name]) for name in ("image_u8", "text_ids", "text_mask"))
    with torch.inference_mode():
        found = scores(vision(picture), ids, mask)
    for values, name in zip(found, SCORES, strict=True):
        np.testing.assert_allclose(values, expected[name], atol=2e-6, rtol=1e-5)
    check_activations(seen, dict(expected), SCORING)
    np.testing.assert_allclose(
        seen[f"{SCORING}.Qformer.bert.encoder.layer.11"], expected["quality_vector"], atol=8e-6, rtol=1e-4
    )
    for hook in hooks:
        hook.remove()

    settings = Settings(
        out=tmp_path / "models",
        name="mint-iqa",
        version="1",
        checkpoint_sha256="0" * 64,
        command="tests",
        picture_count=4,
        max_batch=2,
        threads=2,
    )
    place = export(model, settings).places["fp32"]
    sessions = [open_session(place / f"{stage}.onnx", threads=2) for stage in ("vision", "scores")]
    for batch in (1, 2, 5):
        rows = np.arange(batch) % 2
        features = sessions[0].run(None, {"image": inputs["image_u8"][rows]})[0]
        tokens = {"ids": inputs["text_ids"][rows], "mask": inputs["text_mask"][rows]}
        for values, name in zip(sessions[1].run(None, {"picture": features, **tokens}), SCORES, strict=True):
            np.testing.assert_allclose(values, expected[name][rows], atol=2e-6, rtol=1e-5)


def test_the_explaining_half_gives_the_authors_embeddings(tmp_path: Path) -> None:
    state = fixture_state("mint_iqa_explain")
    checkpoint = tmp_path / "MINTIQA.pt"
    torch.save({name: value for name, value in state.items() if name.startswith(EXPLAINING)}, checkpoint)
    del state
    explaining = build_explanation(read_state(checkpoint))
    inputs, expected = (fixture_arrays("mint_iqa_explain", kind) for kind in ("inputs", "expected"))
    seen: dict[str, NDArray[Any]] = {}
    watch(explaining, activations(EXPLAINING, (0, 1, 11), (0, 3), "transformer"), seen)
    given = [torch.from_numpy(inputs[name]) for name in ("image_u8", "quality_vector", "question_ids", "question_mask")]
    with torch.inference_mode():
        prefix = explaining(*given)
        mixed = explaining.condition(given[1])
    np.testing.assert_allclose(prefix, expected["inputs_llm"], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(mixed, expected["zero_forward"], atol=2e-6)
    check_activations(seen, dict(expected), EXPLAINING)
