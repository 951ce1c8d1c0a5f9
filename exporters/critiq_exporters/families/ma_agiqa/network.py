"""MA-AGIQA: MANIQA's tower and two answers of a large multimodal model, mixed by a gate (Wang et al., ACM MM 2024).

The tower runs on the picture alone. The fusion (the paper's mixture of experts, section 3.3, eq. 4) takes what the
tower sees at each position and two vectors: the mean of the language model's last hidden states when it is asked about
the picture's semantic content and about its coherence (section 3.2, eq. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from critiq_exporters.families.maniqa.network import Shape, Tower

FEATURE = 4096
"""Width of the language model's hidden states (mPLUG-Owl2)."""


class PositionVotes(nn.Module):
    """The tower without its pooling: one weighted score for each position."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tower = Tower(shape)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` to float32 ``[batch, positions]``."""
        scores, weights = self.tower(pixels)
        votes: Tensor = scores * weights
        return votes


class Fusion(nn.Module):
    """Mixture of three experts.

    The gate is linear. The paper has a sigmoid behind it; the authors' code, and so the released weights, has none.
    """

    def __init__(self, positions: int, feature: int = FEATURE) -> None:
        super().__init__()
        self.picture = nn.Linear(positions, positions)
        self.semantic = nn.Linear(feature, positions)
        self.coherence = nn.Linear(feature, positions)
        self.gate = nn.Linear(3 * positions, 3)
        self.output = nn.Linear(positions, 1)

    def forward(self, votes: Tensor, semantic: Tensor, coherence: Tensor) -> Tensor:
        """Quality on the scale of the data set's opinions, float32 ``[batch]``, unbounded.

        Args:
            votes: of :class:`PositionVotes`, float32 ``[batch, positions]``.
            semantic: the answer about semantic content, float16 or float32 ``[batch, feature]``.
            coherence: the answer about coherence, alike.
        """
        experts = self.experts(votes, semantic, coherence)
        gate = self.gate(experts.flatten(1))
        quality: Tensor = self.output((gate[:, :, None] * experts).sum(dim=1)).squeeze(1)
        return quality

    def experts(self, votes: Tensor, semantic: Tensor, coherence: Tensor) -> Tensor:
        """What the gate mixes, float32 ``[batch, 3, positions]``: semantic content, coherence, picture."""
        semantic = self.semantic(semantic.to(torch.float32)).relu()
        coherence = self.coherence(coherence.to(torch.float32)).relu()
        return torch.stack([semantic, coherence, self.picture(votes)], dim=1)
