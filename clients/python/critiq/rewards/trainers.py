"""The in-process signatures of trainers: flow_grpo, ddpo-pytorch and TRL's older ``reward_function``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from critiq.rewards.mix import Mix, Rewards
from critiq.rewards.terms import Terms

RewardFunction = Callable[..., tuple[list[float], dict[str, Any]]]
"""``fn(images, prompts, metadata) -> (scores, info)``."""


def factory(terms: Terms, **settings: Any) -> Callable[..., RewardFunction]:
    """For the tables of reward functions in flow_grpo and ddpo-pytorch: ``factory(...)(device)`` gives the function.

    ``info`` holds every component by its label, and ``errors``: one text a picture, empty where all went well. Metadata
    and further keywords (``only_strict``, ``ref_images``) are taken and not used.

    Args:
        terms, settings: of :class:`critiq.rewards.Mix`.
    """
    mix = Mix(terms, **settings)

    def make(device: object = None) -> RewardFunction:
        def reward(
            images: Any, prompts: Any = None, metadata: object = None, **unused: object
        ) -> tuple[list[float], dict[str, Any]]:
            rewards = mix.score(images, prompts)
            return rewards.total, _info(rewards)

        return reward

    return make


def multi_score(
    device: object, score_dict: Mapping[str, float], **settings: Any
) -> Callable[..., tuple[dict[str, list[float]], dict[str, Any]]]:
    """In place of ``flow_grpo.rewards.multi_score``: the function gives ``({name: scores, ..., "avg": scores}, info)``.

    Args:
        device: not used.
        score_dict: weights of dimensions (``dimension`` or ``model/dimension``).
        settings: of :class:`critiq.rewards.Mix`.
    """
    mix = Mix(score_dict, **settings)

    def reward(
        images: Any, prompts: Any = None, metadata: object = None, **unused: object
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        rewards = mix.score(images, prompts)
        return {**rewards.components, "avg": rewards.total}, {"errors": _errors(rewards)}

    return reward


def trl_reward(
    terms: Terms, *, asynchronous: bool = False, **settings: Any
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """TRL's ``reward_function(images, prompts, metadata) -> (rewards, metadata)`` (DDPOTrainer, TRL before 0.24).

    The rewards carry no gradient, so trainers that differentiate them (AlignProp) cannot use them.

    Args:
        asynchronous: for ``async_reward_computation``: the call returns at once, and both parts are futures.
        terms, settings: of :class:`critiq.rewards.Mix`.
    """
    mix = Mix(terms, **settings)
    threads = ThreadPoolExecutor(4, "critiq-rewards") if asynchronous else None

    def reward(images: Any, prompts: Any, metadata: Any = None) -> tuple[Any, Any]:
        if threads is None:
            rewards = mix.score(images, prompts)
            return rewards.total, _info(rewards)
        scored = threads.submit(mix.score, images, prompts)
        return _then(scored, lambda rewards: rewards.total), _then(scored, _info)

    return reward


def _then(scored: Future[Rewards], part: Callable[[Rewards], Any]) -> Future[Any]:
    """A future of a part of what another future gives."""
    result: Future[Any] = Future()

    def done(finished: Future[Rewards]) -> None:
        error = finished.exception()
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(part(finished.result()))

    scored.add_done_callback(done)
    return result


def _info(rewards: Rewards) -> dict[str, Any]:
    return {**rewards.components, "errors": _errors(rewards)}


def _errors(rewards: Rewards) -> list[str]:
    return [str(error) if error is not None else "" for error in rewards.errors]
