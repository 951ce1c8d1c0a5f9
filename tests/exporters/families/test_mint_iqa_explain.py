"""MINT-IQA's explaining half and its language model: the authors' numbers, whole explanations, and bad parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.mint_iqa import segmentation
from critiq_exporters.families.mint_iqa.checkpoint import EXPLAINING, LANGUAGE_MODEL, build_explanation
from critiq_exporters.families.mint_iqa.explain import Explained, load, main
from critiq_exporters.families.mint_iqa.language import LanguageModel, language_model, llama_config
from critiq_exporters.families.mint_iqa.network import Explanation
from tests.exporters.families.clip_made import made, write_bert_vocabulary
from tests.exporters.families.mint_made import (
    SCORES,
    activations,
    check_activations,
    fixture_state,
    prompt_of,
    small_state,
    watch,
    write_bert,
    write_llama,
)
from tests.exporters.families.rule_made import PARITY, fixture_arrays, needs_fixtures

TINY = "mint_iqa_explain_tiny"
HEADS = 4
QUESTION = "what is the red"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint of the second training stage beside both tokenizers."""
    if not PARITY.is_dir():
        pytest.skip("the fixtures made with the authors' code are not here")
    folder = tmp_path_factory.mktemp("mint")
    torch.save(fixture_state(TINY), folder / "MINTIQA.pt")
    (folder / "llama").mkdir()
    write_bert(folder)
    # The words of both vocabularies are numbers; the question has others in the one than in the other.
    ids = fixture_arrays(TINY, "inputs")["llm_ids"][0, 1:]
    write_llama(folder / "llama", replaced={question(): " ".join(f"t{number}" for number in ids)})
    return folder


def question() -> str:
    return prompt_of(fixture_arrays(TINY, "inputs")["question_ids"][0])


@pytest.fixture(scope="module")
def explaining(folder: Path) -> Explanation:
    return build_explanation(read_state(folder / "MINTIQA.pt"), HEADS)


@pytest.fixture(scope="module")
def language(folder: Path) -> LanguageModel:
    return language_model(read_state(folder / "MINTIQA.pt"), folder / "llama")


def given(*names: str) -> list[Tensor]:
    inputs = fixture_arrays(TINY, "inputs")
    return [torch.from_numpy(inputs[name]) for name in names]


def prefix_of(explaining: Explanation, ids: str, mask: str) -> Tensor:
    with torch.inference_mode():
        prefix: Tensor = explaining(*given("image_u8", "quality_vector", ids, mask))
    return prefix


def test_the_explaining_half_gives_the_authors_numbers(folder: Path) -> None:
    explaining = build_explanation(read_state(folder / "MINTIQA.pt"), HEADS)
    expected = fixture_arrays(TINY, "expected")
    seen: dict[str, NDArray[Any]] = {}
    watch(explaining, activations(EXPLAINING, (0, 1, 3), (0, 2), "transformer"), seen)
    prefix = prefix_of(explaining, "question_ids", "question_mask")
    np.testing.assert_allclose(prefix, expected["inputs_llm"], atol=2e-5, rtol=1e-4)
    check_activations(seen, dict(expected), EXPLAINING)
    with torch.inference_mode():
        mixed = explaining.condition(*given("quality_vector"))
    # The bias of this layer does not show in what comes after it: a norm takes it out.
    np.testing.assert_allclose(mixed, expected["zero_forward"], atol=2e-6)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_makes_no_difference(explaining: Explanation, batch: int) -> None:
    numbers = np.arange(batch) % 2
    tensors = [
        tensor[torch.from_numpy(numbers)]
        for tensor in given("image_u8", "quality_vector", "question_ids", "question_mask")
    ]
    with torch.inference_mode():
        prefix = explaining(*tensors)
    np.testing.assert_allclose(prefix, fixture_arrays(TINY, "expected")["inputs_llm"][numbers], atol=2e-5, rtol=1e-4)


