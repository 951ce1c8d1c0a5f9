"""The visual side of the built-in model: technical and aesthetic embeddings, gated fusion, quality query transformer.

Source: ELIQ, section 3.3, equations 6-15. Where ELIQ asks a large multimodal model, a compact encoder answers here; and
the visual query sees the visual content token only, so that visual quality does not depend on the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from critiq_exporters.training.damage import DAMAGE, HIDDEN, NUMBERS, DamageNetwork
from critiq_exporters.training.features import GROUPS, PictureFeatures
from critiq_exporters.training.typicality import Typicality

WIDTH = 128
"""Length h of the embeddings; the last two entries are the damage network's log-odds and the aspect's typicality."""
MODEL_WIDTH = 64
ATTENTION_HEADS = 4
INPUT_NOISE = 0.3
"""Spread of the noise on standardised features during training: unseen styles lie a little off the seen ones."""
TYPICAL_WEIGHT = 2.0
"""Of the typicality against the learned penalty: on sound pictures typicality decides, on spoilt ones the penalty."""
DAMAGE_WEIGHT = 0.7
"""Of the damage network's own log-odds, which count even where a picture looks nearly sound."""

LENGTHS = {**GROUPS, "damage": DAMAGE}
"""Length of each group of features that aspects may read: those of the frozen network, and the damage network's."""

SPOILT = HIDDEN + NUMBERS.index("spoilt")
SPOILT_LIMIT = 12.0

Groups = dict[str, Tensor]


@dataclass(frozen=True)
class AspectGroups:
    """Which features an aspect learns from and which it takes typicalities of."""

    learned: tuple[str, ...]
    typical: tuple[str, ...]


TECHNICAL = AspectGroups(learned=("statistics", "texture", "damage"), typical=("statistics", "texture"))
AESTHETIC = AspectGroups(learned=("statistics", "layout", "damage"), typical=("layout", "content"))
"""Exposure and colour are in the statistics; the content features, the longest, would only be learned by heart."""


