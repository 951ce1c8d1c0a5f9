"""MINT-IQA's scores: numbers of the authors' code in torch, in onnxruntime and from a server, and bad checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.families.mint_iqa.checkpoint import (
    EXPLAINING,
    LANGUAGE_MODEL,
    SCORING,
    build_explanation,
    build_scores,
    explaining_names,
    read_shape,
    scoring_names,
    unused,
)
from critiq_exporters.families.mint_iqa.family import load
from critiq_exporters.families.mint_iqa.network import Explanation, MintIqa, Shape
from critiq_exporters.families.mint_iqa.tokens import prompt_tokenizer
from critiq_server.bundles.model import read_manifest
from tests.exporters.families.clip_made import write_bert_vocabulary
from tests.exporters.families.mint_made import (
    SCORES,
    SMALL,
    activations,
    check_activations,
    fixture_state,
    prompt_of,
    small_state,
    watch,
    write_bert,
)
from tests.exporters.families.rule_made import PARITY, fixture_arrays, needs_fixtures
from tests.support.servers import server_process

TINY = "mint_iqa_scores_tiny"
HEADS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint beside its tokenizer, and the bundle that ``critiq export mint-iqa`` makes of it."""
    if not PARITY.is_dir():
        pytest.skip("the fixtures made with the authors' code are not here")
    folder = tmp_path_factory.mktemp("mint")
    torch.save(fixture_state(TINY), folder / "MINTIQA.pt")
    write_bert(folder)
    command = ["mint-iqa", "--checkpoint", str(folder), "--heads", str(HEADS), "--out", str(folder / "models")]
    assert main([*command, "--count", "4", "--max-batch", "5"]) == 0
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> MintIqa:
    return build_scores(read_state(folder / "MINTIQA.pt"), HEADS)


def rows(batch: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.intp]]:
    """The fixture's two pictures and prompts in turns, and which of the two each is."""
    numbers = np.arange(batch) % 2
    inputs = fixture_arrays(TINY, "inputs")
    return {name: inputs[name][numbers] for name in ("image_u8", "text_ids", "text_mask")}, numbers


