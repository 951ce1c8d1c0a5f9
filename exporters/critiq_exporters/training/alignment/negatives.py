"""Prompts that do not describe the picture: other pictures' prompts, and the own prompt with one element changed.

These are ELIQ's alignment negatives (section 3.2): shuffled pairs are the conventional ones, edited prompts the hard
ones. All functions are deterministic given the state of ``rng``.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from critiq_exporters.training.alignment import lexicon

Kind = Literal["object", "colour", "count", "relation", "swap", "word"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ONE_ELEMENT: tuple[Kind, ...] = ("object", "colour", "count")


@dataclass(frozen=True)
class Negative:
    """A prompt that is wrong for the picture, and what was changed in it."""

    text: str
    kind: Kind


def other_prompt(prompts: Sequence[str], own: int, rng: random.Random) -> str:
    """A prompt of another text than number ``own`` of ``prompts``. Raises ``ValueError`` if all are the same."""
    if all(prompt == prompts[own] for prompt in prompts):
        raise ValueError("there is no other prompt to choose")
    while True:
        candidate = rng.choice(prompts)
        if candidate != prompts[own]:
            return candidate


def hard_negative(prompt: str, rng: random.Random, kinds: Sequence[Kind] = KINDS) -> Negative | None:
    """``prompt`` with one element changed by one of ``kinds`` (tried in random order); ``None`` where none applies."""
    order = list(kinds)
    rng.shuffle(order)
    if "word" in order:  # always applies, so it must not crowd out the more telling edits
        order.sort(key=lambda kind: kind == "word")
    for kind in order:
        text = _EDITS[kind](prompt, rng)
        if text is not None and text.lower() != prompt.lower():
            return Negative(text, kind)
    return None


def _change_object(prompt: str, rng: random.Random) -> str | None:
    return _replace_one(prompt, _find_objects(prompt, plural=True), rng)


def _change_colour(prompt: str, rng: random.Random) -> str | None:
    return _replace_one(prompt, _find(prompt, lexicon.COLOURS), rng)


def _change_relation(prompt: str, rng: random.Random) -> str | None:
    return _replace_one(prompt, _find(prompt, lexicon.RELATIONS), rng)


def _change_count(prompt: str, rng: random.Random) -> str | None:
    found = _find(prompt, lexicon.NUMBERS)
    if not found:
        return None
    hit = rng.choice(found)
    own = hit.row
    size = len(lexicon.NUMBERS)
    # "one" is left alone as a target: it would need the noun's singular.
    near = [row for row in range(max(1, own - 3), min(size, own + 4)) if row != own]
    if own == 0:
        return _pluralise_after(prompt, hit, lexicon.NUMBERS[rng.choice(near)][0])
    return _put(prompt, hit, lexicon.NUMBERS[rng.choice(near)][0])


def _swap_objects(prompt: str, rng: random.Random) -> str | None:
    """Exchange two things, or two colours, of the prompt: the same words, another scene."""
    objects, colours = _find_objects(prompt), _find(prompt, lexicon.COLOURS)
    pairs = [
        (a, b)
        for hits in (objects, colours)
        for a in hits
        for b in hits
        if a.end <= b.start and _matched(prompt, a).lower() != _matched(prompt, b).lower()
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    first, second = _matched(prompt, a), _matched(prompt, b)
    swapped = prompt[: a.start] + second + prompt[a.end : b.start] + first + prompt[b.end :]
    return _fix_articles(swapped)


def _edit_word(prompt: str, rng: random.Random) -> str | None:
    """Replace an action, or else any content word, by a word of another meaning."""
    actions = _find(prompt, lexicon.ACTIONS)
    if actions:
        return _replace_one(prompt, actions, rng)
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", prompt) if m.group().lower() not in lexicon.STOP_WORDS]
    if not words:
        return None
    word = rng.choice(words)
    others = [row[0] for table in lexicon.OBJECTS for row in table if word.group().lower() not in row]
    return _fix_articles(prompt[: word.start()] + rng.choice(others) + prompt[word.end() :])


@dataclass(frozen=True)
class _Hit:
    """Where a word of a table stands in a prompt."""

    start: int
    end: int
    table: tuple[tuple[str, ...], ...]
    row: int
    plural: bool


def _find(prompt: str, table: tuple[tuple[str, ...], ...], plural: bool = False) -> list[_Hit]:
    pattern, rows = _pattern(table, plural)
    return [_Hit(m.start(), m.end(), table, *rows[m.group().lower()]) for m in pattern.finditer(prompt)]


@functools.cache
def _pattern(table: tuple[tuple[str, ...], ...], plural: bool) -> tuple[re.Pattern[str], dict[str, tuple[int, bool]]]:
    """A pattern that finds every form of the table's words, and the row (and whether plural) of each form."""
    rows: dict[str, tuple[int, bool]] = {}
    for row, words in enumerate(table):
        for word in words:
            rows.setdefault(word, (row, False))
            if plural:
                rows.setdefault(_plural(word), (row, True))
    longest_first = sorted(rows, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE), rows


