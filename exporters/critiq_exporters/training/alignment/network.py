"""The three graphs of the alignment part, as torch modules.

After ELIQ ("ELIQ: a label-free framework for quality assessment of evolving AI-generated images"): an alignment
embedding z_ali from the interaction of picture and prompt (eq. 8), here word-region matching between two compact
encoders in place of a large multimodal model, and the alignment query of the quality query transformer on top of it
(eq. 13-15).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from critiq_exporters.training.alignment.mobilenet import CLASSES, FEATURES, REGION_SIDE, MobileNetV2
from critiq_exporters.training.alignment.text import TextTower, TowerShape, mean_of_tokens

SHARED = 256
"""Width of the space in which words and regions are compared."""
ALIGNMENT = 128
"""Width of z_ali and of the quality query transformer."""
REFERENCES = 48
OPINIONS = 3
_OPINION_WEIGHTS = (0.4, 0.4, 0.2)
"""Of the head's logit, of the learned embeddings' cosine, and of the cosine with the recognised classes alone, which
know things that the training captions lack."""
_SQUASH = 2.0
"""Standardised opinions beyond about this count logarithmically: matching captions lie far out, and none of the three
should decide alone."""
# Where on the scale of the weighted opinions the score is 0.5, and how fast it rises there.
_MIDDLE, _SLOPE = 1.2, 1.0
_FOCUS = 12.0
"""Inverse temperature with which a word chooses its regions."""


@dataclass(frozen=True)
class Sizes:
    """What is needed to rebuild the network before its weights are loaded."""

    tower: TowerShape
    frozen_layers: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class ImageEncoder(nn.Module):
    """A picture to 49 region vectors in the shared space and one vector in the space of sentence embeddings.

    Beside the learned projections, both carry what the ImageNet classifier recognises, as the average sentence
    embedding of its class names (Norouzi et al., "Zero-shot learning by convex combination of semantic embeddings"):
    things that no training caption mentions still land near their names.
    """

    def __init__(self, backbone: MobileNetV2, class_embeddings: Tensor):
        super().__init__()
        width = class_embeddings.shape[1]
        self.backbone = backbone
        self.register_buffer("class_embeddings", class_embeddings)
        self.class_embeddings: Tensor
        self.region = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, SHARED))
        self.concept_region = nn.Linear(width, SHARED)
        self.position = nn.Parameter(torch.zeros(REGION_SIDE**2, SHARED))
        self.summary = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(FEATURES + width, 512), nn.GELU(), nn.Dropout(0.3), nn.Linear(512, width)
        )
        self.attention = nn.Linear(FEATURES, 1)
        self.concept_weight = nn.Parameter(torch.tensor(2.0))
        self.sharpness = nn.Parameter(torch.tensor(0.5))
        # Class embeddings have length 1, the token features that share their projection about this much.
        self.concept_gain = nn.Parameter(torch.tensor(6.0))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 RGB ``[batch, 224, 224, 3]`` to unit vectors: regions ``[batch, 49, 256]``, and, both ``[batch,
        width]``, the learned embedding and that of the recognised classes alone.
        """
        return self.from_stem(self.backbone.pixels_to_stem(image))[:3]

    def from_stem(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same from the output of the frozen stem ``[batch, 96, 14, 14]``, and the class logits ``[batch,
        1001]``.
        """
        features = self.backbone.tail(stem).flatten(2).transpose(1, 2)
        local = self.backbone.classifier(features)
        logits = local.mean(1)
        concept = (self.sharpness * logits).softmax(-1) @ self.class_embeddings
        local_concepts = (self.sharpness * local).softmax(-1) @ self.class_embeddings
        regions = self.region(features) + self.concept_region(self.concept_gain * local_concepts) + self.position
        where = self.attention(features).softmax(1)
        pooled = (where * features).sum(1)
        embedding = self.summary(torch.cat([pooled, concept], -1)) + self.concept_weight * concept
        return F.normalize(regions, dim=-1), F.normalize(embedding, dim=-1), F.normalize(concept, dim=-1), logits


class TextEncoder(nn.Module):
    """A prompt to a vector and a weight for each token, and a sentence embedding; it sees no picture."""

    def __init__(self, tower: TextTower, frozen_layers: int):
        super().__init__()
        width = tower.shape.width
        self.tower = tower
        self.frozen_layers = frozen_layers
        self.token = nn.Linear(width, SHARED)
        self.weight = nn.Linear(width, 1)
        self.refine = nn.Linear(width, width)
        nn.init.zeros_(self.refine.weight)  # starts as the pretrained sentence embedding
        nn.init.zeros_(self.refine.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """int64 ``[batch, length]`` twice to unit token vectors ``[batch, length, 256]`` (zero at padding), weights
        ``[batch, length]`` that sum to 1 (zero at padding), unit sentence embedding ``[batch, width]``.
        """
        return self.from_frozen(self.tower(ids, mask, self.frozen_layers), mask)

    def from_frozen(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the features after the frozen layers ``[batch, length, width]``."""
        features = self.tower.resume(features, mask, self.frozen_layers)
        real = mask.to(features.dtype)
        tokens = F.normalize(self.token(features), dim=-1) * real[..., None]
        scores = self.weight(features)[..., 0] + (real - 1.0) * 10000.0
        mean = mean_of_tokens(features, mask)
        return tokens, scores.softmax(-1) * real, F.normalize(mean + self.refine(mean), dim=-1)


class AlignmentHead(nn.Module):
    """Word-region matching to z_ali, then the alignment query of the quality query transformer, to one score."""

    def __init__(self, width: int):
        super().__init__()
        self.summary = nn.Linear(width, ALIGNMENT)
        self.matched = nn.Linear(SHARED, ALIGNMENT)
        self.statistics = nn.Linear(3, ALIGNMENT)
        self.content_norm = nn.LayerNorm(ALIGNMENT)
        self.query = nn.Parameter(torch.randn(1, 1, ALIGNMENT) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 2, ALIGNMENT) * 0.02)
        self.transformer = QueryTransformer(ALIGNMENT, layers=2)
        self.score = nn.Sequential(nn.Linear(ALIGNMENT, ALIGNMENT), nn.GELU(), nn.Linear(ALIGNMENT, 1))
        self.skip = nn.Linear(2, 1)
        nn.init.constant_(self.skip.weight, 4.0)
        nn.init.constant_(self.skip.bias, 0.0)

    def forward(
        self, regions: Tensor, image_embedding: Tensor, tokens: Tensor, weights: Tensor, text_embedding: Tensor
    ) -> Tensor:
        """Logit ``[batch]`` that the prompt describes the picture; inputs as the two encoders return them."""
        words, matched = match_words(regions, tokens)
        word_score = (weights * words).sum(-1)
        summary = image_embedding * text_embedding
        cosine = summary.sum(-1)
        # The worst-matched of the words that matter: one wrong element makes a prompt wrong.
        worst = -torch.log((weights * torch.exp(-8.0 * words)).sum(-1) + 1e-6) / 8.0
        scale = float(summary.shape[-1]) ** 0.5
        content = (
            self.summary(summary * scale)
            + self.matched((weights[..., None] * tokens * matched).sum(1) * SHARED**0.5)
            + self.statistics(torch.stack([cosine, word_score, worst], -1))
        )
        z_ali = self.content_norm(content)
        sequence = torch.cat([z_ali[:, None], self.query.expand(z_ali.shape[0], -1, -1)], 1) + self.position
        answer = self.score(self.transformer(sequence)[:, 1])
        logit: Tensor = (answer + self.skip(torch.stack([cosine, word_score], -1)))[:, 0]
        return logit


