"""IL-NIQE as a model to serve: published or fitted parameters, one stage, the picture squeezed to 524 x 524."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from typing_extensions import Doc

from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.natural_scene.ilniqe import FEATURES, SIDE, CleanModel, Ilniqe
from critiq_exporters.families.natural_scene.parameters import check_covariance, pick, read_arrays
from critiq_server.bundles.manifest import Dimension, ImageInput, Licence, ResizeView, Stage

TOLERANCE = 1e-2
_TEMPLATE = ("mean", "covariance", "centre", "axes")
"""The cells of the authors' file, in their order."""

CARD = Card(
    family="ilniqe",
    title="IL-NIQE",
    judges="naturalness of contrast, colour, gradients and textures, against clean photographs",
    raw_range="0 and up; clean photographs about 20",
    direction="lower is better",
    scope="absolute, for one set of clean photographs",
    paper="Zhang et al., IEEE TIP 2015",
    code_licence="Apache-2.0, our own",
    weights="the authors' `templateModel.mat` (check their terms), or fitted",
    memory="38 MB of parameters and filters; on a CPU 1.6 GB, in double precision",
)


def load(
    checkpoint: Path,
    side: Annotated[
        int, Doc("Pictures are squeezed to this many pixels a side, as when the clean model was fitted.")
    ] = SIDE,
) -> Exportable:
    """IL-NIQE from a file of parameters (.mat, .npz, .safetensors): naturalness of pictures (Zhang et al., 2015).

    Raises:
        CheckpointError: the file does not hold IL-NIQE's projection, mean and covariance.
        ValueError: ``side`` holds fewer than 2 x 2 blocks.
    """
    stage = Stage(
        name="statistics",
        graph="statistics.onnx",
        inputs={"image": ImageInput(view=view(side))},
        outputs=["distance"],
        max_batch=1,
        no_value_for="pictures with fewer than two blocks that have any texture",
    )
    naturalness = Dimension(
        name="naturalness",
        title="Naturalness (IL-NIQE)",
        description="How far contrast, colour and texture are from clean photographs'. Knows nothing of content.",
        stage="statistics",
        output="distance",
        minimum=0.0,
        direction="lower_is_better",
        tolerance=TOLERANCE,
    )
    return Exportable(
        card=CARD,
        description="IL-NIQE: the mean distance of a picture's blocks from clean photographs', over 468 statistics.",
        stages=(stage,),
        modules={"statistics": Ilniqe(read_clean_model(checkpoint), side).eval()},
        dimensions=(naturalness,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"parameters {checkpoint.name}",
        options={"side": side},
    )


def view(side: int) -> ResizeView:
    """The picture squeezed to a square, as the authors' code squeezes it: an antialiased cubic filter."""
    return ResizeView(height=side, width=side, filter="bicubic")


def read_clean_model(path: Path) -> CleanModel:
    """The clean photographs' model: the authors' cell array ``templateModel``, or arrays by our names."""
    arrays = read_arrays(path)
    if "templateModel" in arrays:
        cells = arrays["templateModel"].reshape(-1)
        if len(cells) != len(_TEMPLATE) or any(not isinstance(cell, np.ndarray) for cell in cells):
            raise CheckpointError(f"{path}: templateModel is not a cell array of {', '.join(_TEMPLATE)}")
        arrays = dict(zip(_TEMPLATE, cells, strict=True))
    names = {name: (name,) for name in _TEMPLATE}
    shapes = {"mean": (0,), "covariance": (0, 0), "centre": (FEATURES,), "axes": (FEATURES, 0)}
    found = pick(arrays, names, shapes)
    components = found["axes"].shape[1]
    # Again, now that the number of components is known.
    found = pick(found, names, {**shapes, "mean": (components,), "covariance": (components, components)})
    check_covariance(found["covariance"], "the covariance")
    return CleanModel(**found)


FAMILY = Family(CARD, load)
