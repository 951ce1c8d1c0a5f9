"""Questions about one picture meet; names of features; what is rounded; who holds an LMM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from critiq_server.bundles.lmm import GridProcessor, Lmm
from critiq_server.bundles.manifest import ImageInput, PromptInput, Stage
from critiq_server.features.keys import pixels_key, prompt_key
from critiq_server.runtime.lmm.base import NATIVE, Instruction, Pixels, feature_key, lmm_stage, rounded
from critiq_server.runtime.lmm.instructions import INSTRUCTIONS, ask, find_instructions, standard_backbone
from critiq_server.runtime.lmm.pool import Lmms
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.lmm.stage import LmmRuntime, NotComputedHere, Question, answer

BACKBONE = standard_backbone("qwen3-vl", "Qwen/tiny", "0123", 4)
TECHNICAL, AESTHETIC, ALIGNMENT = find_instructions(["eliq-technical-1", "eliq-aesthetic-1", "eliq-alignment-1"])


class Telling:
    """An extractor whose features tell what was asked; it notes its calls."""

    provider, concurrency, gathers = "told", 1, True

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.closed = 0

    def bucket(self, height: int, width: int) -> int:
        return height * width

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        self.calls.append((len(pictures), tuple(entry.id for entry in instructions)))
        return np.array(
            [
                [[picture[0, 0, 0], len(entry.filled(prompts[row] if prompts else ""))] for entry in instructions]
                for row, picture in enumerate(pictures)
            ],
            np.float32,
        )

    def close(self) -> None:
        self.closed += 1


def picture(level: int) -> Pixels:
    return np.full((2, 2, 3), level, np.uint8)


def expected(question: Question) -> list[float]:
    return [question.picture[0, 0, 0], len(question.instruction.filled(question.prompt))]


def test_questions_about_one_picture_ride_together_and_alike_pictures_too() -> None:
    extractor, pictures = Telling(), [picture(level) for level in (1, 2)]
    questions = [
        Question(seen, instruction, "a cat" if instruction is ALIGNMENT else "")
        for instruction in (TECHNICAL, ALIGNMENT, AESTHETIC)
        for seen in pictures
    ]
    found = answer(extractor, questions)
    assert extractor.calls == [(2, ("eliq-aesthetic-1", "eliq-alignment-1", "eliq-technical-1"))]
    assert [entry["feature"].tolist() for entry in found] == [expected(question) for question in questions]


_PICTURES = [picture(level) for level in range(3)]


@given(
    st.lists(
        st.builds(
            lambda seen, instruction, prompt: Question(
                _PICTURES[seen], instruction, prompt if instruction.reads_prompt else ""
            ),
            st.integers(0, 2),
            st.sampled_from([TECHNICAL, AESTHETIC, ALIGNMENT]),
            st.sampled_from(["", "a", "bb"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_question_gets_its_own_answer(questions: list[Question]) -> None:
    extractor = Telling()
    found = answer(extractor, questions)
    assert [entry["feature"].tolist() for entry in found] == [expected(question) for question in questions]


def lmm(**changes: Any) -> Lmm:
    return Lmm.model_validate({**ask(BACKBONE, ALIGNMENT).model_dump(), **changes})


PIXELS = pixels_key(picture(5))


def key(of: Lmm, prompt: str = "a cat") -> bytes:
    return feature_key(of, PIXELS, prompt_key(prompt))


def test_a_known_feature_has_its_name_for_ever() -> None:
    """If this fails, every feature stored so far is lost: think of another way."""
    assert key(lmm()).hex() == "93e71dc6f52476cec83a2e3c5cf4eae74dddaaaaa2cc5e98a19fa594c301255f"


def test_whatever_changes_a_feature_changes_its_name() -> None:
    changes: list[dict[str, Any]] = [
        {"model": "Qwen/other"},
        {"revision": "4567"},
        {"text": "Another question about {prompt}?"},
        {"instruction": "eliq-alignment-2"},
        {"template": BACKBONE.template.replace("user", "someone")},
        {"feature": "mean"},
        {"dtype": "float32"},
        {"stored": "float32"},
        {"processor": GridProcessor(max_pixels=4096)},
        {"width": 5},
    ]
    names = {key(lmm(**change)) for change in changes} | {key(lmm()), key(lmm(), "a dog")}
    assert len(names) == len(changes) + 2
    plain = ask(BACKBONE, TECHNICAL)
    assert key(plain) == key(plain, "a dog")


def test_registered_questions_are_whole() -> None:
    assert all(entry.text.strip() == entry.text and name == entry.id for name, entry in INSTRUCTIONS.items())
    with pytest.raises(ValueError, match="no instruction 'eliq-9'; known are eliq-technical-1"):
        find_instructions(["eliq-9"])


def test_manifests_say_exactly_what_an_lmm_reads() -> None:
    stage = lmm_stage("alignment", lmm())
    assert Stage.model_validate_json(stage.model_dump_json()) == stage
    entry = stage.model_dump()
    for change, message in (
        ({"inputs": {"image": ImageInput(view=NATIVE)}}, "reads the image and the prompt's text"),
        ({"outputs": ["other"]}, "gives the output 'feature'"),
        ({"lmm": None}, "go together"),
        ({"cache": False}, "is cached"),
        ({"lmm": ask(BACKBONE, TECHNICAL).model_dump()}, "reads the image alone"),
        ({"inputs": {"image": ImageInput(view=NATIVE), "prompt": PromptInput(tokenizer="x")}}, "the prompt's text"),
    ):
        with pytest.raises(ValidationError, match=message):
            Stage.model_validate({**entry, **change})
    with pytest.raises(ValidationError, match=r"must hold \{image\} exactly once"):
        lmm(template="no place for {instruction}")


@given(st.floats(-60000, 60000, width=32))
def test_rounding_is_what_storing_does(value: float) -> None:
    exact = np.array([value], np.float32)
    half = rounded(exact, "float16")
    assert np.array_equal(half, exact.astype(np.float16).astype(np.float32))
    brain = rounded(exact, "bfloat16")
    assert (brain.view(np.uint32) & 0xFFFF == 0).all()
    assert abs(float(brain[0]) - value) <= max(abs(value) * 2**-8, 2**-134)  # the latter below the normal numbers
    assert np.array_equal(rounded(brain, "bfloat16"), brain)
    assert np.array_equal(rounded(exact, "float32"), exact)


def test_what_float16_cannot_hold_is_cut() -> None:
    assert rounded(np.array([1e6, -1e6], np.float32), "float16").tolist() == [65504.0, -65504.0]


def test_a_stage_without_an_extractor_computes_nothing() -> None:
    runtime = LmmRuntime(lmm(), "stored", None)
    assert runtime.provider == "stored features"
    with pytest.raises(NotComputedHere, match="served from the store only"):
        runtime.ask([picture(1)], ["x"])


def test_an_lmm_is_loaded_once_and_goes_with_its_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Telling] = []

    def make(*_: Any) -> Telling:
        made.append(Telling())
        return made[-1]

    lmms = Lmms(LmmSettings())
    monkeypatch.setattr(lmms, "_open", make)
    first, second = lmms.open(BACKBONE, "compute"), lmms.open(BACKBONE, "compute")
    assert lmms.open(BACKBONE, "stored") is None
    assert first is not None
    assert second is not None
    first.close()
    first.close()
    assert len(made) == 1
    assert made[0].closed == 0
    assert second.extract([picture(7)], None, [TECHNICAL])[0, 0, 0] == 7
    second.close()
    assert made[0].closed == 1
    again = lmms.open(BACKBONE, "compute")
    assert again is not None
    assert len(made) == 2
