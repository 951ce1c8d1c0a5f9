"""How much a picture looks like pictures that people made with care: distances to several pristine populations.

Sources: the multivariate Gaussian model of NIQE (Mittal et al., eq. 10) and IL-NIQE, carried from scene statistics to
deep features, with several populations instead of one; and, against pictures that are known to be worse, likelihood
ratios and linear discriminants. The worse ones are generations of early models, which ELIQ takes as aesthetic negatives
(section 3.2.3), and degraded copies. No human opinion enters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RANKS = (20, 40)
"""Principal directions that a distance uses: few see the coarse shape of the population, more its detail."""
RATIO_RANKS = (10, 30)
"""Principal directions of the Gaussians whose likelihoods are compared."""
SHRINKAGE = 0.05
RATIO_SHRINKAGE = 0.1
RIDGE = 100.0
"""Added to the (unit-variance) within-class covariance: with some hundred pictures, nearly the difference of means."""
LIMIT = 6.0

Matrix = NDArray[np.floating]


class Typicality(nn.Module):
    """One group of features, float32 ``[batch, length]``, to one number a picture, ``[batch]``; higher is more typical.

    The number is the mean of four standardised parts: distances to the pristine populations; likelihood ratios of good
    against worse pictures; a discriminant of good pictures against early generations, and one against all worse ones. A
    spread of 1 is that of AI-generated pictures. ``fit`` fills the buffers.
    """

    def __init__(self, length: int, populations: int) -> None:
        super().__init__()
        self.distances = populations * len(RANKS)
        self.ranks = [rank for _ in range(populations) for rank in RANKS] + [r for r in RATIO_RANKS for _ in range(2)]
        count = len(self.ranks)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("scale", torch.ones(length))
        self.register_buffer("centres", torch.zeros(count, max(RANKS)))
        self.register_buffer("directions", torch.zeros(length, count * max(RANKS)))
        self.register_buffer("volumes", torch.zeros(count))
        self.register_buffer("discriminants", torch.zeros(length, 2))
        self.register_buffer("part_mean", torch.zeros(self.distances + len(RATIO_RANKS) + 2))
        self.register_buffer("part_scale", torch.ones(self.distances + len(RATIO_RANKS) + 2))
        self.mean: Tensor
        self.scale: Tensor
        self.centres: Tensor
        self.directions: Tensor
        self.volumes: Tensor
        self.discriminants: Tensor
        self.part_mean: Tensor
        self.part_scale: Tensor

    def forward(self, features: Tensor) -> Tensor:
        parts = ((self._parts(features) - self.part_mean) / self.part_scale).clamp(-LIMIT, LIMIT)
        ratios = parts[:, self.distances : -2].mean(1)
        return 0.25 * (parts[:, : self.distances].mean(1) + ratios + parts[:, -2] + parts[:, -1])

    def _parts(self, features: Tensor) -> Tensor:
        """Distances (negative), likelihood ratios and discriminants, ``[batch, parts]``."""
        standard = (features - self.mean) / self.scale
        projected = (standard @ self.directions).reshape(-1, *self.centres.shape) - self.centres
        squares = (projected * projected).sum(2)
        ranks = torch.tensor(self.ranks[: self.distances], dtype=squares.dtype, device=squares.device)
        distances = (squares[:, : self.distances] / ranks + 1e-6).sqrt()
        likelihoods = -0.5 * (squares + self.volumes)[:, self.distances :]
        ratios = likelihoods[:, 0::2] - likelihoods[:, 1::2]
        ratios = ratios.sign() * (ratios.abs() + 1e-6).sqrt()
        return torch.cat([-distances, ratios, standard @ self.discriminants], 1)

    def fit(self, pristine: list[Matrix], early: Matrix, spoilt: Matrix, generated: Matrix) -> None:
        """Fits the parts.

        ``pristine``: features of each pristine population; ``early``: of early generations; ``spoilt``: of degraded
        copies; ``generated``: of the AI-generated pictures whose spread becomes the unit. Each ``[pictures, length]``.
        """
        everything = np.concatenate([*pristine, early]).astype(np.float64)
        mean, scale = everything.mean(0), everything.std(0) + 1e-3

        def standardised(values: Matrix) -> Matrix:
            result: Matrix = (values.astype(np.float64) - mean) / scale
            return result

        good, bad, worse = (standardised(item) for item in (np.concatenate(pristine), early, spoilt))
        worse = np.concatenate([bad, worse])
        gaussians = [_pristine_gaussian(standardised(item), rank) for item in pristine for rank in RANKS]
        common, _ = _principal(standardised(everything), max(RATIO_RANKS))
        for rank in RATIO_RANKS:
            gaussians += [_ratio_gaussian(item, common[:, :rank]) for item in (good, worse)]
        discriminants = np.stack([_discriminant(good, bad), _discriminant(good, worse)], 1)
        self._store(mean, scale, gaussians, discriminants)
        with torch.inference_mode():
            parts = self._parts(torch.from_numpy(generated.astype(np.float32)))
        self.part_mean.copy_(parts.mean(0))
        self.part_scale.copy_(parts.std(0) + 1e-6)

    def _store(
        self, mean: Matrix, scale: Matrix, gaussians: list[tuple[Matrix, Matrix, float]], discriminants: Matrix
    ) -> None:
        width = max(RANKS)
        directions = [np.pad(item, ((0, 0), (0, width - item.shape[1]))) for item, _, _ in gaussians]
        centres = [np.pad(item, (0, width - len(item))) for _, item, _ in gaussians]
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(scale))
        self.directions.copy_(torch.from_numpy(np.concatenate(directions, 1)))
        self.centres.copy_(torch.from_numpy(np.stack(centres)))
        self.volumes.copy_(torch.tensor([volume for _, _, volume in gaussians]))
        self.discriminants.copy_(torch.from_numpy(discriminants))


def _principal(values: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """At most ``rank`` directions of largest variance ``[length, rank]``, and the variances along them.

    Singular values of the centred pictures: there are fewer pictures than features, so that the covariance itself would
    be the larger matrix by far.
    """
    _, spread, directions = np.linalg.svd(values - values.mean(0), full_matrices=False)
    kept = min(rank, len(values) - 1)
    return directions[:kept].T, spread[:kept] ** 2 / (len(values) - 1)


def _pristine_gaussian(values: Matrix, rank: int) -> tuple[Matrix, Matrix, float]:
    """Whitening directions ``[length, rank]`` of the population's own largest variances, and its centre along them."""
    directions, variances = _principal(values, rank)
    floor = SHRINKAGE * values.var(0, ddof=1).mean()
    directions = directions / np.sqrt((1 - SHRINKAGE) * variances + floor)
    return directions, values.mean(0) @ directions, 0.0


def _ratio_gaussian(values: Matrix, subspace: Matrix) -> tuple[Matrix, Matrix, float]:
    """Whitening directions within ``subspace``, the centre along them, and the log determinant of the covariance."""
    projected = values @ subspace
    covariance = np.cov(projected.T)
    covariance = (1 - RATIO_SHRINKAGE) * covariance + RATIO_SHRINKAGE * np.diag(np.diag(covariance))
    variances, vectors = np.linalg.eigh(covariance)
    directions = subspace @ (vectors / np.sqrt(variances))
    return directions, values.mean(0) @ directions, float(np.log(variances).sum())


def _discriminant(good: Matrix, bad: Matrix) -> Matrix:
    """Fisher's direction with a ridge, ``[length]``."""
    within = 0.5 * (np.cov(good.T) + np.cov(bad.T)) + RIDGE * np.eye(good.shape[1])
    direction: Matrix = np.linalg.solve(within, good.mean(0) - bad.mean(0))
    return direction
