"""Pictures on which a model and people differ most, and the contact sheet that shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from critiq_evaluation.judging import Comparison, Point

SHOWN = 6
_SIDE = 240
_CAPTION = 46


@dataclass(frozen=True)
class Worst:
    """``overrated``: the model places them far above people; ``underrated``: far below. The worst come first."""

    overrated: tuple[Point, ...]
    underrated: tuple[Point, ...]


def worst_cases(entry: Comparison, shown: int = SHOWN) -> Worst:
    """By the difference of the ranks, which is defined without a curve; pictures that both place alike are left out."""
    ordered = sorted(entry.points, key=lambda point: point.score_rank - point.rating_rank)
    over = [point for point in reversed(ordered[-shown:]) if point.score_rank > point.rating_rank]
    under = [point for point in ordered[:shown] if point.score_rank < point.rating_rank]
    return Worst(tuple(over), tuple(under))


def caption(point: Point) -> tuple[str, str]:
    """Two short lines: where each of the two places the picture, 0 % worst to 100 % best."""
    return f"model {point.score_rank:.0%}  people {point.rating_rank:.0%}", f"{point.score:.4g} / {point.rating:.4g}"


def thumbnail(images: Path, name: str, side: int = _SIDE) -> Image.Image | None:
    """The picture, upright and at most ``side`` pixels on each side; ``None`` if it cannot be read."""
    try:
        with Image.open(images / name) as opened:
            opened.draft("RGB", (side * 2, side * 2))
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    upright.thumbnail((side, side))
    return upright


def data_uri(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def contact_sheet(entry: Comparison, images: Path) -> Image.Image | None:
    """Over-rated pictures above, under-rated ones below, each with its two ranks; ``None`` where there are none."""
    cases = worst_cases(entry)
    rows = [
        (f"{entry.title}: placed far above people's {entry.pair.rating}", cases.overrated),
        (f"{entry.title}: placed far below people's {entry.pair.rating}", cases.underrated),
    ]
    rows = [(title, points) for title, points in rows if points]
    if not rows:
        return None
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    height = _SIDE + _CAPTION + 34
    sheet = Image.new("RGB", (SHOWN * (_SIDE + 12) + 12, len(rows) * height + 12), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, points) in enumerate(rows):
        top = 12 + place * height
        draw.text((12, top), title, "black", font)
        _row(sheet, draw, points, images, top + 26, small)
    return sheet


def _row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    points: Sequence[Point],
    images: Path,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for place, point in enumerate(points):
        left = 12 + place * (_SIDE + 12)
        picture = thumbnail(images, point.image)
        if picture is None:
            draw.rectangle((left, top, left + _SIDE, top + _SIDE), outline="grey")
        else:
            sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        lines = (point.image[-36:], *caption(point))
        for line, text in enumerate(lines):
            draw.text((left, top + _SIDE + 2 + line * 14), text, "black", font)
