from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq_exporters.training.alignment import lexicon
from critiq_exporters.training.alignment.negatives import KINDS, ONE_ELEMENT, Kind, hard_negative, other_prompt

COLOURS = [row[0] for row in lexicon.COLOURS]
ANIMALS = ["dog", "cat", "horse", "sheep", "owl", "elephant"]
scenes = st.builds(
    lambda number, colour, animal, other: f"{number} {colour} {animal} next to a {other}",
    st.sampled_from(["A", "One", "a"]), st.sampled_from(COLOURS), st.sampled_from(ANIMALS),
    st.sampled_from(["car", "bench"]),
)  # fmt: skip
anything = st.text(max_size=80)


@given(scenes, st.integers())
def test_every_edit_of_a_scene_changes_it_and_says_how(prompt: str, seed: int) -> None:
    negative = hard_negative(prompt, random.Random(seed))
    assert negative is not None
    assert negative.kind in KINDS
    assert negative.text.lower() != prompt.lower()


@given(anything, st.integers())
def test_any_text_is_edited_or_declined_but_never_returned_unchanged(prompt: str, seed: int) -> None:
    for kind in KINDS:
        negative = hard_negative(prompt, random.Random(seed), (kind,))
        assert negative is None or (negative.kind == kind and negative.text.lower() != prompt.lower())


@given(scenes, st.integers())
def test_the_same_state_gives_the_same_edit(prompt: str, seed: int) -> None:
    assert hard_negative(prompt, random.Random(seed)) == hard_negative(prompt, random.Random(seed))


@given(st.sampled_from(COLOURS), st.sampled_from(ANIMALS), st.integers())
def test_a_changed_colour_is_another_colour_and_all_else_stays(colour: str, animal: str, seed: int) -> None:
    negative = hard_negative(f"The {colour} {animal} sleeps", random.Random(seed), ("colour",))
    assert negative is not None
    found = re.fullmatch(rf"The (\w+) {animal} sleeps", negative.text)
    assert found is not None
    assert found.group(1) in COLOURS
    assert found.group(1) != colour


@given(st.sampled_from(["two", "Three", "four", "five"]), st.integers())
def test_a_changed_count_is_another_number(number: str, seed: int) -> None:
    negative = hard_negative(f"{number} dogs on the street", random.Random(seed), ("count",))
    assert negative is not None
    changed = negative.text.split()[0]
    assert changed.lower() in {row[0] for row in lexicon.NUMBERS} - {number.lower(), "one"}
    assert changed[0].isupper() == number[0].isupper()


def test_one_thing_becomes_several() -> None:
    negative = hard_negative("One dog on the street", random.Random(0), ("count",))
    assert negative is not None
    assert re.fullmatch(r"(Two|Three|Four) dogs on the street", negative.text)


@given(st.sampled_from(ANIMALS), st.sampled_from(["car", "boat", "chair"]), st.integers())
def test_swapping_keeps_the_words_and_changes_their_order(animal: str, thing: str, seed: int) -> None:
    negative = hard_negative(f"a big {animal} on top of the {thing}", random.Random(seed), ("swap",))
    assert negative is not None
    assert negative.text == f"a big {thing} on top of the {animal}"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("a quiet morning", "colour"), ("a quiet morning", "count"), ("a dog", "swap"), ("", "word"), ("it is", "object")],
)
def test_an_edit_that_has_nothing_to_change_is_declined(prompt: str, kind: Kind) -> None:
    assert hard_negative(prompt, random.Random(0), (kind,)) is None


def test_articles_follow_the_new_word() -> None:
    texts = {hard_negative("a red kite", random.Random(seed), ("colour",)).text for seed in range(40)}  # type: ignore[union-attr]
    assert "an orange kite" in texts
    assert not any(text.startswith("a orange") for text in texts)


def test_plurals_stay_plural() -> None:
    for seed in range(30):
        negative = hard_negative("three dogs", random.Random(seed), ("object",))
        assert negative is not None
        singular = {row[0] for row in lexicon.OBJECTS[1]} - {"sheep", "fish", "deer"}
        assert negative.text.split()[1] not in singular


def test_a_part_of_a_longer_name_is_left_alone() -> None:
    for seed in range(30):
        negative = hard_negative("a hot dog", random.Random(seed), ("object",))
        assert negative is not None
        assert "dog" not in negative.text
        assert "hot" not in negative.text


@given(st.lists(anything, min_size=2, max_size=8), st.integers(), st.data())
def test_another_prompt_is_never_the_own_text(prompts: list[str], seed: int, drawn: st.DataObject) -> None:
    own = drawn.draw(st.integers(0, len(prompts) - 1))
    if len(set(prompts)) == 1:
        with pytest.raises(ValueError, match="no other prompt"):
            other_prompt(prompts, own, random.Random(seed))
    else:
        assert other_prompt(prompts, own, random.Random(seed)) in set(prompts) - {prompts[own]}


def test_the_judged_edits_are_those_of_one_element() -> None:
    kinds = {hard_negative("two red dogs", random.Random(seed), ONE_ELEMENT).kind for seed in range(40)}  # type: ignore[union-attr]
    assert kinds == set(ONE_ELEMENT)
