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
    """Token ids and the mask of real tokens (1; padding is 0), int64 ``[length]`` each."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    report: PromptReport


def normalise(prompt: str, max_bytes: int) -> str:
    """The prompt in Unicode NFC, control characters removed, every run of white space one blank, none at the ends.

    Normalising twice changes nothing more. Raises ``TooLarge`` beyond ``max_bytes`` of UTF-8, ``InvalidArgument`` for
    NUL and for lone surrogates (half of a character, which UTF-8 cannot carry).
    """
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"the prompt holds a lone surrogate at character {error.start}; send valid Unicode text", field="prompt"
        ) from error
    if size > max_bytes:
        raise TooLarge(
            f"the prompt has {size:,} bytes in UTF-8, more than the {max_bytes:,} that this server accepts; shorten it",
            field="prompt",
        )
    if "\0" in prompt:
        at = prompt.index("\0")
        raise InvalidArgument(f"the prompt holds a NUL at character {at}; send plain text", field="prompt")
    if prompt.isascii() and prompt.isprintable():
        return " ".join(prompt.split())
    # Control characters first: what stood on both sides of one may be two blanks, or compose.
    visible = "".join(char for char in prompt if char.isspace() or unicodedata.category(char) != "Cc")
    return " ".join(unicodedata.normalize("NFC", visible).split())


class PromptTokenizer:
    """A ``tokenizers`` file with the manifest's rules for cutting and padding. Safe to use from several threads."""

    def __init__(self, path: Path, rules: Tokenizer) -> None:
        """Raises ``ValueError`` for a file that is no tokenizer, and if ``max_length`` leaves no room for text."""
        self._rules = rules
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more exact
            raise ValueError(f"{path.name} is not a tokenizer file: {error}") from error
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if rules.max_length <= special:
            raise ValueError(f"max_length {rules.max_length} leaves no room beside {special} special tokens")
        # A prompt is text: "[SEP]" or "<|endoftext|>" in it must not act as the model's own mark.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(rules.max_length)

    def encode(self, prompt: str) -> Tokens:
        """Tokens of a normalised prompt.

        Beyond ``max_length`` tokens the text is cut and the special tokens around it stay. Shorter ones are padded
        with ``pad_id`` to a multiple of ``pad_to_multiple``, at most ``max_length``.
        """
        rules = self._rules
        encoding = self._tokenizer.encode(prompt)
        count = len(encoding.ids)
        # What was cut off comes in pieces, each with special tokens of its own.
        total = count + sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
        step = rules.pad_to_multiple
        length = min(rules.max_length, -(-max(count, 1) // step) * step)
        ids = np.full(length, rules.pad_id, np.int64)
        ids[:count] = encoding.ids
        mask = np.zeros(length, np.int64)
        mask[:count] = 1
        return Tokens(ids, mask, PromptReport(total, rules.max_length, truncated=total > count))