class Aspect(nn.Module):
    """Groups of features to one aspect's embedding ``[batch, WIDTH]`` (eq. 6 or 7)."""

    def __init__(self, groups: AspectGroups, populations: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.groups = groups
        length = sum(LENGTHS[name] for name in groups.learned)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("scale", torch.ones(length))
        self.mean: Tensor
        self.scale: Tensor
        self.typicality = nn.ModuleDict({name: Typicality(GROUPS[name], populations) for name in groups.typical})
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(length, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH - 2)

    def forward(self, features: Groups) -> Tensor:
        return self.embed(features, self.typical(features))

    def embed(self, features: Groups, typical: Tensor) -> Tensor:
        """The embedding, with the typicality ``[batch]`` already known."""
        standard = (torch.cat([features[name] for name in self.groups.learned], 1) - self.mean) / self.scale
        if self.training:
            standard = standard + INPUT_NOISE * torch.randn_like(standard)
        hidden = F.gelu(self.hidden(self.dropout(standard.clamp(-8.0, 8.0))))
        spoilt = features["damage"][:, SPOILT : SPOILT + 1].clamp(-SPOILT_LIMIT, SPOILT_LIMIT)
        return torch.cat([torch.tanh(self.output(hidden)), spoilt, typical[:, None]], 1)

    def typical(self, features: Groups) -> Tensor:
        """Mean typicality over the groups, ``[batch]``."""
        parts = [self.typicality[name](features[name]) for name in self.groups.typical]
        return torch.stack(parts, 1).mean(1)


class Aspects(nn.Module):
    """Feature groups to the technical and the aesthetic embedding, each ``[batch, WIDTH]``."""

    def __init__(self, populations: int) -> None:
        super().__init__()
        self.technical = Aspect(TECHNICAL, populations)
        self.aesthetic = Aspect(AESTHETIC, populations)

    def forward(self, features: Groups) -> tuple[Tensor, Tensor]:
        return self.technical(features), self.aesthetic(features)


class VisualHead(nn.Module):
    """Embeddings ``[batch, WIDTH]`` to the visual quality score ``[batch]`` (eq. 9-15), unbounded, higher is better.

    Beside it stand the scores of the two aspects alone, ``[batch]`` each: the log-probability that the aspect is high,
    at most 0. Typicalities and the damage network's log-odds reach the scores directly: what the losses teach comes on
    top of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.technical_gate = nn.Linear(2 * WIDTH, WIDTH)
        self.aesthetic_gate = nn.Linear(2 * WIDTH, WIDTH)
        self.fuse = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.query = nn.Parameter(0.02 * torch.randn(1, WIDTH))
        self.project = nn.Linear(WIDTH, MODEL_WIDTH, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(2, MODEL_WIDTH))
        self.encoder = EncoderLayer(MODEL_WIDTH, ATTENTION_HEADS)
        self.score = nn.Sequential(nn.Linear(MODEL_WIDTH, MODEL_WIDTH), nn.GELU(), nn.Linear(MODEL_WIDTH, 1))
        self.technical_score = nn.Linear(WIDTH - 1, 1)
        self.aesthetic_score = nn.Linear(WIDTH - 1, 1)

    def forward(self, technical: Tensor, aesthetic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        learned = self.learned(technical, aesthetic)
        technical_odds, aesthetic_odds = self.odds(technical, aesthetic)
        return learned + direct(technical, aesthetic), F.logsigmoid(technical_odds), F.logsigmoid(aesthetic_odds)

    def learned(self, technical: Tensor, aesthetic: Tensor) -> Tensor:
        """The part of the visual score that the ranking losses teach, ``[batch]``: 0 or less.

        A penalty, so that it can tell a sound picture from a spoilt one but hardly one sound picture from another: what
        synthetic damage teaches about contents and styles is misleading on generated pictures.
        """
        both = torch.cat([technical, aesthetic], 1)
        gated = torch.cat(
            [
                technical * torch.sigmoid(self.technical_gate(both)),
                aesthetic * torch.sigmoid(self.aesthetic_gate(both)),
            ],
            1,
        )
        content = self.fuse(gated)
        tokens = torch.stack([content, self.query.expand_as(content)], 1)
        encoded = self.encoder(self.project(tokens) + self.position)
        return -F.softplus(self.score(encoded[:, 1]).squeeze(1))

    def odds(self, technical: Tensor, aesthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds that the aspect is "high" rather than "low" (the labels of eq. 5), ``[batch]`` each."""
        technical_odds = self.technical_score(technical[:, :-1]).squeeze(1) + technical[:, -1]
        aesthetic_odds = self.aesthetic_score(aesthetic[:, :-1]).squeeze(1) + aesthetic[:, -1]
        return technical_odds, aesthetic_odds


def direct(technical: Tensor, aesthetic: Tensor) -> Tensor:
    """What typicality and the damage network add to the visual score without the head, ``[batch]``."""
    typical = TYPICAL_WEIGHT * 0.5 * (technical[:, -1] + aesthetic[:, -1])
    return typical - DAMAGE_WEIGHT * F.softplus(0.5 * (technical[:, -2] + aesthetic[:, -2]))


class EncoderLayer(nn.Module):
    """One pre-norm transformer encoder layer; ``[batch, tokens, width]`` in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.inwards = nn.Linear(width, 3 * width)
        self.outwards = nn.Linear(width, width)
        self.before_mixing = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        count, width = tokens.shape[1:]
        split = self.inwards(self.before_attention(tokens)).reshape(-1, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(-1)
        attended = (weights @ value).transpose(1, 2).reshape(-1, count, width)
        tokens = tokens + self.outwards(attended)
        mixed: Tensor = self.mix(self.before_mixing(tokens))
        return tokens + mixed


class QualityEncoder(nn.Module):
    """The first stage: views (see ``PictureFeatures``) to the technical and the aesthetic embedding."""

    def __init__(self, features: PictureFeatures, damage: DamageNetwork, aspects: Aspects) -> None:
        super().__init__()
        self.features = features
        self.damage = damage
        self.aspects = aspects

    def forward(self, windows: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        groups, maps = self.features(windows, whole)
        groups["damage"] = self.damage(windows, maps)
        technical, aesthetic = self.aspects(groups)
        return technical, aesthetic
