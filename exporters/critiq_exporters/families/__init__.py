"""The model families that can be exported."""

from __future__ import annotations

from collections.abc import Mapping

from critiq_exporters.core.exportable import Family
from critiq_exporters.families.clip import clip_iqa, clipscore, hps, laion, pickscore
from critiq_exporters.families.cnn_iqa import family as cnn_iqa
from critiq_exporters.families.eliq import family as eliq
from critiq_exporters.families.imagereward import family as imagereward
from critiq_exporters.families.ma_agiqa import family as ma_agiqa
from critiq_exporters.families.maniqa import family as maniqa
from critiq_exporters.families.mint_iqa import family as mint_iqa
from critiq_exporters.families.natural_scene import brisque_family, ilniqe_family, niqe_family
from critiq_exporters.families.nima import family as nima

FAMILIES: Mapping[str, Family] = {
    family.card.family: family
    for family in (
        maniqa.FAMILY,
        ma_agiqa.FAMILY,
        mint_iqa.FAMILY,
        eliq.FAMILY,
        clipscore.FAMILY,
        pickscore.FAMILY,
        hps.FAMILY,
        imagereward.FAMILY,
        laion.FAMILY,
        clip_iqa.FAMILY,
        nima.FAMILY,
        cnn_iqa.FAMILY,
        niqe_family.FAMILY,
        ilniqe_family.FAMILY,
        brisque_family.FAMILY,
        # One line a family, in the order of the table in docs/models/families.md.
    )
}
