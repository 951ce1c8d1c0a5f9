"""Prompts: what is normalised, what is refused, and how tokens are cut and padded."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from critiq.errors import InvalidArgument, TooLarge
from critiq.types import PromptReport
from critiq_server.bundles.manifest import Tokenizer
from critiq_server.prompts import PromptTokenizer, normalise

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat", "##s", "dog", "on", "the", "mat", "[", "]", "sep"]
PAD, CLS, SEP = 0, 2, 3


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WordPiece as BERT has it: ``[CLS]`` text ``[SEP]``. Saved with truncation and padding that must not count."""
    tokenizer = RawTokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.enable_truncation(5, direction="left")
    tokenizer.enable_padding(length=50)
    path = tmp_path_factory.mktemp("tokenizers") / "word_pieces.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE without any special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "ca", "cat"])}
    tokenizer = RawTokenizer(models.BPE(vocabulary, [("c", "a"), ("ca", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizers") / "byte_pairs.json"
    tokenizer.save(str(path))
    return path


def rules(**changes: int) -> Tokenizer:
    return Tokenizer.model_validate({"file": "tokenizer.json", "max_length": 12, "pad_to_multiple": 4} | changes)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", ""),
        (" \t\r\n ", ""),
        ("a cat", "a cat"),
        ("  a\tred \n\n cat\u2003on\u00a0the mat\u3000", "a red cat on the mat"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x07 \x07cat\x1b", "a cat"),
        ("e\x01\u0301", "\u00e9"),
        ("\x01", ""),
        ("\u732b \U0001f468\u200d\U0001f469\u200d\U0001f467", "\u732b \U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ],
)
def test_normalise(prompt: str, expected: str) -> None:
    assert normalise(prompt, 1000) == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@example("a\x85\u0301\x01 \u0300")
def test_any_text_is_normalised_for_good(prompt: str) -> None:
    once = normalise(prompt, 10_000)
    assert normalise(once, 30_000) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once.split() == once.split(" ") if once else True
    assert not any(unicodedata.category(char) == "Cc" for char in once)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a\0cat", "NUL at character 1"), ("ab\ud800", "surrogate at character 2"), ("\udfff" * 2000, "surrogate")],
)
def test_text_that_cannot_be_used(prompt: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        normalise(prompt, 1000)
    assert caught.value.field == "prompt"
    assert not isinstance(caught.value, TooLarge)


def test_the_limit_counts_bytes_not_characters() -> None:
    assert normalise("\u732b" * 4, 12) == "\u732b" * 4
    with pytest.raises(TooLarge, match="has 15 bytes in UTF-8, more than the 12") as caught:
        normalise("\u732b" * 5, 12)
    assert caught.value.field == "prompt"


def test_ten_megabytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="10,000,000 bytes"):
        normalise("x" * 10_000_000, 8192)


def test_a_short_prompt_is_padded_to_the_next_multiple(word_pieces: Path) -> None:
    tokens = PromptTokenizer(word_pieces, rules(pad_id=7)).encode("a red cat")
    assert tokens.ids.tolist() == [CLS, 4, 5, 6, SEP, 7, 7, 7]
    assert tokens.mask.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert tokens.ids.dtype == tokens.mask.dtype == np.int64
    assert tokens.report == PromptReport(5, 12, truncated=False)


def test_a_prompt_that_fills_a_multiple_gets_no_padding(word_pieces: Path) -> None:
    assert PromptTokenizer(word_pieces, rules()).encode("a cat").ids.tolist() == [CLS, 4, 6, SEP]


def test_padding_never_passes_the_longest_length(word_pieces: Path) -> None:
    tokens = PromptTokenizer(word_pieces, rules(max_length=10, pad_to_multiple=8)).encode("the cat on the red mat on")
    assert len(tokens.ids) == 10
    assert tokens.mask.sum() == 9


def test_a_fixed_length(word_pieces: Path) -> None:
    tokenizer = PromptTokenizer(word_pieces, rules(pad_to_multiple=12))
    assert len(tokenizer.encode("").ids) == len(tokenizer.encode("a " * 50).ids) == 12


def test_a_long_prompt_is_cut_before_its_closing_token(word_pieces: Path) -> None:
    tokens = PromptTokenizer(word_pieces, rules(max_length=6)).encode("a red cats on the mat " * 3)
    assert tokens.ids.tolist() == [CLS, 4, 5, 6, 7, SEP]
    assert tokens.mask.tolist() == [1] * 6
    assert tokens.report == PromptReport(2 + 3 * 7, 6, truncated=True)


def test_a_prompt_of_exactly_the_longest_length_is_not_cut(word_pieces: Path) -> None:
    assert PromptTokenizer(word_pieces, rules(max_length=6)).encode("a red cat on").report == PromptReport(6, 6, False)


def test_special_tokens_in_a_prompt_are_plain_text(word_pieces: Path) -> None:
    tokens = PromptTokenizer(word_pieces, rules()).encode("a [SEP] dog")
    assert tokens.ids[: tokens.mask.sum()].tolist() == [CLS, 4, *map(WORDS.index, ["[", "sep", "]"]), 8, SEP]


def test_byte_pairs_without_special_tokens(byte_pairs: Path) -> None:
    tokenizer = PromptTokenizer(byte_pairs, rules(max_length=6, pad_to_multiple=6))
    tokens = tokenizer.encode("cat cat")
    assert tokens.report == PromptReport(3, 6, truncated=False)
    assert tokens.ids[0] == tokens.ids[2]
    assert tokenizer.encode("dog " * 5).report == PromptReport(20, 6, truncated=True)


def test_an_empty_prompt_is_all_padding_without_special_tokens(byte_pairs: Path) -> None:
    tokens = PromptTokenizer(byte_pairs, rules()).encode("")
    assert tokens.mask.tolist() == [0, 0, 0, 0]
    assert tokens.report == PromptReport(0, 12, truncated=False)


def test_threads_get_the_same_tokens(word_pieces: Path) -> None:
    tokenizer = PromptTokenizer(word_pieces, rules())
    prompts = [" ".join(WORDS[4:12][i % 8 :] * (i % 5)) for i in range(200)]
    alone = [tokenizer.encode(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(tokenizer.encode, prompts))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert one.report == other.report


def test_a_length_without_room_for_text_is_an_error(word_pieces: Path) -> None:
    with pytest.raises(ValueError, match="no room beside 2 special tokens"):
        PromptTokenizer(word_pieces, rules(max_length=2))


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer file"):
        PromptTokenizer(path, rules())
