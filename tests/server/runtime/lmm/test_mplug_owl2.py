"""mPLUG-Owl2's features: the authors' numbers on rule-made weights, the reader, the words, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from critiq_server.bundles.lmm import Backbone, SquareProcessor
from critiq_server.runtime.lmm.base import Instruction
from critiq_server.runtime.lmm.folder import LmmUnavailable, fingerprint
from critiq_server.runtime.lmm.instructions import QUESTIONS, find_instructions, standard_backbone
from critiq_server.runtime.lmm.mplug_owl2 import OwlExtractor, load_network, prepare
from critiq_server.runtime.lmm.mplug_owl2_network import MplugOwl2, Shape
from tests.exporters.families.rule_made import PARITY, cut, fixture_arrays, needs_fixtures, published_state
from tests.support.lmms import OWL_CONFIG, OWL_WIDTH, save_owl

FIXTURE = "mplug_owl2_features"
QUESTIONS_2 = find_instructions(QUESTIONS["mplug-owl2"])


def fixture_state() -> dict[str, Tensor]:
    """The checkpoint of the fixture; embedding tables are made by a rule of their own."""
    state = published_state(FIXTURE)
    table = "model.embed_tokens.weight"
    state[table] = state[table] / 0.7 * np.sqrt(state[table].shape[1]) * 0.02
    return state


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_owl(tmp_path_factory.mktemp("owl"))


def backbone(folder: Path, **changes: Any) -> Backbone:
    base = standard_backbone("mplug-owl2", "tiny-owl", fingerprint(folder), OWL_WIDTH, dtype="float32")
    return base.model_copy(update={"stored": "float32", **changes})


def around(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Token ids before and after the picture's place."""
    place = int(np.flatnonzero(ids[0] == -200)[0])
    return torch.from_numpy(ids[0, :place]), torch.from_numpy(ids[0, place + 1 :])


@needs_fixtures
def test_rule_made_weights_give_the_authors_numbers(tmp_path: Path) -> None:
    """Through the reader of the published layout; every stage on the way too."""
    folder = save_owl(tmp_path, fixture_state(), vocabulary=32000)
    network = load_network(folder, Shape.read({**OWL_CONFIG, "vocab_size": 32000}), torch.float32, torch.device("cpu"))
    inputs, expected = fixture_arrays(FIXTURE, "inputs"), fixture_arrays(FIXTURE, "expected")
    with torch.inference_mode():
        pixels = torch.from_numpy(inputs["pixel_values_fp16"]).float()
        seen = network.picture(pixels)
        tower = network.vision_model(pixels).numpy()
        at = "q1.act.model.vision_model.post_layernorm[:, ::64, :]"
        close(tower[cut(at[at.index("[") :])], expected[at], 5e-5)
        for question, positions in ((1, 95), (2, 100)):
            close(seen.numpy(), expected[f"q{question}.image_features"], 5e-5)
            before, after = around(inputs[f"input_ids_q{question}"])
            hidden = network.hidden(before, seen, after)
            assert hidden.shape[1] == positions
            close(hidden.numpy(), expected[f"q{question}.last_hidden"], 5e-5)
            close(hidden.mean(1).numpy(), expected[f"q{question}.feature"][:, 0], 1e-5)


@needs_fixtures
def test_pictures_are_prepared_as_the_authors_do() -> None:
    inputs, expected = fixture_arrays(FIXTURE, "inputs"), fixture_arrays(FIXTURE, "expected")
    pixels = np.stack([prepare(inputs[name], 448) for name in ("image0_u8", "image1_u8")])
    np.testing.assert_allclose(pixels[:, :, ::16, ::16], expected["pixel_values_float32[:, :, ::16, ::16]"], atol=1e-6)
    np.testing.assert_allclose(pixels, inputs["pixel_values_fp16"], atol=2e-3)


