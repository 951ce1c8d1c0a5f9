"""Which LMM a family's stages ask: read from its folder, or taken on trust from a name and a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from critiq_exporters.core.lmm_features import LmmFeatures
from critiq_server.bundles.lmm import Backbone, FloatFormat
from critiq_server.runtime.lmm.folder import LmmUnavailable, fingerprint
from critiq_server.runtime.lmm.instructions import BackboneName, standard_backbone
from critiq_server.runtime.lmm.pool import open_extractor


@dataclass(frozen=True)
class Asked:
    """The LMM, and its own features where it was loaded."""

    backbone: Backbone
    features: LmmFeatures | None


def ask_lmm(
    kind: BackboneName,
    width: int,
    *,
    folder: Path | None,
    name: str,
    revision: str,
    load: bool,
    dtype: FloatFormat | None = None,
    **processor: Any,
) -> Asked:
    """The LMM of a family's stages.

    Args:
        kind: of LMM.
        width: of the features that the family's heads were trained on.
        folder: where the LMM lies; its fingerprint becomes the revision.
        name: what bundle, settings and stores call it.
        revision: fingerprint, where there is no folder.
        load: whether to load it from ``folder``, so that its own features go into the golden records.
        dtype: to compute in, instead of the standard.
        processor: settings of the picture's processor that differ from the standard.

    Raises:
        ValueError: there is neither a folder nor a revision, or they disagree, or the LMM does not fit the heads.
    """
    if folder is None and not revision:
        raise ValueError(
            f"the bundle must say which {kind} its features come from: pass --lmm FOLDER, or --lmm-revision with the "
            "fingerprint that `critiq features build` and earlier exports report"
        )
    try:
        found = fingerprint(folder) if folder is not None else revision
        if revision and found != revision:
            raise ValueError(f"--lmm-revision is {revision[:12]}…, but {folder} has the fingerprint {found[:12]}…")
        backbone = standard_backbone(kind, name, found, width, dtype=dtype, **processor)
        if not load:
            return Asked(backbone, None)
        if folder is None:
            raise ValueError("--record-features needs --lmm FOLDER, to load the LMM from")
        return Asked(backbone, LmmFeatures(open_extractor(folder, backbone)))
    except LmmUnavailable as error:
        raise ValueError(str(error)) from error