class QueryTransformer(nn.Module):
    """A pre-norm transformer encoder over a handful of tokens (ELIQ eq. 14; Vaswani et al. 2017, section 3)."""

    def __init__(self, width: int, layers: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.attention_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(2 * width, width),
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to the same shape."""
        batch, tokens, width = x.shape
        parts = zip(self.attention_norms, self.projections, self.outputs, self.feed_forwards, strict=True)
        for norm, projection, output, feed_forward in parts:
            packed = projection(norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
            weights = (query @ key.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(-1)
            x = x + output((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
            x = x + feed_forward(x)
        return x


def match_words(regions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """For each word its likeness to the regions it attends to ``[batch, length]``, and their mean ``[batch, length,
    256]``.
    """
    likeness = tokens @ regions.transpose(1, 2)
    attention = (likeness * _FOCUS).softmax(-1)
    return (attention * likeness).sum(-1), attention @ regions


def match_all(regions: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted word likeness of every picture with every text ``[pictures, texts]`` (for contrastive training)."""
    pictures, texts, length = regions.shape[0], tokens.shape[0], tokens.shape[1]
    likeness = tokens.reshape(texts * length, -1) @ regions.reshape(-1, regions.shape[-1]).T
    likeness = likeness.reshape(texts * length, pictures, -1)
    chosen = ((likeness * _FOCUS).softmax(-1) * likeness).sum(-1).reshape(texts, length, pictures)
    return torch.einsum("tlp,tl->pt", chosen, weights)


class AlignmentModel(nn.Module):
    """The two encoders and the head; trained together, exported apart.

    A prompt of common words suits any picture a little, one of rare words none. So that scores of different prompts
    compare, a prompt's logits are set against its logits with ``REFERENCES`` reference pictures, which the text stage
    carries as features: what counts is how far the picture stands out among them.
    """

    def __init__(self, image: ImageEncoder, text: TextEncoder):
        super().__init__()
        width = text.tower.shape.width
        self.image = image
        self.text = text
        self.head = AlignmentHead(width)
        # What a word is called and what the classifier calls a region go through one projection, so that class names
        # which no caption contains still match.
        self.image.concept_region.weight = self.text.token.weight
        self.log_scale = nn.Parameter(torch.tensor([3.0, 3.0]))
        self.register_buffer("reference_regions", torch.zeros(REFERENCES, REGION_SIDE**2, SHARED))
        self.register_buffer("reference_pictures", torch.zeros(REFERENCES, width))
        self.register_buffer("reference_concepts", torch.zeros(REFERENCES, width))
        self.register_buffer("usual_spread", torch.ones(OPINIONS))
        self.reference_regions: Tensor
        self.reference_pictures: Tensor
        self.reference_concepts: Tensor
        self.usual_spread: Tensor

    def prompt(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :class:`TextEncoder` returns, and the prompt's ``level`` ``[batch, 6]``: over the reference pictures the
        means of the three opinions, then their spreads.
        """
        tokens, weights, sentence = self.text(ids, mask)
        count = ids.shape[0]
        opinions = self.opinions(
            self.reference_regions.repeat(count, 1, 1),
            self.reference_pictures.repeat(count, 1),
            self.reference_concepts.repeat(count, 1),
            *(part.repeat_interleave(REFERENCES, 0) for part in (tokens, weights, sentence)),
        ).reshape(count, REFERENCES, OPINIONS)
        mean = opinions.mean(1)
        spread = (opinions - mean[:, None]).square().mean(1).sqrt()
        # Half the usual spread: small differences between pictures that all do not match must not be blown up.
        return tokens, weights, sentence, torch.cat([mean, (spread + self.usual_spread) / 2], 1)

    def opinions(
        self, regions: Tensor, picture: Tensor, concept: Tensor, tokens: Tensor, weights: Tensor, sentence: Tensor
    ) -> Tensor:
        """The head's logit and two cosines, not yet standardised ``[batch, 3]``."""
        logit = self.head(regions, picture, tokens, weights, sentence)
        return torch.stack([logit, (picture * sentence).sum(-1), (concept * sentence).sum(-1)], 1)

    def align(
        self, regions: Tensor, picture: Tensor, concept: Tensor, tokens: Tensor, weights: Tensor, sentence: Tensor,
        level: Tensor,
    ) -> Tensor:  # fmt: skip
        """Alignment ``[batch]`` in 0..1 from the encoders' outputs."""
        opinions = self.opinions(regions, picture, concept, tokens, weights, sentence)
        standard = (opinions - level[:, :OPINIONS]) / level[:, OPINIONS:]
        squashed = _SQUASH * torch.asinh(standard / _SQUASH)
        total = (squashed * squashed.new_tensor(_OPINION_WEIGHTS)).sum(1)
        return torch.sigmoid((total - _MIDDLE) * _SLOPE)

    def score(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Alignment ``[batch]`` in 0..1 for pictures and prompts in pairs."""
        regions, picture, concept = self.image(image)
        return self.align(regions, picture, concept, *self.prompt(ids, mask))


def build(shape: TowerShape, frozen_layers: int) -> AlignmentModel:
    """An untrained network of the given sizes, to load a checkpoint into."""
    image = ImageEncoder(MobileNetV2(), torch.zeros(CLASSES, shape.width))
    return AlignmentModel(image, TextEncoder(TextTower(shape), frozen_layers))
