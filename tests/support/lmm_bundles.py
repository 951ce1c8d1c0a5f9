"""A bundle whose second dimension needs what a large multimodal model says, which nobody has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from critiq_server.bundles.lmm import GridProcessor, Lmm
from critiq_server.bundles.manifest import Fallback, ImageInput, Manifest, NativeView, Stage
from tests.support.bundles import edit_manifest, write_bundle

LMM = Lmm(
    backbone="qwen3-vl",
    model="nobody/has-it",
    revision="0" * 16,
    template="{image}{instruction}",
    feature="last_token",
    width=1,
    processor=GridProcessor(),
    instruction="look",
    text="Look.",
)


def write_with_an_lmm(root: Path, *, fallback: bool = True) -> None:
    """The bundle ``tiny``, whose head multiplies brightness by an LMM's feature that nobody has.

    ``fallback``: instead of ``wordiness`` brightness answers, degraded; else the features are missing.
    """
    directory = write_bundle(root)
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_text())
    asked = Stage(
        name="asked", runtime="lmm", lmm=LMM, inputs={"image": ImageInput(view=NativeView())}, outputs=["feature"]
    )
    stages: list[dict[str, Any]] = [stage.model_dump() for stage in (manifest.stage("image_encoder"), asked)]
    head = manifest.stage("head").model_dump()
    head["inputs"]["count"] = {"source": "stage", "stage": "asked", "output": "feature"}
    bright, wordy = (dimension.model_dump() for dimension in manifest.dimensions)
    wordy["needs_prompt"] = False
    if fallback:
        wordy["fallback"] = Fallback(stage="image_encoder", output="brightness").model_dump()
    (directory / "golden.npz").unlink()
    digests = {name: digest for name, digest in manifest.files.items() if name != "golden.npz"}
    edit_manifest(directory, stages=[*stages, head], dimensions=[bright, wordy], tokenizers={}, files=digests)
