"""MINT-IQA: a picture tower, a transformer whose queries look at the picture and read the prompt, three regressors.

Wang et al., Quality Assessment for AI Generated Images with Instruction Tuning. The picture tower is EVA's ViT-g
without its last block (Fang et al., CVPR 2023); the query transformer is BLIP-2's (Li et al., ICML 2023): BERT, in
which learned queries and the words of a text attend to each other, and in every second layer the queries alone to the
picture.

A second pair of tower and transformer explains: what the first transformer's queries gave is added to the second's own
queries, a question takes the prompt's place, and the result is projected to input embeddings of a language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from critiq_exporters.families.blip import Attention, PictureTower
from critiq_exporters.families.clip.network import attend

_BLOCKED = -1e4
_ANSWER = 1
"""Of the three numbers that a regressor gives, the one that was trained."""


@dataclass(frozen=True)
class Shape:
    """Sizes; the defaults are the published model's (ViT-g/14 at 224, BERT base)."""

    image: int = 224
    patch: int = 14
    width: int = 1408
    hidden: int = 6144
    layers: int = 39
    heads: int = 16
    queries: int = 32
    text_width: int = 768
    text_hidden: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    words: int = 30523
    context: int = 512
    regressor: int = 48
    embedding: int = 4096
    """Width of the language model; only the explaining half has it."""

    def __post_init__(self) -> None:
        for name, width, heads in (
            ("the picture tower's", self.width, self.heads),
            ("the query transformer's", self.text_width, self.text_heads),
        ):
            if heads < 1 or width % heads:
                raise ValueError(f"{name} width of {width} does not divide into {heads} heads")


class MintIqa(nn.Module):
    """Both stages of the scoring half, as one checkpoint holds them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.vision = Vision(shape)
        self.scores = Scores(shape)


class Vision(PictureTower):
    """Stage: pixels to features of the patches, with one for the whole before them."""

    def __init__(self, shape: Shape) -> None:
        blocks = (_Block(shape) for _ in range(shape.layers))
        super().__init__(shape.image, shape.patch, shape.width, blocks, eps=1e-5)


class Scores(nn.Module):
    """Stage: features of a picture and the prompt's tokens to three scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, shape.queries, shape.text_width))
        self.transformer = QueryTransformer(shape)
        self.quality, self.authenticity, self.correspondence = (Regressor(shape) for _ in range(3))

    def forward(self, picture: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``picture`` as :class:`Vision` gives it, int64 ids and mask ``[batch, length]``, to scores ``[batch]``.

        In this order: quality, authenticity, correspondence with the prompt.
        """
        seen = self.represent(picture, ids, mask)
        return self.quality(seen), self.authenticity(seen), self.correspondence(seen)

    def represent(self, picture: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What the regressors read, and what the explaining half takes: float32 ``[batch, queries, text_width]``."""
        seen: Tensor = self.transformer(self.queries.expand(ids.shape[0], -1, -1), picture, ids, mask)
        return seen


class Regressor(nn.Module):
    """Two linear layers with nothing between them, averaged over the queries."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first = nn.Linear(shape.text_width, shape.regressor)
        self.second = nn.Linear(shape.regressor, 3)

    def forward(self, seen: Tensor) -> Tensor:
        """``[batch, queries, text_width]`` to ``[batch]``."""
        # Linear all the way: the mean may come first, where it is cheapest.
        score: Tensor = self.second(self.first(seen.mean(dim=1)))[:, _ANSWER]
        return score


class Explanation(nn.Module):
    """The explaining half, up to the language model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.vision = Vision(shape)
        self.queries = nn.Parameter(torch.zeros(1, shape.queries, shape.text_width))
        self.condition = nn.Conv1d(shape.queries, shape.queries, 1)
        """Mixes the queries of the scoring half; it starts at zero in training, so that they come in gently."""
        self.transformer = QueryTransformer(shape)
        self.project = nn.Linear(shape.text_width, shape.embedding)

    def forward(self, pixels: Tensor, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Input embeddings of the language model, float32 ``[batch, queries, embedding]``.

        Args:
            pixels: as :class:`Vision` takes them.
            seen: what :meth:`Scores.represent` gave for the picture and its prompt.
            ids: int64 ``[batch, length]``, tokens of the question.
            mask: int64 ``[batch, length]``, 1 for real tokens.
        """
        queries = self.condition(seen) + self.queries
        embeddings: Tensor = self.project(self.transformer(queries, self.vision(pixels), ids, mask))
        return embeddings


class QueryTransformer(nn.Module):
    """BERT, in which queries and a text attend to each other and the queries to a picture."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.words, shape.text_width)
        self.positions = nn.Embedding(shape.context, shape.text_width)
        self.norm = nn.LayerNorm(shape.text_width, eps=1e-12)
        self.layers = nn.ModuleList(_Layer(shape, number) for number in range(shape.text_layers))

    def forward(self, queries: Tensor, picture: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Queries ``[batch, queries, text_width]`` to the same shape. They have no positions; the words do."""
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(torch.cat([queries, self.words(ids) + self.positions(at)], dim=1))
        hidden = F.pad((1 - mask.to(x.dtype)) * _BLOCKED, (queries.shape[1], 0))[:, None, None]
        for layer in self.layers:
            x = layer(x, hidden, picture)
        seen: Tensor = x
        return seen


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(shape.width))
        self.v_bias = nn.Parameter(torch.zeros(shape.width))
        self.out = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=2)
        x = x + self.out(attend(q + self.q_bias, k, v + self.v_bias, self.heads))
        refined: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return refined


class _Layer(nn.Module):
    """Attention among queries and words; in every second layer, of the queries over the picture; a perceptron each.

    Nobody reads the words after the last layer: there, only the queries are computed.
    """

    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.queries = shape.queries
        self.own = Attention(shape.text_width, shape.text_width, shape.text_heads)
        self.cross = Attention(shape.text_width, shape.width, shape.text_heads) if looks(number) else None
        self.of_queries = _Perceptron(shape)
        self.of_words = _Perceptron(shape) if number < shape.text_layers - 1 else None

    def forward(self, x: Tensor, hidden: Tensor, picture: Tensor) -> Tensor:
        x = self.own(x if self.of_words is not None else x[:, : self.queries], x, hidden)
        looking = x[:, : self.queries]
        if self.cross is not None:
            looking = self.cross(looking, picture, None)
        queries: Tensor = self.of_queries(looking)
        if self.of_words is None:
            return queries
        return torch.cat([queries, self.of_words(x[:, self.queries :])], dim=1)


def looks(number: int) -> bool:
    """Whether the queries attend to the picture in this layer of the transformer."""
    return number % 2 == 0


class _Perceptron(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.text_width, shape.text_hidden)
        self.fc2 = nn.Linear(shape.text_hidden, shape.text_width)
        self.norm = nn.LayerNorm(shape.text_width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.norm(x + self.fc2(F.gelu(self.fc1(x))))
        return refined