@needs_fixtures
def test_the_full_size_layout_is_accounted_for() -> None:
    layout = json.loads((PARITY / FIXTURE / "layout_full_size.json").read_text())
    sizes = {
        **OWL_CONFIG,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "visual_config": {
            "visual_model": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 448,
                "patch_size": 14,
            },
            "visual_abstractor": {
                "num_learnable_queries": 64,
                "num_hidden_layers": 6,
                "num_attention_heads": 16,
                "intermediate_size": 2816,
            },
        },
    }
    with torch.device("meta"):
        ours = {f"model.{name}": list(value.shape) for name, value in MplugOwl2(Shape.read(sizes)).state_dict().items()}
    theirs = {
        name: shape for name, shape, _ in layout["state_dict"] if "inv_freq" not in name and name[:7] != "lm_head"
    }
    assert ours == theirs


def close(found: NDArray[np.float32], expected: NDArray[np.float32], atol: float) -> None:
    np.testing.assert_allclose(found, expected, atol=atol, rtol=1e-4)


def pictures(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_a_picture_gives_the_same_whatever_it_rides_with(owl: Path) -> None:
    images = pictures((60, 90), (64, 64), (30, 20))
    together = OwlExtractor(owl, backbone(owl), "cpu").extract(images, None, QUESTIONS_2)
    assert together.shape == (3, 2, OWL_WIDTH)
    one_at_a_time = OwlExtractor(owl, backbone(owl), "cpu", batch_tokens=1)
    for row, image in enumerate(images):
        alone = one_at_a_time.extract([image], None, QUESTIONS_2[1:])
        np.testing.assert_allclose(together[row, 1], alone[0, 0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01
    assert np.abs(together[:, 0] - together[:, 1]).max() > 0.01


def test_questions_may_quote_the_prompt(owl: Path) -> None:
    extractor = OwlExtractor(owl, backbone(owl), "cpu")
    images = pictures((64, 64)) * 2
    quoting = [Instruction("quoting", "Does it show {prompt}?")]
    found = extractor.extract(images, ["a cat", "a red house"], quoting)
    plain = extractor.extract(images[:1], None, [Instruction("plain", "Does it show a red house?")])
    np.testing.assert_allclose(found[1], plain[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    with pytest.raises(ValueError, match="quoting quotes the picture's prompt"):
        extractor.extract(images, None, quoting)


def test_torch_files_are_read_too(owl: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((owl / name).read_bytes())
    state = list(load_file(owl / "model.safetensors").items())
    torch.save(dict(state[:50]), tmp_path / "pytorch_model-1-of-2.bin")
    torch.save(dict(state[50:]), tmp_path / "pytorch_model-2-of-2.bin")
    images = pictures((40, 40))
    one, other = (OwlExtractor(folder, backbone(folder), "cpu") for folder in (owl, tmp_path))
    assert np.array_equal(one.extract(images, None, QUESTIONS_2), other.extract(images, None, QUESTIONS_2))


def test_what_is_no_fitting_model_is_refused(owl: Path, tmp_path: Path) -> None:
    def refused(match: str, folder: Path = tmp_path, state: Mapping[str, Tensor] | None = None, **changes: Any) -> None:
        if state is not None:
            save_file(dict(state), folder / "model.safetensors")
        with pytest.raises(LmmUnavailable, match=match):
            OwlExtractor(folder, backbone(owl, **changes), "cpu")

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused("type 'llama', not an mplug_owl2")
    (tmp_path / "config.json").write_text('{"model_type": "mplug_owl2"}')
    refused("does not describe an mPLUG-Owl2: 'visual_config'")
    (tmp_path / "config.json").write_bytes((owl / "config.json").read_bytes())
    refused("64 numbers, the bundle expects 96", width=96)
    refused("pictures of 448 pixels, the bundle expects 224", processor=SquareProcessor(side=224))
    state = load_file(owl / "model.safetensors")
    refused(
        r"lacks 1 parameters, first norm\.weight", state={k: v for k, v in state.items() if k != "model.norm.weight"}
    )
    refused(
        r"model\.norm\.weight .* is \[3\], config\.json says \[64\]",
        state={**state, "model.norm.weight": torch.ones(3)},
    )
    refused(r"holds model\.extra, which mPLUG-Owl2 does not have", state={**state, "model.extra": torch.ones(3)})
    refused(r"tokenizer\.model is not a sentencepiece model", state=state)
    (tmp_path / "model.safetensors").write_bytes((owl / "model.safetensors").read_bytes()[:5000])
    refused("is not a whole safetensors file")
