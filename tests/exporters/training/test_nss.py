"""The statistics estimate what they say they do, for any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import gennorm

from critiq_exporters.training.golden import drawings
from critiq_exporters.training.nss import FEATURES, SceneStatistics


def _statistics(pixels: np.ndarray) -> torch.Tensor:
    return SceneStatistics()(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float())


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.0, 2.0, 4.0])
def test_the_shape_of_a_generalised_gaussian_is_recovered(shape: float) -> None:
    sample = gennorm.rvs(shape, size=400_000, random_state=3)
    ratio = torch.tensor(float((sample**2).mean() / np.abs(sample).mean() ** 2))
    assert float(SceneStatistics().shape(ratio).exp()) == pytest.approx(shape, rel=0.04)


def test_gaussian_noise_has_gaussian_statistics() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (192, 192, 1)).repeat(3, 2).round().astype(np.uint8)
    log_shape = float(_statistics(noise)[0, 10])  # after the colours
    assert np.exp(log_shape) > 2.0  # normalising by the local deviation cuts the tails of a Gaussian


def test_flat_and_extreme_pictures_stay_finite() -> None:
    for value in (0, 128, 255):
        found = _statistics(np.full((96, 96, 3), value, np.uint8))
        assert found.shape == (1, FEATURES)
        assert bool(found.isfinite().all())


def test_a_picture_has_the_same_statistics_in_any_batch() -> None:
    pictures = [item[:192, :192] for item in drawings()]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    together = SceneStatistics()(batch)
    alone = torch.cat([_statistics(item) for item in pictures])
    assert torch.allclose(together, alone, atol=1e-4)