def _find_objects(prompt: str, plural: bool = False) -> list[_Hit]:
    return _outermost([hit for table in lexicon.OBJECTS for hit in _find(prompt, table, plural)])


def _outermost(hits: list[_Hit]) -> list[_Hit]:
    """Without hits that lie inside a longer one ("dog" in "hot dog"), in the order of the text."""
    kept: list[_Hit] = []
    for hit in sorted(hits, key=lambda h: (h.start - h.end, h.start)):
        if all(hit.end <= other.start or hit.start >= other.end for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda h: h.start)


def _replace_one(prompt: str, found: list[_Hit], rng: random.Random) -> str | None:
    if not found:
        return None
    hit = rng.choice(found)
    others = [row[0] for index, row in enumerate(hit.table) if index != hit.row]
    if hit.plural:
        others = [_plural(word) for word in others if word not in lexicon.UNCOUNTABLE]
    return _put(prompt, hit, rng.choice(others))


def _put(prompt: str, hit: _Hit, word: str) -> str:
    if prompt[hit.start].isupper():
        word = word[0].upper() + word[1:]
    return _fix_articles(prompt[: hit.start] + word + prompt[hit.end :])


def _pluralise_after(prompt: str, hit: _Hit, number: str) -> str | None:
    """``one dog`` becomes ``three dogs``; ``None`` where no known thing follows the number ("one of them")."""
    nouns = [h for h in _find_objects(prompt) if 0 < h.start - hit.end <= 20]
    if not nouns:
        return None
    noun = min(nouns, key=lambda h: h.start)
    changed = prompt[: noun.start] + _plural(_matched(prompt, noun)) + prompt[noun.end :]
    return _put(changed, hit, number)


def _plural(word: str) -> str:
    lowered = word.lower()
    if lowered in lexicon.UNCOUNTABLE or lowered.startswith("pair of"):
        return word
    return lexicon.IRREGULAR_PLURALS.get(lowered, word + "s")


def _matched(prompt: str, hit: _Hit) -> str:
    return prompt[hit.start : hit.end]


def _fix_articles(text: str) -> str:
    """``a``/``an`` as the next letter asks."""

    def fixed(match: re.Match[str]) -> str:
        article = "an" if match.group(3)[0].lower() in "aeio" or match.group(3).lower().startswith("um") else "a"
        return (article.capitalize() if match.group(1)[0].isupper() else article) + match.group(2) + match.group(3)

    return re.sub(r"\b([Aa]n?)(\s+)([A-Za-z]+)", fixed, text)


_EDITS: dict[Kind, Callable[[str, random.Random], str | None]] = {
    "object": _change_object,
    "colour": _change_colour,
    "count": _change_count,
    "relation": _change_relation,
    "swap": _swap_objects,
    "word": _edit_word,
}
