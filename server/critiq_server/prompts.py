"""Prompts: normalised text, and token ids for the stages that read text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from critiq.errors import InvalidArgument, TooLarge
from critiq.types import PromptReport
from critiq_server.bundles.manifest import Tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and the mask of real tokens, int64 ``[length]`` each."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    report: PromptReport


def normalise(prompt: str, max_bytes: int) -> str:
    """The prompt in Unicode NFC, control characters removed, every run of white space one blank, none at the ends.

    Raises ``TooLarge`` beyond ``max_bytes`` of UTF-8, ``InvalidArgument`` for NUL and lone surrogates.
    """
    if not prompt:
        return ""
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument("the prompt holds a lone surrogate; send valid Unicode text", field="prompt") from error
    if size > max_bytes:
        raise TooLarge(f"the prompt has {size} bytes, the limit is {max_bytes}; shorten it", field="prompt")
    if "\0" in prompt:
        raise InvalidArgument("the prompt holds a NUL character; send plain text", field="prompt")
    text = " ".join(unicodedata.normalize("NFC", prompt).split())
    return "".join(char for char in text if unicodedata.category(char) != "Cc")


class PromptTokenizer:
    """A ``tokenizers`` file with the manifest's rules for cutting and padding. Thread-safe."""

    def __init__(self, path: Path, rules: Tokenizer) -> None:
        self._rules = rules
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(rules.max_length)

    def encode(self, prompt: str) -> Tokens:
        """Tokens of a normalised prompt, padded to a multiple of ``pad_to_multiple``, at most ``max_length``."""
        rules = self._rules
        encoding = self._tokenizer.encode(prompt)
        count = len(encoding.ids)
        total = count + sum(sum(1 - flag for flag in part.special_tokens_mask) for part in encoding.overflowing)
        step = rules.pad_to_multiple
        length = min(rules.max_length, -(-count // step) * step)
        ids = np.full(length, rules.pad_id, np.int64)
        ids[:count] = encoding.ids
        mask = np.zeros(length, np.int64)
        mask[:count] = 1
        return Tokens(ids, mask, PromptReport(total, rules.max_length, truncated=total > count))