def test_the_language_model_reads_what_the_authors_does(explaining: Explanation, language: LanguageModel) -> None:
    expected = fixture_arrays(TINY, "expected")
    prefix = prefix_of(explaining, "question_ids", "question_mask")
    (ids,) = given("llm_ids")
    with torch.inference_mode():
        embeddings, logits = language.embeddings(prefix, ids), language.logits(prefix, ids)
    np.testing.assert_allclose(embeddings, expected["llm_inputs_embeds"], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(logits[:, ::8, ::16], expected["llm_logits[:, ::8, ::16]"], atol=5e-5)


def test_the_loss_of_answers_is_the_authors(explaining: Explanation, language: LanguageModel) -> None:
    prefix = prefix_of(explaining, "train_tq_ids", "train_tq_mask")
    questions, answers = (real_rows(kind) for kind in ("ti", "to"))
    with torch.inference_mode():
        loss = language.answer_loss(prefix, questions, [answer[1:] for answer in answers])
    np.testing.assert_allclose(loss, fixture_arrays(TINY, "expected")["train_loss"], rtol=1e-5)


def real_rows(kind: str) -> list[list[int]]:
    """Ids without padding."""
    ids, mask = given(f"train_{kind}_ids", f"train_{kind}_mask")
    return [row[: int(real.sum())].tolist() for row, real in zip(ids, mask, strict=True)]


def test_a_whole_explanation_is_the_authors(folder: Path) -> None:
    """From pictures, prompts and a question to scores and words. Of random weights: only the first words must agree."""
    inputs, expected = fixture_arrays(TINY, "inputs"), fixture_arrays(TINY, "expected")
    explainer = load(folder, folder / "llama", heads=HEADS)
    prompts = [prompt_of(ids) for ids in inputs["text_ids"]]
    found = explainer.explain(list(inputs["image_u8"]), prompts, question())
    for name, key in zip(("quality", "authenticity", "correspondence"), SCORES, strict=True):
        np.testing.assert_allclose([getattr(entry, name) for entry in found], expected[key], atol=2e-6, rtol=1e-5)
    for entry, ids in zip(found, expected["generated_ids"], strict=True):
        assert ids[0] == 1  # what the authors' version of transformers put before the answer
        assert entry.explanation.split()[:8] == [f"t{number}" for number in ids[1:9]]


@needs_fixtures
def test_the_full_language_model_is_recognised() -> None:
    layout = json.loads((PARITY / "mint_iqa_full_layout" / "layout.json").read_text())["state_dict"]
    prefix = f"{LANGUAGE_MODEL}."
    state = {
        name.removeprefix(prefix): torch.empty(shape, device="meta")
        for name, shape, _ in layout
        if name.startswith(prefix)
    }
    with torch.device("meta"):
        ours = LlamaForCausalLM(llama_config(state)).state_dict()
    assert ours["model.layers.31.mlp.up_proj.weight"].shape == (11008, 4096)
    theirs = {name: value.shape for name, value in state.items() if "rotary" not in name}
    assert {name: value.shape for name, value in ours.items()} == theirs


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint that leaves its language model out, and a folder that has one."""
    torch.save(small_state(), tmp_path / "small.pt")
    write_bert_vocabulary(tmp_path)
    place = tmp_path / "llama"
    save_llama(place, 16)
    return tmp_path


def save_llama(place: Path, width: int) -> None:
    place.mkdir()
    write_llama(place, words=50)
    config = LlamaConfig(
        vocab_size=50, hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: made(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    model.save_pretrained(place)


def test_the_command_explains_files(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = drawn_pictures(2)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(small / f"{number}.png")
    files = [str(small / f"{number}.png") for number in range(2)]
    flags = ["--checkpoint", str(small), "--language-model", str(small / "llama"), "--prompt", "a red circle"]
    assert main([*files, *flags, "--question", QUESTION, "--length", "6", "--beams", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.pop("picture") for line in lines] == ["0.png", "1.png"]
    explainer = load(small, small / "llama")
    # Both at once, and the pictures' prompts of different lengths, give the same as each alone.
    expected = explainer.explain(pictures, ["a red circle", "red"], QUESTION, beams=2, length=6)
    alone = explainer.explain(pictures[1:], ["red"], QUESTION, beams=2, length=6)
    check_same([Explained(**lines[0])], expected[:1])
    check_same(alone, expected[1:])
    assert expected[0].explanation
    assert expected[0].quality != pytest.approx(expected[1].quality, abs=1e-4)


def check_same(found: Sequence[Explained], wanted: Sequence[Explained]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.explanation == other.explanation
        for name in ("quality", "authenticity", "correspondence"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)


def test_parts_that_do_not_belong_together_are_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_llama(small / "wide", 32)
    with pytest.raises(CheckpointError, match="explains to a language model of width 16, this one's is 32"):
        load(small, small / "wide")
    with pytest.raises(CheckpointError, match="holds no tokenizer of a language model"):
        load(small, small)
    (small / "llama" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"leaves its language model out, and .* holds none"):
        load(small, small / "llama")
    arguments = ["x.png", "--checkpoint", str(small / "none.pt"), "--language-model", str(small), "--prompt", "red"]
    assert main([*arguments, "--tokenizer", str(small)]) == 2
    assert "none.pt does not exist" in capsys.readouterr().err
    assert main(["x.png"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_a_language_model_that_does_not_fit_is_refused_with_the_list(folder: Path) -> None:
    state = fixture_state(TINY)
    del state[f"{LANGUAGE_MODEL}.model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing: 1 parameters\n    model\.layers\.\*\.mlp\.up_proj\.weight"):
        language_model(state, folder / "llama")
    state = {f"{LANGUAGE_MODEL}.lm_head.weight": torch.zeros(5, 4)}
    with pytest.raises(CheckpointError, match=r"is no Llama: 'model\.embed_tokens\.weight'"):
        language_model(state, folder / "llama")


def test_calls_that_make_no_sense_are_refused(small: Path) -> None:
    explainer = load(small, small / "llama")
    picture = drawn_pictures(1)[0]
    with pytest.raises(ValueError, match="there are 1 pictures and 2 prompts"):
        explainer.explain([picture], ["red", "red"])
    with pytest.raises(ValueError, match="the question has 62 tokens, at most 40 are read"):
        explainer.explain([picture], ["red"], "red " * 60)
    assert explainer.explain([], []) == []


@pytest.mark.parametrize(
    ("prompt", "style", "content", "atmosphere"),
    [
        ("a corgi", ["realistic"], ["a corgi"], []),
        (
            "a corgi near a river, highly detailed, in the style of watercolor sketch",
            ["highly detailed", "watercolor sketch"],
            ["a corgi near a river"],
            [],
        ),
        ("gloomy forest, oil painting, dark mood", ["oil painting"], ["gloomy forest"], ["gloomy", "dark"]),
        ("A watercolor painting of a fox. Peaceful", ["watercolor painting"], ["a fox"], ["peaceful"]),
        (
            "sad robot at a bus stop in anime style, by A. Painter; trending on artstation",
            ["anime", "by A", "trending on artstation"],
            ["sad robot at a bus stop", "Painter"],
            ["sad"],
        ),
        ("a still life with apples", ["realistic"], ["a still life with apples"], []),
        ("cyberpunk", ["cyberpunk"], [], []),
    ],
)
def test_rules_tell_style_content_and_atmosphere(
    prompt: str, style: list[str], content: list[str], atmosphere: list[str]
) -> None:
    found = segmentation.segment(prompt)
    assert [list(found.style), list(found.content), list(found.atmosphere)] == [style, content, atmosphere]
    assert found.source == "rules"
    assert found == segmentation.segment(prompt)


def test_the_refined_prompt_keeps_the_raw_one_in_front() -> None:
    refined = segmentation.segment("gloomy forest, oil painting.").after("gloomy forest, oil painting.")
    assert refined == ("gloomy forest, oil painting. style: oil painting; content: gloomy forest; atmosphere: gloomy")


def test_a_language_models_answer_is_used_where_it_can_be_read() -> None:
    asked: list[str] = []

    def ask(instruction: str) -> str:
        asked.append(instruction)
        return 'Sure!\n- Style: none\n**Content**: small "corgi", blue river.\nAtmosphere: calm, warm\nStyle: other'

    found = segmentation.segment("a corgi {near} a river", ask)
    assert found == segmentation.Segments(
        ("realistic",), ('small "corgi', "blue river"), ("calm", "warm"), "language model"
    )
    assert "a corgi {near} a river" in asked[0]
    for answer in (
        "",
        "I cannot do that.",
        "Style: oil\nContent: none\nAtmosphere: calm",
        "Style: oil\nContent: a dog",
    ):
        assert segmentation.segment("a dog", lambda _, answer=answer: answer).source == "rules"  # type: ignore[misc]
    with pytest.raises(ValueError, match="the prompt is empty"):
        segmentation.segment(" ")


def test_the_segmentation_command(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segmentation.main(["a calm sea", "cyberpunk"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "a calm sea. style: realistic; content: a calm sea; atmosphere: calm",
        "cyberpunk. style: cyberpunk",
    ]
    # A model of random weights answers nothing that can be read: the rules step in.
    assert segmentation.main(["a calm sea", "--language-model", str(small / "llama")]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]
    assert segmentation.main(["a sea", "--language-model", str(small / "nothing")]) == 2
    assert "holds no language model and tokenizer" in capsys.readouterr().err
