"""Pictures for the model card: contact sheets of the degradations, and what scores best and worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from critiq_exporters.training.degradations import LEVELS, Kind, Pixels, degrade, names
from critiq_exporters.training.sources import Source, read

_CELL = (126, 84)
_LABEL = 120


def contact_sheet(picture: Pixels, kind: Kind, path: Path) -> None:
    """One row a family: the clean picture and the five levels. JPEG."""
    families = names(kind)
    width = _LABEL + _CELL[0] * (1 + len(LEVELS))
    sheet = Image.new("RGB", (width, _CELL[1] * len(families)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, family in enumerate(families):
        top = row * _CELL[1]
        draw.text((4, top + _CELL[1] // 2 - 5), family.replace("_", " "), fill="black")
        cells = [picture, *(degrade(picture, family, level, np.random.default_rng(row)) for level in LEVELS)]
        for column, cell in enumerate(cells):
            # The middle at native size where detail matters, so that the sheet shows it.
            shown = Image.fromarray(cell)
            shown = _middle(shown) if kind == "technical" else shown.resize(_CELL, Image.Resampling.LANCZOS)
            sheet.paste(shown, (_LABEL + column * _CELL[0], top))
    sheet.save(path, "JPEG", quality=66, optimize=True)


def ranked_sheet(scored: list[tuple[float, Source]], path: Path, columns: int = 8, rows: int = 5) -> None:
    """The best pictures, a line, the worst ones, each with its score. PNG or JPEG by the name of ``path``."""
    side = 160
    ordered = sorted(scored, key=lambda item: -item[0])
    half = columns * rows
    shown = [*ordered[:half], *ordered[-half:]]
    sheet = Image.new("RGB", (columns * side, 2 * rows * side + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (score, source) in enumerate(shown):
        row, column = divmod(index, columns)
        top = row * side + (8 if row >= rows else 0)
        image = Image.fromarray(read(source))
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (column * side, top))
        draw.text((column * side + 3, top + 2), f"{score:.2f}", fill="red")
    sheet.save(path, quality=75)


def _middle(image: Image.Image) -> Image.Image:
    left, top = (image.width - _CELL[0]) // 2, (image.height - _CELL[1]) // 2
    return image.crop((left, top, left + _CELL[0], top + _CELL[1]))
