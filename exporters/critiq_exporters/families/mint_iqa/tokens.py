"""bert-base-uncased's word pieces, as MINT-IQA reads prompts and questions with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from critiq_exporters.families.clip.tokenizer import TextTokenizer, bert_tokenizer

LENGTH = 35
"""Tokens that the authors cut prompts to when they evaluate. Their training cut to 256."""
QUESTION_LENGTH = 128
_NEVER_WRITTEN = ("[DEC]", "[ENC]")
"""Marks that the authors' code adds to the vocabulary, and puts before texts that their transformer is to write. Scores
and explanations have none. The table of words has no row for the second, so that a prompt must not bring it in."""


def prompt_tokenizer(place: Path) -> TextTokenizer:
    """The tokenizer in ``place`` (``tokenizer.json``, ``vocab.txt``, or a folder of one) without the unused marks.

    Raises:
        CheckpointError: there is none, or it is not BERT's kind.
    """
    text = bert_tokenizer(place)
    content = json.loads(text.content)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in _NEVER_WRITTEN]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    words = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return replace(text, content=tokenizer.to_str().encode(), words=words)
