"""Degradations by kind; importing the package fills the registry."""

from critiq_exporters.training.degradations import aesthetic, generative, technical
from critiq_exporters.training.degradations.registry import (
    FAMILIES,
    LEVELS,
    Family,
    Kind,
    Pixels,
    degrade,
    names,
)

__all__ = ["FAMILIES", "LEVELS", "Family", "Kind", "Pixels", "aesthetic", "degrade", "generative", "names", "technical"]
