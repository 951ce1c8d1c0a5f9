"""Reward models in the form of Flow-Factory's: called with lists of prompts and pictures, without importing it.

In its configuration::

    rewards:
      - name: "critiq"
        reward_model: "critiq.rewards.PointwiseReward"
        terms: "visual_quality:0.5,alignment:1"
        server_url: "localhost:8001"

Flow-Factory sorts reward models by its own abstract classes, so ours are registered with those, where they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from critiq._endpoint import DEFAULT_URL
from critiq.errors import InvalidArgument
from critiq.rewards.groups import normalised_within
from critiq.rewards.mix import Mix, Rewards


@dataclass(frozen=True, slots=True)
class Output:
    """``rewards``: float32 ``[count]``; ``extra_info``: every component by its label."""

    rewards: NDArray[np.float32]
    extra_info: dict[str, Any] = field(default_factory=dict)


class _Reward:
    """What both have in common.

    Args:
        config: its attributes ``terms`` (due), ``server_url``, ``timeout``, ``retry_attempts``, ``scale``, ``on_error``
            and ``device`` are read, where they are there.
        accelerator: only its ``device`` is read, for callers that ask for ours.
    """

    required_fields: tuple[str, ...] = ("prompt", "image")
    use_tensor_inputs: bool = False
    kind: str
    """The abstract class of ``flow_factory.rewards.abc`` whose place this one takes."""

    def __init__(self, config: Any, accelerator: Any) -> None:
        abstract = getattr(sys.modules.get("flow_factory.rewards.abc"), self.kind, None)
        if abstract is not None and not isinstance(self, abstract):
            abstract.register(type(self))
        self.config = config
        self.accelerator = accelerator
        self.device = getattr(config, "device", None) or getattr(accelerator, "device", None)
        self.model = None
        terms = getattr(config, "terms", None)
        if not terms:
            raise InvalidArgument('say what to score: terms: "visual_quality:0.5,alignment:1"', field="terms")
        names = {"timeout": "timeout", "retry_attempts": "retries", "scale": "scale", "on_error": "on_error"}
        given = {ours: getattr(config, theirs, None) for theirs, ours in names.items()}
        settings = {name: value for name, value in given.items() if value is not None}
        self._mix = Mix(terms, url=getattr(config, "server_url", None) or DEFAULT_URL, **settings)

    def __call__(
        self,
        prompt: Sequence[str],
        image: Any = None,
        video: object = None,
        audio: object = None,
        condition_images: object = None,
        condition_videos: object = None,
        **unused: object,
    ) -> Output:
        """Scores ``image`` (PIL images, or tensors ``[channels, height, width]``) with ``prompt``.

        Conditions of an edit are not looked at. Raises :class:`~critiq.errors.InvalidArgument` if there are no
        pictures, as with videos.
        """
        if image is None:
            raise InvalidArgument("there are no pictures; videos and audio are not scored", field="image")
        return self._output(self._mix.score(image, prompt))

    def to(self, device: object) -> Self:
        """Nothing of ours lies on a device."""
        self.device = device
        return self

    def _output(self, rewards: Rewards) -> Output:
        raise NotImplementedError


class PointwiseReward(_Reward):
    """Rewards of single pictures; see the module for its configuration."""

    kind = "PointwiseRewardModel"

    def _output(self, rewards: Rewards) -> Output:
        return Output(np.asarray(rewards.total, np.float32), dict(rewards.components))


class GroupwiseReward(_Reward):
    """Rewards relative to the other pictures of the call, which Flow-Factory makes with one whole prompt group."""

    kind = "GroupwiseRewardModel"

    def _output(self, rewards: Rewards) -> Output:
        relative = normalised_within([0] * len(rewards.total), rewards.total)
        return Output(np.asarray(relative, np.float32), dict(rewards.components))
