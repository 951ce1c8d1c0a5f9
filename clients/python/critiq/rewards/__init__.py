"""Rewards for training text-to-image models: a server's scores in the forms that trainers call.

>>> from critiq.rewards import Mix
>>> mix = Mix({"visual_quality": 0.5, "alignment": 1.0}, url="localhost:8001")
>>> rewards = mix.score(images, prompts)        # images: float [count, 3, height, width] 0..1, or uint8 [..., 3]
>>> rewards.total, rewards.components["alignment"]

``factory`` and ``multi_score`` have the signatures of flow_grpo and ddpo-pytorch, ``trl_reward`` that of TRL, and
``flow_factory`` the classes of Flow-Factory. Larger is better on every scale, whatever the dimension's own direction.
"""

from critiq.rewards.flow_factory import GroupwiseReward, PointwiseReward
from critiq.rewards.groups import normalised_within
from critiq.rewards.mix import Mix, Rewards
from critiq.rewards.terms import Term
from critiq.rewards.trainers import factory, multi_score, trl_reward

__all__ = [
    "GroupwiseReward",
    "Mix",
    "PointwiseReward",
    "Rewards",
    "Term",
    "factory",
    "multi_score",
    "normalised_within",
    "trl_reward",
]
