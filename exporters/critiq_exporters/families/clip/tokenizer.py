"""Tokenizer files for the text towers: read from a checkpoint's folder, or built from its vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from critiq_exporters.core.checkpoints import CheckpointError

START, END = "<|startoftext|>", "<|endoftext|>"
_PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_STRAIGHT = {
    **{"[‘’‚‛]": "'", "[“”„‟]": '"', "\ufeff": ""},
    **{"，": ",", "！": "!", "？": "?", "：": ":", "；": ";", "（": "(", "）": ")"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#0?39;": "'"},
}
"""What OpenAI's and OpenCLIP's cleaning of a text (the package ftfy, then HTML unescaping) changes in usual prompts."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer for a bundle."""

    content: bytes
    """As JSON, the format of the package ``tokenizers``."""
    end: int
    """Id of the token that closes a text."""
    words: int
    """Ids lie below this."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with its opening and closing tokens."""
        tokenizer = Tokenizer.from_buffer(self.content)
        return [tokenizer.encode(text).ids for text in texts]


def clip_tokenizer(place: Path, prefix: str = "", straighten: bool = False) -> TextTokenizer:
    """CLIP's byte-pair encoding.

    Args:
        place: a ``tokenizer.json``, or a folder with one or with ``vocab.json`` and ``merges.txt``.
        prefix: put before every text.
        straighten: make quotes straight and punctuation narrow and undo HTML entities, as OpenAI's and OpenCLIP's code
            does.

    Raises:
        CheckpointError: there is no such file, or it is not CLIP's kind of tokenizer.
    """
    file = _tokenizer_json(place)
    if file is not None:
        tokenizer = _opened(file)
    elif place.is_dir() and (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
        tokenizer = _byte_pairs(place / "vocab.json", place / "merges.txt")
    else:
        raise CheckpointError(_nothing_in(place, "tokenizer.json, or vocab.json and merges.txt"))
    steps: list[normalizers.Normalizer] = []
    if straighten:
        steps += [normalizers.Replace(Regex(curly), straight) for curly, straight in _STRAIGHT.items()]
    if prefix:
        steps.append(normalizers.Prepend(prefix.rstrip() + " "))
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return _checked(tokenizer, place)


def bert_tokenizer(place: Path) -> TextTokenizer:
    """BERT's word pieces in lower case, between [CLS] and [SEP].

    Args:
        place: a ``tokenizer.json`` or ``vocab.txt``, or a folder with one of them.

    Raises:
        CheckpointError: there is no such file, or it is not BERT's kind of tokenizer.
    """
    file = _tokenizer_json(place)
    vocabulary = place / "vocab.txt" if place.is_dir() else place
    if file is not None:
        tokenizer = _opened(file)
    elif vocabulary.is_file() and vocabulary.suffix == ".txt":
        tokenizer = _word_pieces(vocabulary)
    else:
        raise CheckpointError(_nothing_in(place, "tokenizer.json or vocab.txt"))
    return _checked(tokenizer, place)


def _tokenizer_json(place: Path) -> Path | None:
    file = place / "tokenizer.json" if place.is_dir() else place
    return file if file.is_file() and file.suffix == ".json" else None


def _nothing_in(place: Path, wanted: str) -> str:
    return (
        f"{place} holds no tokenizer ({wanted}); pass --tokenizer with a folder or file that has one, for instance "
        "the folder of the checkpoint that this one was trained from"
    )


def _opened(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise CheckpointError(f"{file} is not a tokenizer file: {error}") from error


def _byte_pairs(vocabulary: Path, merges: Path) -> Tokenizer:
    try:
        words = json.loads(vocabulary.read_text("utf-8"))
        lines = merges.read_text("utf-8").splitlines()
        pairs = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
        model = models.BPE(
            vocab=words,
            merges=pairs,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
        start, end = words[START], words[END]
    except Exception as error:  # as above
        raise CheckpointError(f"{vocabulary} and {merges.name} are not CLIP's vocabulary: {error!r}") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    return tokenizer


def _pair(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second


def _word_pieces(vocabulary: Path) -> Tokenizer:
    words = {word: number for number, word in enumerate(vocabulary.read_text("utf-8").splitlines())}
    if lacking := [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in words]:
        raise CheckpointError(f"{vocabulary} is not BERT's vocabulary: it lacks {', '.join(lacking)}")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, words[word]) for word in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _checked(tokenizer: Tokenizer, place: Path) -> TextTokenizer:
    """With no cutting or padding of its own (the server does both), and with a token that closes every text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if special != 2:
        raise CheckpointError(
            f"the tokenizer in {place} puts {special} tokens around a text; a CLIP or BLIP text tower needs one that "
            "opens it and one that closes it"
        )
    return TextTokenizer(
        content=tokenizer.to_str().encode(),
        end=tokenizer.encode("a").ids[-1],
        words=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
    )
