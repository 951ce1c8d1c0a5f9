"""Keys are for ever: what is stored under them on one machine is looked up on another, years later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq_server.bundles.lmm import GridProcessor, Lmm, SquareProcessor
from critiq_server.bundles.manifest import NativeView
from critiq_server.features.keys import Key, encoded_key, output_key, pixels_key, prompt_key, stage_digest
from critiq_server.runtime.lmm.base import feature_key
from critiq_server.runtime.lmm.instructions import ask, find_instructions, standard_backbone

RAMP = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (encoded_key(b"a file"), "e2b271438287a0a522bba59110f02611b88ee2f578ada82422d23670cf375a8e"),
        (pixels_key(RAMP), "6c25e45808d146ea7342af98e4b120193fdc20d1dcfc59c8c913c26a1a9c2bce"),
        (prompt_key(""), "e89759a12041fbca472de7950a001c04370ea0b8f40f2a513b5cdb975ffd5003"),
        (prompt_key("a red cat, 猫"), "3cd90c2a92ca26248ae5326ff327b87e798114f57a3ab20d2c4e7079edaa778a"),
        (stage_digest({"b": [1, "é"], "a": None}), "7268228e0bba16213c70bd91b32eb93dd161821329f8b5a79f3b9c66c4a4d2ef"),
        (
            output_key(bytes(32), [b"\1" * 32, b"\2" * 32]),
            "c494197f20a4657148d04229d32d70eb5fa05d9d7cdd330776ce84d8594add6f",
        ),
    ],
)
def test_known_keys(key: Key, expected: str) -> None:
    assert key.hex() == expected


pictures = st.builds(
    lambda height, width, seed: np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10),
)


@given(pictures, pictures)
def test_pixels_have_one_key_each(one: np.ndarray, other: np.ndarray) -> None:
    same = one.shape == other.shape and bool((one == other).all())
    assert (pixels_key(one) == pixels_key(other)) == same


def test_the_shape_counts_and_the_memory_layout_does_not() -> None:
    assert pixels_key(RAMP) != pixels_key(RAMP.reshape(5, 4, 3))
    flipped = np.asfortranarray(RAMP)
    assert pixels_key(RAMP) == pixels_key(flipped)
    assert pixels_key(RAMP[::-1]) == pixels_key(RAMP[::-1].copy()) != pixels_key(RAMP)


@given(st.text(), st.text())
def test_prompts_have_one_key_each(one: str, other: str) -> None:
    try:
        assert (prompt_key(one) == prompt_key(other)) == (one == other)
    except UnicodeEncodeError:
        assert any("\ud800" <= char <= "\udfff" for char in one + other)


keys = st.binary(min_size=32, max_size=32)


@given(keys, st.lists(keys, max_size=3), keys, st.lists(keys, max_size=3))
def test_outputs_have_one_key_for_each_stage_and_inputs_in_their_order(
    stage: Key, inputs: list[Key], other_stage: Key, other_inputs: list[Key]
) -> None:
    same = (stage, inputs) == (other_stage, other_inputs)
    assert (output_key(stage, inputs) == output_key(other_stage, other_inputs)) == same


def test_the_order_of_inputs_matters() -> None:
    one, two = bytes(32), b"\1" * 32
    assert output_key(one, [one, two]) != output_key(one, [two, one])
    assert output_key(one, [one, one]) != output_key(one, [one])


def test_kinds_of_keys_do_not_meet() -> None:
    assert len({encoded_key(b""), prompt_key(""), pixels_key(np.zeros((1, 1, 3), np.uint8)), stage_digest({})}) == 4


def test_a_stage_digest_does_not_depend_on_the_order_of_entries() -> None:
    assert stage_digest({"a": 1, "b": {"c": 2, "d": 3}}) == stage_digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert stage_digest({"a": [1, 2]}) != stage_digest({"a": [2, 1]})


LMM = ask(
    standard_backbone("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", "0" * 64, 4096),
    find_instructions(["eliq-alignment-1"])[0],
)


def test_a_known_key_of_a_feature() -> None:
    """A store that was built today answers in years to come: whatever is added to a manifest must not change this."""
    picture, prompt = pixels_key(RAMP), prompt_key("a red cat")
    assert feature_key(LMM, picture, prompt).hex() == KNOWN_FEATURE


KNOWN_FEATURE = "2657847ad4e48c8980e19209a856ba2dd911946a8ea5d35b428d9a785799b86c"


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "mplug-owl2"},
        {"model": "Qwen/Qwen3-VL-4B-Instruct"},
        {"revision": "0" * 63 + "1"},
        {"template": LMM.template + " "},
        {"feature": "mean"},
        {"width": 2048},
        {"dtype": "float32"},
        {"stored": "bfloat16"},
        {"processor": GridProcessor(max_pixels=500_000)},
        {"processor": SquareProcessor()},
        {"instruction": "eliq-alignment-2"},
        {"text": LMM.text.replace("low or high", "high or low")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_feature_is_in_its_key(change: dict[str, Any]) -> None:
    """Or an old feature would answer for a changed LMM."""
    changed = Lmm.model_validate({**dict(LMM), **change})
    picture, prompt = pixels_key(RAMP), prompt_key("a red cat")
    assert feature_key(changed, picture, prompt) != feature_key(LMM, picture, prompt)


def test_every_field_of_an_lmm_was_tried_above() -> None:
    tried = {"backbone", "model", "revision", "template", "feature", "width", "dtype", "stored", "processor"}
    assert set(Lmm.model_fields) == tried | {"instruction", "text", "layer"}  # the layer has one value only


def test_picture_view_and_prompt_are_in_the_key_and_the_prompt_only_where_it_is_quoted() -> None:
    picture, prompt, other = pixels_key(RAMP), prompt_key("a red cat"), prompt_key("a green dog")
    key = feature_key(LMM, picture, prompt)
    assert feature_key(LMM, pixels_key(RAMP[:2]), prompt) != key
    assert feature_key(LMM, picture, prompt, NativeView(longer_max=512)) != key
    assert feature_key(LMM, picture, other) != key
    technical = LMM.model_copy(update={"instruction": "eliq-technical-1", "text": "Is it sharp?"})
    assert feature_key(technical, picture, other) == feature_key(technical, picture, prompt)
