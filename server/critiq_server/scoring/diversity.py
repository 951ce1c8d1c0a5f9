"""Rankings whose pictures differ from each other: maximal marginal relevance over the distance of embeddings.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing summaries",
SIGIR 1998: each next place goes to the candidate with the best mix of its own relevance and its distance from those
that were picked before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from critiq.errors import Internal
from critiq.types import Score
from critiq_server.scoring.judgement import Judgement

Embedding = NDArray[np.floating]
"""One picture's embedding, ``[width]``."""

SIMILARITY_DECIMALS = 4
"""Float noise of the batch that an embedding was computed in must not change an order, or show in an answer."""


def checked(embedding: NDArray[np.generic], stage: str) -> Embedding:
    """A stage's output as an embedding; raises ``Internal`` if it holds anything but finite numbers."""
    values = np.asarray(embedding, np.float64)
    if not np.isfinite(values).all():
        raise Internal(f"the stage {stage!r} gave an embedding that is not finite; the picture was not ranked")
    return values


def similarities(embeddings: Sequence[Embedding]) -> NDArray[np.float64]:
    """Cosine similarities ``[n, n]``, -1..1, of ``n`` embeddings; an embedding of length zero is like none."""
    rows = np.stack(embeddings).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return np.asarray(np.clip(np.round(rows @ rows.T, SIMILARITY_DECIMALS), -1.0, 1.0))


def relevances(judgement: Judgement, scores: Sequence[Score]) -> NDArray[np.float64]:
    """The calibrated scores, 0..1; where a model has none, the raw ones between the worst (0) and the best (1)."""
    calibrated = [score.calibrated for score in scores if score.calibrated is not None]
    if len(calibrated) == len(scores):
        return np.array(calibrated)
    goodness = np.array([judgement.goodness(score.raw) for score in scores])
    span = goodness.max() - goodness.min()
    return np.asarray((goodness - goodness.min()) / span) if span > 0 else np.ones_like(goodness)


def diverse_order(
    relevance: NDArray[np.float64], similarity: NDArray[np.float64], diversity: float, count: int
) -> list[int]:
    """The first ``count`` of the candidates, in the order of maximal marginal relevance.

    Args:
        relevance: ``[n]``, 0..1, of candidates in the order that score alone gives; of equals the earlier wins.
        similarity: ``[n, n]``, -1..1.
        diversity: 0 (relevance alone) to 1 (distance alone, behind the first).
        count: 1 to ``n``.
    """
    order = [0]  # The relevance is rounded, the order of the candidates is not: the first place is the best score's.
    nearest = np.maximum(similarity[0], 0.0)  # to the nearest one picked; less than 0 is no further away than 0
    while len(order) < count:
        value = (1 - diversity) * relevance + diversity * (1 - nearest)
        value[order] = -np.inf
        best = int(np.argmax(value))  # of equals the first
        order.append(best)
        nearest = np.maximum(nearest, similarity[best])
    return order
