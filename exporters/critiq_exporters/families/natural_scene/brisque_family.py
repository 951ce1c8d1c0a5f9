"""BRISQUE as a model to serve: the authors' two files, one stage, the picture at its own size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import CheckpointError, fingerprint
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.natural_scene.brisque import Brisque
from critiq_exporters.families.natural_scene.libsvm import read_regression
from critiq_exporters.families.natural_scene.niqe_family import TOLERANCE
from critiq_server.bundles.manifest import Dimension, ImageInput, Licence, NativeView, Stage

VIEW = NativeView(shorter_min=32, longer_max=2048, multiple=2)
"""Even sides: an odd one loses its last line, so that halving is the same everywhere."""
MODEL, RANGES = "allmodel", "allrange"

CARD = Card(
    family="brisque",
    title="BRISQUE",
    judges="visual quality: distortions as people rated them in the LIVE data set",
    raw_range="about 0 to 100, not bounded",
    direction="lower is better",
    scope="absolute, within the data set that the regression was trained on",
    paper="Mittal et al., IEEE TIP 2012",
    code_licence="Apache-2.0, our own",
    weights="the authors' `allmodel` and `allrange` (libsvm; free with their notice)",
    memory="0.2 MB of parameters; on a CPU 0.3 GB for a megapixel, in double precision",
)


def load(
    checkpoint: Path,
    ranges: Annotated[
        Path | None, Doc("svm-scale's file of ranges; `allrange` beside the model where left out.")
    ] = None,
) -> Exportable:
    """BRISQUE from libsvm's model file (or the folder of `allmodel` and `allrange`): distortions (Mittal et al., 2012).

    Raises:
        CheckpointError: the files are not a libsvm regression on BRISQUE's 36 features and its ranges.
    """
    model = checkpoint / MODEL if checkpoint.is_dir() else checkpoint
    ranges = ranges or model.with_name(RANGES)
    for file, what in ((model, "libsvm's model"), (ranges, "svm-scale's ranges (see --ranges)")):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; BRISQUE needs {what}")
    stage = Stage(
        name="statistics",
        graph="statistics.onnx",
        inputs={"image": ImageInput(view=VIEW)},
        outputs=["distortion"],
        max_batch=4,
        no_value_for="pictures of one colour",
    )
    quality = Dimension(
        name="visual_quality",
        title="Visual quality (BRISQUE)",
        description="How distorted local contrast is, as people would rate it. Knows nothing of content or beauty.",
        stage="statistics",
        output="distortion",
        direction="lower_is_better",
        tolerance=TOLERANCE,
    )
    return Exportable(
        card=CARD,
        description="BRISQUE: a support vector regression on statistics of normalised luminance at two scales.",
        stages=(stage,),
        modules={"statistics": Brisque(read_regression(model, ranges)).eval()},
        dimensions=(quality,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=", ".join(f"{file.name} (SHA-256 {fingerprint(file)[:12]}…)" for file in (model, ranges)),
    )


FAMILY = Family(CARD, load)
