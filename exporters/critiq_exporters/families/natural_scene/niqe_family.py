"""NIQE as a model to serve: published or fitted parameters, one stage, the picture at its own size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.natural_scene.niqe import BLOCK, FEATURES, CleanModel, Niqe
from critiq_exporters.families.natural_scene.parameters import check_covariance, pick, read_arrays
from critiq_exporters.families.natural_scene.statistics import Luma
from critiq_server.bundles.manifest import Dimension, ImageInput, Licence, NativeView, Stage

VIEW = NativeView(shorter_min=2 * BLOCK, longer_max=20 * BLOCK, multiple=BLOCK)
TOLERANCE = 1e-3

CARD = Card(
    family="niqe",
    title="NIQE",
    judges="naturalness: distance from the statistics of clean photographs",
    raw_range="0 and up; clean photographs about 2 to 5",
    direction="lower is better",
    scope="absolute, for one set of clean photographs",
    paper="Mittal et al., IEEE SPL 2013",
    code_licence="Apache-2.0, our own",
    weights="the authors' `modelparameters.mat` (free with their notice; also as `niqe_pris_params.npz`), or fitted",
    memory="14 kB of parameters; on a CPU 0.2 GB for a megapixel, in double precision",
)


def load(
    checkpoint: Path,
    luma: Annotated[
        Luma,
        Doc(
            "full: grey levels 0..255, as the authors; studio: the Y of 16..235 that image restoration reports NIQE on."
        ),
    ] = "full",
) -> Exportable:
    """NIQE from a file of parameters (.mat, .npz, .safetensors): naturalness of pictures (Mittal et al., 2013).

    Raises:
        CheckpointError: the file does not hold the mean and covariance of NIQE's 36 features.
    """
    stage = Stage(
        name="statistics",
        graph="statistics.onnx",
        inputs={"image": ImageInput(view=VIEW)},
        outputs=["distance"],
        max_batch=4,
        no_value_for="pictures with fewer than two blocks that have any texture",
    )
    naturalness = Dimension(
        name="naturalness",
        title="Naturalness (NIQE)",
        description="How far local contrast is from that of clean photographs. Knows nothing of content or beauty.",
        stage="statistics",
        output="distance",
        minimum=0.0,
        direction="lower_is_better",
        tolerance=TOLERANCE,
    )
    return Exportable(
        card=CARD,
        description="NIQE: Mahalanobis-like distance between a picture's block statistics and clean photographs'.",
        stages=(stage,),
        modules={"statistics": Niqe(read_clean_model(checkpoint), luma).eval()},
        dimensions=(naturalness,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"parameters {checkpoint.name}",
        options={"luma": luma},
    )


def read_clean_model(path: Path) -> CleanModel:
    """The clean photographs' Gaussian, by the authors' names, those of the NumPy file in use, or ours."""
    found = pick(
        read_arrays(path),
        {
            "mean": ("mu_prisparam", "mu_pris_param", "mean"),
            "covariance": ("cov_prisparam", "cov_pris_param", "covariance"),
        },
        {"mean": (FEATURES,), "covariance": (FEATURES, FEATURES)},
    )
    check_covariance(found["covariance"], "the covariance")
    return CleanModel(found["mean"], found["covariance"])


FAMILY = Family(CARD, load)
