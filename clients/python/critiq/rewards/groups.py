"""Rewards relative to the other pictures of the same prompt, as GRPO uses them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

EPSILON = 1e-4
"""Added to the deviation, so that a group of equal rewards gets zeros."""


def normalised_within(groups: Sequence[Hashable], rewards: Sequence[float], *, epsilon: float = EPSILON) -> list[float]:
    """``(reward - mean) / (deviation + epsilon)`` within each group (Shao et al., DeepSeekMath, 2024, section 4.1).

    Args:
        groups: what each reward belongs to, for instance its prompt. A group must be complete in one call.
        rewards: NaN stays NaN and does not count.
        epsilon: added to the population's standard deviation.

    Returns:
        One number a reward; 0 for the only one of its group.
    """
    values = np.asarray(rewards, np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    for indices in members.values():
        known = values[indices][~np.isnan(values[indices])]
        if len(known):
            values[indices] = (values[indices] - known.mean()) / (known.std() + epsilon)
    return [float(value) for value in values]
