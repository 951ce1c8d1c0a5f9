"""Policies as files: what is written is read back, and what cannot be used is named."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_server.scoring.policy_files import PolicyError, parse_policy, policy_yaml, read_policy, write_policy
from tests.server.scoring.test_policies import decisions, policy, rules

TEXT = """
name: gate
version: 1
default: accept
rules:
  - name: poor
    when: {dimension: quality, below: 0.2}
    decision: reject
  - name: middling
    when: {dimension: quality, scale: percentile, between: [10, 40]}
    decision: review
  - name: cut
    when:
      all:
        - flag: prompt_truncated
        - {dimension: alignment, below: 0.5}
    decision: review
"""


def test_a_file_as_people_write_it() -> None:
    read = parse_policy(TEXT)
    assert (read.name, read.version, read.missing) == ("gate", "1", "review")
    assert read.dimensions == ("quality", "alignment")
    assert read.flags == ("prompt_truncated",)
    assert [rule.reason for rule in read.rules] == [None, None, None]


@settings(deadline=None)
@given(rules, decisions, decisions, st.text(st.characters(codec="utf-8"), max_size=30))
def test_what_is_written_is_read_back(
    entries: list[dict[str, Any]], default: str, missing: str, description: str
) -> None:
    written = policy(*entries, default=default, missing=missing, description=description)
    assert parse_policy(policy_yaml(written)) == written


@pytest.mark.parametrize(
    ("written", "read"), [("7", "7"), ("2026-11-21", "2026-11-21"), ("'1.10'", "1.10"), ("v2", "v2")]
)
def test_versions(written: str, read: str) -> None:
    made = parse_policy(TEXT.replace("version: 1", f"version: {written}"))
    assert made.version == read
    assert parse_policy(policy_yaml(made)) == made


def test_a_written_file_keeps_its_comment_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("an older one")
    made = parse_policy(TEXT)
    write_policy(path, made, comment="by critiq threshold\n\nprecision 0.95")
    assert path.read_text().startswith("# by critiq threshold\n#\n# precision 0.95\nname: gate\n")
    assert read_policy(path) == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["gate.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("below: 0.2", "below: 1.2", "rules[0] 'poor', when: below 1.2 is outside the calibrated scale, 0..1"),
        ("[10, 40]", "[10, 400]", "rules[1] 'middling', when: between 400 is outside the percentile scale, 0..100"),
        ("[10, 40]", "[40, 10]", "rules[1] 'middling', when: between [40, 10] holds for nothing"),
        ("below: 0.2", "below: yes", "rules[0] 'poor', when.below: input should be a valid number (got True)"),
        ("below: 0.2", "below: '0.2'", "rules[0] 'poor', when.below: input should be a valid number (got '0.2')"),
        ("below: 0.2", "below: .nan", "rules[0] 'poor', when.below: input should be a finite number (got nan)"),
        ("below: 0.2", "below: 0.2, above: 0.1", "rules[0] 'poor', when: set exactly one of below, above and between"),
        (", below: 0.2", "", "rules[0] 'poor', when: set exactly one of below, above and between, not none"),
        ("below: 0.2", "below: 0.2, below: 0.3", "the key 'below' is given twice"),
        ("flag: prompt_truncated", "flag: nsfw", "rules[2] 'cut', when.all[0].flag: input should be 'degraded'"),
        (
            "dimension: alignment",
            "dimensoin: alignment",
            "rules[2] 'cut', when.all[1].dimensoin: there is no such field",
        ),
        ("decision: reject", "decision: refuse", "rules[0] 'poor', decision: input should be 'accept', 'review' or"),
        ("    decision: reject\n", "", "rules[0] 'poor', decision: this field is needed"),
        ("when: {dimension: quality, below: 0.2}", "when: low", "rules[0] 'poor', when: a condition is due"),
        ("when: {dimension: quality, below: 0.2}", "when: {any: []}", "rules[0] 'poor', when.any: tuple should have"),
        ("name: cut", "name: poor", "2 rules are called 'poor'"),
        ("version: 1", "version: 1.10", "version: put the version into quotation marks (got 1.1)"),
        ("version: 1", "version: yes", "version: input should be a valid string (got True)"),
        ("version: 1", "version: 2026-11-21 10:00:00", "version: put the version into quotation marks"),
        ("name: gate", "name: a/b", "name: string should match pattern"),
        ("default:", "defautl:", "defautl: there is no such field"),
        ("rules:", "rule:", "rules: this field is needed"),
    ],
)
def test_an_error_names_the_file_the_rule_and_the_value(old: str, new: str, told: str) -> None:
    assert old in TEXT
    with pytest.raises(PolicyError) as error:
        parse_policy(TEXT.replace(old, new, 1), "gate.yaml")
    assert f"gate.yaml: {told}" in str(error.value) or ("twice" in told and told in str(error.value))


@pytest.mark.parametrize(
    "text", ["", "- 3", "a: [", "? [a]\n: 3", "name: &a [1]\nrules: *a", "rules: [5]", "\0", "name: 2026-99-99"]
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^gate\.yaml: "):
        parse_policy(text, "gate.yaml")


words = st.sampled_from(
    ["name", "version", "rules", "when", "all", "any", "flag", "below", "between", "dimension", "decision", "gate"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5) | st.dates()
things = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | leaves, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(words, things, max_size=5))
def test_no_content_makes_anything_but_a_policy_or_an_error_of_the_file(content: dict[str, Any]) -> None:
    text = yaml.safe_dump({"name": "gate", "version": "1", **content})
    with suppress(PolicyError):
        parse_policy(text, "gate.yaml")


def test_aliases_that_are_endless_in_full() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    with pytest.raises(PolicyError) as error:
        parse_policy("\n".join(["name: gate", *lines, "version: *a29"]))
    assert len(str(error.value)) < 10_000


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: \xff")
    for path in (tmp_path / "none.yaml", tmp_path, latin):
        with pytest.raises(PolicyError, match=f"^{path}: cannot be read"):
            read_policy(path)
