"""The policy-gradient example against live servers: the reward rises."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from critiq.rewards import Mix
from tests.support.bundles import write_bundle
from tests.support.servers import server_process

EXAMPLE = Path(__file__).parents[2] / "clients" / "python" / "examples" / "policy_gradient.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("policy_gradient", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_it_brightens_where_brightness_is_the_reward(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    arguments = [f"--models={tmp_path}", "--default=tiny", "--load=tiny"]
    with server_process(arguments, tmp_path / "log") as server:
        mix = Mix("brightness", url=server.grpc)
        steps = list(example().train(mix, steps=25, group=8, side=64))
        repeated = list(example().train(mix, steps=3, group=8, side=64))
    rewards = [step.reward for step in steps]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2
    assert (steps[-1].means[:, 0] > steps[0].means[:, 0]).all(), "the exposure rose for both prompts"
    assert [step.reward for step in repeated] == rewards[:3], "scores do not vary"


@pytest.mark.slow
def test_it_cleans_pictures_up_for_the_built_in_model(tmp_path: Path) -> None:
    with server_process([], tmp_path / "log") as server:
        command = [sys.executable, str(EXAMPLE), "--url", server.rest, "--steps=10", "--group=8"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    rewards = [float(line.split("reward ")[1].split()[0]) for line in lines]
    noise = [float(line.split("noise ")[1].split()[0]) for line in lines]
    assert np.mean(rewards[-3:]) > 2 * np.mean(rewards[:3])
    assert noise[-1] < noise[0] - 0.5
