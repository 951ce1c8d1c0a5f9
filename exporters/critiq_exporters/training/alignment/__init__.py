"""The alignment part of the built-in model: how well a picture shows what its prompt says."""

from critiq_exporters.training.alignment.export import AlignmentParts, export
from critiq_exporters.training.alignment.training import train

__all__ = ["AlignmentParts", "export", "train"]
