"""Pictures of the pristine populations are more typical than others."""

from __future__ import annotations

import numpy as np
import torch

from critiq_exporters.training.typicality import Typicality

LENGTH = 50


def _fitted() -> tuple[Typicality, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(LENGTH, LENGTH)) / np.sqrt(LENGTH)
    pristine = [rng.normal(size=(120, LENGTH)) @ mixing + centre for centre in (0.0, 0.2)]
    early = 1.4 * rng.normal(size=(200, LENGTH)) @ mixing + 0.9
    model = Typicality(LENGTH, len(pristine))
    model.fit(pristine, early, pristine[0] + rng.normal(0, 1.5, pristine[0].shape), early)
    fresh = rng.normal(size=(100, LENGTH)) @ mixing
    return model, fresh, 1.4 * rng.normal(size=(100, LENGTH)) @ mixing + 0.9


def _score(model: Typicality, values: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(values.astype(np.float32))))


def test_unseen_pristine_pictures_score_above_unseen_early_ones() -> None:
    model, pristine, early = _fitted()
    wins = _score(model, pristine)[:, None] > _score(model, early)[None]
    assert wins.mean() > 0.85


def test_far_away_is_less_typical_and_bounded() -> None:
    model, pristine, _ = _fitted()
    far = _score(model, pristine + 40.0)
    assert (far < _score(model, pristine).min()).all()
    assert np.isfinite(_score(model, pristine * 1e6)).all()


def test_noisy_copies_are_less_typical() -> None:
    model, pristine, _ = _fitted()
    noisy = pristine + np.random.default_rng(5).normal(0, 1.5, pristine.shape)
    assert (_score(model, pristine) > _score(model, noisy)).mean() > 0.85
