"""What families make of the embeddings of a picture and a text: small stages behind the towers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

MLP_WIDTHS = (1024, 128, 64, 16, 1)
"""Of the perceptron that the LAION predictor and ImageReward end in."""


class Cosine(nn.Module):
    """Stage: the cosine of picture and text, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Two of float32 ``[batch, embedding]``, of length one, to ``[batch]``."""
        return (image * text).sum(dim=1) * self.factor


class ClippedCosine(Cosine):
    """Stage: the same, with 0 for what is negative."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Two of float32 ``[batch, embedding]``, of length one, to ``[batch]``."""
        return super().forward(image, text).relu()


class Antonyms(nn.Module):
    """Stage: how much nearer a picture is to the first text of each pair than to the second."""

    directions: Tensor

    def __init__(self, texts: Tensor, scale: float) -> None:
        """``texts``: float32 ``[pairs, 2, embedding]``, of length one; ``scale``: factor of the cosines."""
        super().__init__()
        self.scale = scale
        # Of the pair's softmax only the difference of the two logits counts.
        self.register_buffer("directions", texts[:, 0] - texts[:, 1], persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """float32 ``[batch, embedding]``, of length one, to a probability ``[batch]`` for each pair."""
        preferred = torch.sigmoid(self.scale * (image @ self.directions.T))
        return preferred.unbind(dim=1)


def perceptron(width: int) -> nn.Sequential:
    """Linear layers and nothing between them: the published predictors were trained without activations.

    ``[batch, width]`` to ``[batch, 1]``.
    """
    sizes = (width, *MLP_WIDTHS)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in itertools.pairwise(sizes)))


PERCEPTRON_NAMES = {
    f"layers.{theirs}.{kind}": f"{ours}.{kind}"
    for ours, theirs in enumerate((0, 2, 4, 6, 7))
    for kind in ("weight", "bias")
}
"""Our names by the published ones, which count the dropouts between the layers."""


class Aesthetics(nn.Module):
    """Stage: the LAION aesthetics predictor on the embedding of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = perceptron(width)

    def forward(self, image: Tensor) -> Tensor:
        """float32 ``[batch, embedding]``, of length one, to ``[batch]``."""
        rating: Tensor = self.layers(image).squeeze(1)
        return rating
