"""A policy-gradient loop with critiq as the reward: the shape of GRPO, small enough to read, NumPy alone.

    critiq serve
    python clients/python/examples/policy_gradient.py --url localhost:8001

The "generator" paints a landscape for each prompt and then spoils it as its policy says: a Gaussian over five knobs
(exposure, contrast, noise, haze, colour cast) for each prompt, started where pictures are dark, flat and noisy. Each
step draws a group of pictures for every prompt, asks the server for their rewards, and moves the policy along
``advantage * gradient of the log-probability``, where the advantage is the reward relative to its group. A trainer of a
real generator differs in the generator and the optimiser; what it asks of critiq is line for line the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from critiq.rewards import Mix, normalised_within

Floats = NDArray[np.float64]

PROMPTS = ("A lake below blue mountains at noon.", "Red hills in the evening sun.")
KNOBS = ("exposure", "contrast", "noise", "haze", "cast")
START = np.array([-0.9, -0.8, 1.0, 0.8, 0.8])
DEVIATION = 0.25
"""Of the policy; it stays as it is, only the means learn."""


@dataclass(frozen=True)
class Step:
    """``reward`` is the mean over all pictures of the step, before normalisation."""

    number: int
    reward: float
    components: dict[str, float]
    means: Floats
    """``[prompts, knobs]``"""


def landscape(seed: int, side: int) -> Floats:
    """Sky, sun, ridges and their texture: ``[side, side, 3]`` in 0..1."""
    random = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    top, horizon = random.uniform(0.2, 0.6, 3), random.uniform(0.6, 0.95, 3)
    picture = top + (horizon - top) * down[..., None]
    sun = np.exp(-((across - 0.7) ** 2 + (down - 0.3) ** 2) / 0.004)
    picture += sun[..., None] * (1 - picture)
    for ridge in range(4):
        waves = sum(np.sin(2 * np.pi * (2**octave * across + random.uniform())) / 2**octave for octave in range(1, 8))
        edge = 0.45 + 0.13 * ridge + 0.05 * waves
        grain = random.normal(0, 0.05, (side, side, 1)) * (ridge + 1) / 4
        colour = random.uniform(0.1, 0.5, 3) * (1.2 - 0.2 * ridge) + grain
        picture = np.where((down > edge)[..., None], colour, picture)
    return np.clip(picture, 0, 1)


def spoil(picture: Floats, knobs: Floats, random: np.random.Generator) -> Floats:
    """``picture`` with the knobs turned; at 0 nothing happens but for noise and haze, which are least at -infinity."""
    exposure, contrast, noise, haze, cast = knobs
    grey = picture.mean()
    seen = grey + (picture - grey) * np.exp(contrast)
    seen = seen * np.exp(exposure) * (1 + cast * np.array([0.25, 0.0, -0.25]))
    amount = 0.4 / (1 + np.exp(-2 * haze))
    seen = seen * (1 - amount) + 0.7 * amount
    seen = seen + random.normal(0, 0.15 / (1 + np.exp(-3 * noise)), picture.shape)
    return np.clip(seen, 0, 1)


def train(
    mix: Mix, *, steps: int = 40, group: int = 12, rate: float = 0.2, side: int = 256, seed: int = 0
) -> Iterator[Step]:
    """Gives every step after its update.

    Args:
        mix: the reward; it must not be normalised, as the learning curve shows the rewards themselves.
        steps: updates.
        group: pictures for each prompt in a step.
        rate: learning rate.
        side: pixels of a picture's sides.
        seed: of all that is random here; scores are the server's and do not vary.
    """
    random = np.random.default_rng(seed)
    scenes = [landscape(number, side) for number in range(len(PROMPTS))]
    means = np.tile(START, (len(PROMPTS), 1))
    for number in range(steps):
        drawn = means[:, None] + DEVIATION * random.normal(size=(len(PROMPTS), group, len(KNOBS)))
        pictures = [spoil(scene, knobs, random) for scene, row in zip(scenes, drawn, strict=True) for knobs in row]
        prompts = [prompt for prompt in PROMPTS for _ in range(group)]

        # What a trainer holds: float32 [count, 3, height, width] in 0..1.
        images = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)
        rewards = mix.score(images, prompts)
        advantages = np.reshape(normalised_within(prompts, rewards.total), (len(PROMPTS), group, 1))

        gradient = (advantages * (drawn - means[:, None]) / DEVIATION**2).mean(axis=1)
        means = means + rate * DEVIATION * gradient
        components = {name: float(np.mean(values)) for name, values in rewards.components.items()}
        yield Step(number, float(np.mean(rewards.total)), components, means)


def main() -> None:
    parser = argparse.ArgumentParser(description="A policy-gradient loop with critiq as the reward.")
    parser.add_argument("--url", default="localhost:8001", help="of the server; http://... for REST")
    parser.add_argument("--terms", default="visual_quality:1", help="what to reward, NAME:WEIGHT,...")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--group", type=int, default=12, help="pictures for each prompt in a step")
    arguments = parser.parse_args()
    for step in train(Mix(arguments.terms, url=arguments.url), steps=arguments.steps, group=arguments.group):
        components = "  ".join(f"{name} {value:.3f}" for name, value in step.components.items())
        knobs = "  ".join(f"{name} {value:+.2f}" for name, value in zip(KNOBS, step.means.mean(axis=0), strict=True))
        print(f"step {step.number:3d}  reward {step.reward:.3f}  ({components})  {knobs}", flush=True)


if __name__ == "__main__":
    main()
