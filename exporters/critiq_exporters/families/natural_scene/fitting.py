"""Fits the clean models of NIQE and IL-NIQE on photographs, as their papers do: the sharp blocks of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from critiq_exporters.core.pictures import Pixels
from critiq_exporters.families.natural_scene import ilniqe, niqe
from critiq_exporters.families.natural_scene.ilniqe_family import view as ilniqe_view
from critiq_exporters.families.natural_scene.niqe_family import VIEW as NIQE_VIEW
from critiq_exporters.families.natural_scene.parameters import Array
from critiq_exporters.families.natural_scene.statistics import Luma
from critiq_server.bundles.manifest import View
from critiq_server.images.views import apply_view

_NIQE_SHARP, _ILNIQE_SHARP = 0.75, 0.78
"""Blocks sharper than this share of the picture's sharpest are used."""
_KEPT = 0.92
"""Share of the principal axes that IL-NIQE keeps."""

Say = Callable[[str], None]


def fit_niqe(pictures: Iterable[Pixels], luma: Luma = "full", say: Say = lambda line: None) -> niqe.CleanModel:
    """The mean and covariance of NIQE's features over clean pictures (uint8 ``[height, width, 3]``).

    Raises ``ValueError`` if the pictures have too few sharp blocks for a covariance of 36 features.
    """
    features = _sharp_features(niqe.NiqeFeatures(luma), NIQE_VIEW, pictures, _NIQE_SHARP, say)
    if len(features) <= niqe.FEATURES:
        raise ValueError(f"{len(features)} sharp blocks are too few for {niqe.FEATURES} features; fit on more pictures")
    return niqe.CleanModel(features.mean(axis=0), np.cov(features, rowvar=False))


def fit_ilniqe(pictures: Iterable[Pixels], side: int = ilniqe.SIDE, say: Say = lambda line: None) -> ilniqe.CleanModel:
    """The projection of IL-NIQE's features, and the mean and covariance behind it, over clean pictures.

    There are at most as many axes as 92 % of the blocks, or of the 468 features. Raises ``ValueError`` if the pictures
    have fewer than 26 sharp blocks.
    """
    features = _sharp_features(ilniqe.IlniqeFeatures(side), ilniqe_view(side), pictures, _ILNIQE_SHARP, say)
    axes_kept = int(min(features.shape) * _KEPT)
    if axes_kept > len(features) - 2:
        raise ValueError(f"{len(features)} sharp blocks are too few for a covariance; fit on more pictures")
    centre = features.mean(axis=0)
    axes = np.linalg.svd(features - centre, full_matrices=False)[2][:axes_kept].T
    projected = (features - centre) @ axes
    return ilniqe.CleanModel(
        projected.mean(axis=0), np.cov(projected, rowvar=False), centre, np.ascontiguousarray(axes)
    )


def _sharp_features(network: nn.Module, view: View, pictures: Iterable[Pixels], share: float, say: Say) -> Array:
    """Features of the sharp blocks of all pictures, ``[blocks, features]``."""
    kept = []
    for number, picture in enumerate(pictures):
        with torch.inference_mode():
            features, sharpness = network(torch.from_numpy(np.stack([apply_view(picture, view)])))
        finite = features[0].isfinite().all(dim=1)
        sharp = finite & (sharpness[0] > share * sharpness[0].where(finite, torch.zeros(())).max())
        kept.append(features[0][sharp].numpy())
        say(f"picture {number + 1}: {len(kept[-1])} of {len(finite)} blocks")
    if not kept:
        raise ValueError("there are no pictures to fit on")
    return np.concatenate(kept)