@needs_fixtures
def test_the_network_sees_the_authors_input(network: MintIqa) -> None:
    inputs = fixture_arrays(TINY, "inputs")
    pixels = torch.from_numpy(inputs["image_u8"]).permute(0, 3, 1, 2).to(torch.float32) / 255
    seen = (pixels - network.vision.mean) / network.vision.std
    np.testing.assert_allclose(seen, inputs["image"], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_torch_gives_the_authors_numbers(network: MintIqa, batch: int) -> None:
    inputs, numbers = rows(batch)
    expected = fixture_arrays(TINY, "expected")
    picture, ids, mask = (torch.from_numpy(inputs[name]) for name in ("image_u8", "text_ids", "text_mask"))
    with torch.inference_mode():
        features = network.vision(picture)
        seen = network.scores.represent(features, ids, mask)
        scores = network.scores(features, ids, mask)
    np.testing.assert_allclose(seen, expected["quality_vector"][numbers], atol=8e-6, rtol=1e-4)
    for found, name in zip(scores, SCORES, strict=True):
        np.testing.assert_allclose(found, expected[name][numbers], atol=2e-6, rtol=1e-5)


def test_every_layer_agrees(folder: Path) -> None:
    network = build_scores(read_state(folder / "MINTIQA.pt"), HEADS)
    seen: dict[str, NDArray[Any]] = {}
    watch(network, activations(SCORING, (0, 1, 3), (0, 2), "scores.transformer"), seen)
    inputs, _ = rows(2)
    with torch.inference_mode():
        features = network.vision(torch.from_numpy(inputs["image_u8"]))
        network.scores(features, *(torch.from_numpy(inputs[name]) for name in ("text_ids", "text_mask")))
    check_activations(seen, dict(fixture_arrays(TINY, "expected")), SCORING)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_exported_graphs_give_the_authors_scores(folder: Path, batch: int) -> None:
    place = folder / "models" / "mint-iqa" / "1"
    vision, scores = (open_session(place / f"{stage}.onnx", threads=1) for stage in ("vision", "scores"))
    inputs, numbers = rows(batch)
    features = vision.run(None, {"image": inputs["image_u8"]})[0]
    for length in (35, 24):  # padding makes no difference
        tokens = {"ids": inputs["text_ids"][:, :length], "mask": inputs["text_mask"][:, :length]}
        found = scores.run(None, {"picture": features, **tokens})
        for values, name in zip(found, SCORES, strict=True):
            wanted = fixture_arrays(TINY, "expected")[name][numbers]
            np.testing.assert_allclose(values, wanted, atol=2e-6, rtol=1e-5)


def test_a_served_picture_is_looked_at_once_for_several_prompts(folder: Path, tmp_path: Path) -> None:
    """From pictures and text to the authors' scores; each picture with its own prompt and with the other's."""
    inputs, expected = fixture_arrays(TINY, "inputs"), fixture_arrays(TINY, "expected")
    prompts = [prompt_of(ids) for ids in inputs["text_ids"]]
    flags = ["--models", str(folder / "models"), "--default", "mint-iqa", "--load", "mint-iqa"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc) as client:
        own = [client.score(picture, prompt) for picture, prompt in zip(inputs["image_u8"], prompts, strict=True)]
        swapped = [
            client.score(picture, prompt) for picture, prompt in zip(inputs["image_u8"], prompts[::-1], strict=True)
        ]
        with urlopen(server.metrics) as page:  # noqa: S310 - our own server
            metrics = page.read().decode()
    for row, (name, key) in enumerate(zip(("quality", "authenticity", "correspondence"), SCORES, strict=True)):
        np.testing.assert_allclose([result[name].raw for result in own], expected[key], atol=2e-6, rtol=1e-5)
        wanted = expected["scores_texts_swapped"][row]
        np.testing.assert_allclose([result[name].raw for result in swapped], wanted, atol=2e-6, rtol=1e-5)
    computed = {
        stage: float(re.findall(rf'critiq_batch_size_sum\{{.*stage="{stage}".*\}} (\S+)', metrics)[0])
        for stage in ("vision", "scores")
    }
    assert computed == {"vision": 2, "scores": 4}
    calibrated = own[0]["quality"].calibrated
    assert calibrated == pytest.approx(min(1.0, max(0.0, expected[SCORES[0]][0])), abs=1e-4)


def test_the_bundle_says_what_it_is(folder: Path) -> None:
    manifest = read_manifest(folder / "models" / "mint-iqa" / "1")
    assert manifest.provenance.command.startswith("critiq export mint-iqa --checkpoint mint")
    assert "--heads 4" in manifest.provenance.command
    assert manifest.tokenizers["text"].max_length == 35
    assert [(entry.name, entry.needs_prompt) for entry in manifest.dimensions] == [
        ("quality", True),
        ("authenticity", True),
        ("correspondence", True),
    ]


@needs_fixtures
def test_every_name_of_the_full_model_is_accounted_for() -> None:
    """At full size, without memory: each parameter is read with its shape, or known not to be used."""
    layout = json.loads((PARITY / "mint_iqa_full_layout" / "layout.json").read_text())["state_dict"]
    state = {name: torch.empty(shape, device="meta") for name, shape, _ in layout}
    shape = read_shape(state, SCORING)
    assert shape == read_shape(state, EXPLAINING) == Shape()
    with torch.device("meta"):
        parts: list[tuple[nn.Module, dict[str, str]]] = [
            (MintIqa(shape), scoring_names(shape)),
            (Explanation(shape), explaining_names(shape)),
        ]
    read: set[str] = set()
    for module, names in parts:
        ours = module.state_dict()
        assert set(names.values()) == ours.keys()
        assert {theirs: state[theirs].shape for theirs in names} == {
            theirs: ours[name].shape for theirs, name in names.items()
        }
        read |= names.keys()
    unread = re.compile("|".join([*unused(SCORING, shape), *unused(EXPLAINING, shape)]))
    rest = {name for name in state if name not in read and not name.startswith(f"{LANGUAGE_MODEL}.")}
    assert len(read) > 1500
    assert [name for name in rest if not unread.fullmatch(name)] == []
    assert len(rest) == 2 * (1 + 1 + 2 + 2 + 6)  # temp, position_ids, two projections, the words of the last layer


def small_folder(place: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, place / "small.pt")
    write_bert_vocabulary(place)
    return place


def test_the_scoring_half_is_enough(tmp_path: Path) -> None:
    both = load(small_folder(tmp_path, small_state()))
    alone = load(small_folder(tmp_path, small_state(explaining=False)))
    pixels = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(both.modules["vision"](pixels), alone.modules["vision"](pixels))
    with pytest.raises(CheckpointError, match="holds no parameters of qformer2"):
        build_explanation(small_state(explaining=False))


def test_a_checkpoint_of_something_else_is_refused_with_the_list(tmp_path: Path) -> None:
    state = small_state() | {"qformer1.quality2.1.weight": torch.zeros(2, 6), "qformer1.head.bias": torch.zeros(2)}
    del state["qformer1.visual_encoder.blocks.0.attn.q_bias"], state["qformer1.visual_encoder.blocks.1.attn.q_bias"]
    with pytest.raises(CheckpointError) as caught:
        load(small_folder(tmp_path, state))
    message = str(caught.value)
    assert "qformer1.quality2.*.weight is [2, 6], should be [3, 6]" in message
    assert "unknown: 1 parameters\n    qformer1.head.bias" in message
    assert "qformer1.visual_encoder.blocks.*.attn.q_bias (2 of them" in message
    with pytest.raises(CheckpointError, match=r"missing: \d{3} parameters"):
        build_scores({"weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="width of 24 does not divide into 7 heads"):
        load(small_folder(tmp_path, small_state()), heads=7)


def test_the_tokenizer_must_fit(tmp_path: Path) -> None:
    small_folder(tmp_path, small_state())
    write_bert(tmp_path)
    with pytest.raises(CheckpointError, match="the tokenizer knows 30522 tokens, the checkpoint's table has 41"):
        load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(tokenizer.json or vocab.txt\)"):
        load(tmp_path)


def test_marks_of_the_authors_tokenizer_are_left_out(tmp_path: Path) -> None:
    """Theirs has two more than the table of words has rows; a prompt that spells one is text."""
    write_bert_vocabulary(tmp_path)
    plain = prompt_tokenizer(tmp_path)
    theirs = Tokenizer.from_buffer(plain.content)
    theirs.add_special_tokens(["[DEC]", "[ENC]"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    found = prompt_tokenizer(tmp_path)
    assert found.words == plain.words == theirs.get_vocab_size() - 2
    assert found.encode(["[ENC] red"]) == plain.encode(["[ENC] red"])
    assert SMALL.words > max(found.encode(["[ENC] [DEC]"])[0])
