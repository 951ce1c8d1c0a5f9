"""The model families that can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from critiq_exporters.core.exportable import Card, Exportable
from critiq_exporters.families.maniqa import family as maniqa

CARDS: tuple[Card, ...] = (maniqa.CARD,)
LOADERS: Mapping[str, Callable[..., Exportable]] = {"maniqa": maniqa.load}
"""By family: makes the model from a checkpoint file and the family's own options (see each function)."""
