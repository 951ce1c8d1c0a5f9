"""CNN-IQA: numbers of the public code at full size, in torch and in the served bundle, at several sizes of picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.cnn_iqa.family import VIEW, build, load
from critiq_server.images.views import apply_view
from tests.exporters.families.rule_made import PARITY, fixture_arrays, needs_fixtures, rule_made
from tests.support.servers import server_process

LAYOUT = {
    "conv1.weight": (5, 3, 7, 7),
    "conv1.bias": (5,),
    "fc1.weight": (8, 10),
    "fc1.bias": (8,),
    "fc2.weight": (6, 8),
    "fc2.bias": (6,),
    "fc3.weight": (1, 6),
    "fc3.bias": (1,),
}


def tiny_state() -> dict[str, Tensor]:
    """A small checkpoint in the public layout."""
    return {name: rule_made(name, shape) for name, shape in LAYOUT.items()}


@needs_fixtures
def test_the_public_codes_scores_through_the_reader_in_torch_and_onnxruntime(tmp_path: Path) -> None:
    checkpoint = tmp_path / "cnniqa.pth"
    layout = json.loads((PARITY / "pyiqa_cnniqa" / "layout.json").read_text())["state_dict"]
    torch.save({"params": {name: rule_made(name, tuple(shape)) for name, shape, _ in layout}}, checkpoint)
    assert main(["cnn-iqa", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "models"), "--count", "4"]) == 0
    network = build(read_state(checkpoint))
    session = open_session(tmp_path / "models" / "cnn-iqa" / "1" / "network.onnx", threads=1)
    expected = fixture_arrays("pyiqa_cnniqa", "expected")
    images = fixture_arrays("pyiqa_cnniqa", "inputs")["image_u8"]
    seen: dict[str, Tensor] = {}
    for theirs, layer in (("act.fc1", network.first), ("act.fc2", network.second)):
        layer.register_forward_hook(lambda module, inputs, output, theirs=theirs: seen.update({theirs: output}))
    for batch in (1, 2, 5):
        rows = np.arange(batch) % 2
        with torch.inference_mode():
            score = network(torch.from_numpy(images[rows]))
        np.testing.assert_allclose(score, expected["score"][rows, 0], atol=1e-6, rtol=0)
        np.testing.assert_allclose(session.run(None, {"image": images[rows]})[0], score, atol=1e-6, rtol=0)
        for name, activation in seen.items():
            np.testing.assert_allclose(activation, expected[name][rows], atol=1e-5, rtol=1e-5)
    odd = np.ascontiguousarray(images[:1, 3:, :101])
    with torch.inference_mode():
        np.testing.assert_allclose(
            session.run(None, {"image": odd})[0], network(torch.from_numpy(odd)), atol=1e-6, rtol=0
        )


def test_a_bundle_serves_pictures_of_several_sizes(tmp_path: Path) -> None:
    checkpoint, models = tmp_path / "tiny.pt", tmp_path / "models"
    torch.save(tiny_state(), checkpoint)
    command = ["cnn-iqa", "--checkpoint", str(checkpoint), "--out", str(models), "--count", "6", "--max-batch", "3"]
    assert main([*command, "--better", "lower"]) == 0
    network = build(read_state(checkpoint))
    pictures = [*drawn_pictures(8)[4:], np.zeros((20, 30, 3), np.uint8), np.full((150, 2900, 3), 99, np.uint8)]
    with torch.inference_mode():
        expected = [float(network(torch.from_numpy(np.stack([apply_view(picture, VIEW)])))) for picture in pictures]
    assert len(set(expected)) > 4
    flags = ["--models", str(models), "--default", "cnn-iqa", "--load", "cnn-iqa"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc) as client:
        results = [client.score(picture) for picture in pictures]
        batch = [item.unwrap()["visual_quality"].raw for item in client.score_batch(pictures)]
    np.testing.assert_allclose([result["visual_quality"].raw for result in results], expected, atol=1e-6)
    np.testing.assert_allclose(batch, expected, atol=1e-6)
    assert [result.image.resized for result in results] == [False] * 4 + [True] * 2


def test_a_checkpoint_of_something_else_is_refused_with_the_list() -> None:
    state = tiny_state() | {"fc3.weight": torch.zeros(2, 6), "head.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        build(state)
    assert "fc3.weight is [2, 6], should be [1, 6]" in str(caught.value)
    assert "unknown: 1 parameters\n    head.bias" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing: 8 parameters"):
        build({"weight": torch.zeros(3)})


def test_what_is_better_is_the_callers_to_say(tmp_path: Path) -> None:
    torch.save(tiny_state(), tmp_path / "tiny.pt")
    assert load(tmp_path / "tiny.pt").dimensions[0].direction == "higher_is_better"
    assert load(tmp_path / "tiny.pt", better="lower").dimensions[0].direction == "lower_is_better"
    assert load(tmp_path / "tiny.pt", better="lower").options == {"better": "lower"}
