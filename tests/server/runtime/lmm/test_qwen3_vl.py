"""Qwen3-VL's features: those of separate full passes, whatever the batch, and what must not be served is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from critiq_server.bundles.lmm import Backbone, GridProcessor
from critiq_server.runtime.lmm.base import Instruction, rounded
from critiq_server.runtime.lmm.folder import LmmUnavailable, fingerprint
from critiq_server.runtime.lmm.instructions import QUESTIONS, find_instructions, standard_backbone
from critiq_server.runtime.lmm.qwen3_vl import QwenExtractor
from tests.support.lmms import QWEN_WIDTH, byte_tokenizer, save_qwen

QUESTIONS_3 = find_instructions(QUESTIONS["qwen3-vl"])
BOUNDS = {"min_pixels": 32 * 32, "max_pixels": 160 * 160}
TOLERANCE = 1e-4
"""Shared against separate passes, float32 with torch's fused attention: hidden states are up to 3 in size."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def backbone(folder: Path, **changes: Any) -> Backbone:
    base = standard_backbone("qwen3-vl", "tiny", fingerprint(folder), QWEN_WIDTH, dtype="float32", **BOUNDS)
    return base.model_copy(update={"stored": "float32", **changes})


@pytest.fixture(scope="module")
def extractor(folder: Path) -> QwenExtractor:
    return QwenExtractor(folder, backbone(folder), "cpu")


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def separate_pass(folder: Path, picture: NDArray[np.uint8], text: str) -> tuple[Any, int]:
    """One question, the whole conversation in one pass, as transformers computes it; hidden states and length."""
    model = Qwen3VLModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = byte_tokenizer([])
    size = {"shortest_edge": BOUNDS["min_pixels"], "longest_edge": BOUNDS["max_pixels"]}
    half = [0.5] * 3
    processor = Qwen2VLImageProcessorPil(size=size, image_mean=half, image_std=half, patch_size=16)
    prepared = processor([picture], return_tensors="pt")
    grid = prepared["image_grid_thw"]
    config = model.config
    im_start = config.vision_start_token_id - 2
    pads = [config.image_token_id] * (int(grid.prod()) // 4)
    ids = [im_start, *tokenizer.encode("user\n").ids, config.vision_start_token_id, *pads, config.vision_end_token_id]
    ids += [*tokenizer.encode(text).ids, im_start + 1, *tokenizer.encode("\n").ids, im_start]
    ids += tokenizer.encode("assistant\n").ids
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        out = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == config.image_token_id).int(),
            pixel_values=prepared["pixel_values"],
            image_grid_thw=grid,
        )
    return out.last_hidden_state[0].numpy(), len(ids)


def test_shared_prefixes_give_what_separate_passes_give(folder: Path, extractor: QwenExtractor) -> None:
    images, prompts = pictures((96, 128), (70, 40)), ["a cat", "two red houses on a hill"]
    found = extractor.extract(images, prompts, QUESTIONS_3)
    for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        for column, question in enumerate(QUESTIONS_3):
            hidden, _ = separate_pass(folder, image, question.text.replace("{prompt}", prompt))
            np.testing.assert_allclose(found[row, column], hidden[-1], atol=TOLERANCE)
    assert np.abs(found).max() > 1
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.1


def test_the_mean_is_over_all_positions(folder: Path) -> None:
    extractor = QwenExtractor(folder, backbone(folder, feature="mean"), "cpu")
    (image,) = pictures((96, 64))
    found = extractor.extract([image], ["x"], QUESTIONS_3)
    for column, question in enumerate(QUESTIONS_3):
        hidden, _ = separate_pass(folder, image, question.text.replace("{prompt}", "x"))
        np.testing.assert_allclose(found[0, column], hidden.mean(0), atol=TOLERANCE)


def test_a_picture_gives_the_same_whatever_it_rides_with(folder: Path, extractor: QwenExtractor) -> None:
    images = pictures((96, 128), (64, 64), (98, 126), (64, 64), (200, 320))
    prompts = ["a", "bb", "a long prompt of many words", "", "e"]
    together = extractor.extract(images, prompts, QUESTIONS_3)
    for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        alone = extractor.extract([image], [prompt], QUESTIONS_3[2:])
        np.testing.assert_allclose(together[row, 2], alone[0, 0], atol=TOLERANCE)
    few_at_a_time = QwenExtractor(folder, backbone(folder), "cpu", batch_tokens=1)
    np.testing.assert_allclose(few_at_a_time.extract(images, prompts, QUESTIONS_3), together, atol=TOLERANCE)


def test_buckets_are_grids_of_tokens(extractor: QwenExtractor) -> None:
    assert extractor.bucket(96, 128) == (3, 4) == extractor.bucket(98, 126)
    assert extractor.bucket(1000, 1000) == (5, 5)


def test_most_tokens_of_a_large_picture_are_computed_once(folder: Path) -> None:
    """1024 x 1024: 1,024 visual tokens, and questions of about 60 tokens, as long as real ones."""
    extractor = QwenExtractor(folder, backbone(folder, processor=GridProcessor()), "cpu")
    questions = [Instruction(str(number), "x" * 45) for number in range(3)]
    count = extractor.count_tokens(pictures((1024, 1024)), None, questions)
    assert count.separate / count.shared > 2.5


def test_marks_in_a_prompt_are_plain_text(extractor: QwenExtractor) -> None:
    (image,) = pictures((64, 64))
    mark = extractor.count_tokens([image], ["<|im_end|>"], QUESTIONS_3[2:]).shared
    plain = extractor.count_tokens([image], ["x" * len("<|im_end|>")], QUESTIONS_3[2:]).shared
    assert mark == plain


def test_a_question_that_quotes_the_prompt_needs_one(extractor: QwenExtractor) -> None:
    with pytest.raises(ValueError, match="eliq-alignment-1 quotes the picture's prompt"):
        extractor.extract(pictures((64, 64)), None, QUESTIONS_3)


def test_features_are_rounded_to_what_the_store_keeps(folder: Path) -> None:
    images = pictures((64, 64))
    exact = QwenExtractor(folder, backbone(folder), "cpu").extract(images, None, QUESTIONS_3[:1])
    half = QwenExtractor(folder, backbone(folder, stored="float16"), "cpu").extract(images, None, QUESTIONS_3[:1])
    assert np.array_equal(half, half.astype(np.float16))
    assert np.array_equal(half, rounded(exact, "float16"))


def test_what_is_no_fitting_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LmmUnavailable, match="holds no weights"):
        fingerprint(tmp_path)
    with pytest.raises(LmmUnavailable, match=r"config\.json cannot be read"):
        QwenExtractor(tmp_path, backbone(folder), "cpu")
    with pytest.raises(LmmUnavailable, match="hidden states of 48 numbers, the bundle expects 64"):
        QwenExtractor(folder, backbone(folder, width=64), "cpu")
    with pytest.raises(LmmUnavailable, match="'cuda:7', which torch cannot use"):
        QwenExtractor(folder, backbone(folder), "cuda:7")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LmmUnavailable, match="type 'llama', not a qwen3_vl"):
        QwenExtractor(tmp_path, backbone(folder), "cpu")


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(LmmUnavailable, match="cannot be loaded as a Qwen3-VL"):
        QwenExtractor(tmp_path, backbone(folder), "cpu")


def test_a_checkpoint_with_a_part_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.language_model.layers.1.mlp.up_proj.weight"]
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LmmUnavailable, match=r"lacks 1 parameters, first .*up_proj"):
        QwenExtractor(tmp_path, backbone(folder), "cpu")
