"""What results show in a notebook: the mixin of the result types, small copies of the caller's pictures, data frames.

Nothing here costs anything outside a notebook: thumbnails are made only there (or where :func:`show_thumbnails` says
so), pandas and Pillow are imported only when they are used.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from critiq.errors import CritiqError

if TYPE_CHECKING:
    import pandas
    from PIL import Image

SIDE = 128
"""Pixels of a thumbnail's longer side at the most."""
MOST = 64
"""Thumbnails of one call at the most: more would make a notebook's file heavy."""
BUDGET = 1.0
"""Seconds that one call may spend on thumbnails."""
MAX_PIXELS = 50_000_000
"""Larger pictures get no thumbnail."""

_asked: dict[str, bool | None] = {"thumbnails": None}

S = TypeVar("S", bound="Shown")
R = TypeVar("R", bound=Sequence[Any])
V = TypeVar("V")


def show_thumbnails(on: bool | None) -> None:
    """Whether results carry small copies (at most 128 pixels) of the pictures that they are about.

    ``None``, which is where it starts: in notebooks only. A copy is made of pictures that are at hand: paths, bytes,
    PIL images, arrays and tensors that were given directly, in a list, a tuple or one array; not of file objects,
    generators, URLs and streams. The pictures themselves are not kept.
    """
    _asked["thumbnails"] = on


def wanted() -> bool:
    """Whether thumbnails are to be made now."""
    asked = _asked["thumbnails"]
    if asked is not None:
        return asked
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


class Shown:
    """A result that a notebook shows as a table with bars, and that becomes a data frame or plain values."""

    __slots__ = ("_thumbnails",)
    _thumbnails: tuple[str, ...]

    def _repr_html_(self) -> str:
        from critiq._notebook_html import html

        return html(self)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, text and numbers, in the form of the REST answers."""
        return dict(plain(self))

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a data frame.

        A row for each dimension of a ``ScoreResult`` or ``CompareResult``, for each picture of a ``RankResult``, and
        one for an ``ItemResult``.

        Raises:
            ImportError: pandas is not installed.
        """
        return _frame(rows(self))


def frame(values: Sequence[Shown]) -> pandas.DataFrame:
    """One data frame of several results, a row each. Raises ``ImportError`` if pandas is not installed."""
    return _frame([row for value in values for row in rows(value)])


def rows(value: Any) -> list[dict[str, Any]]:
    """The rows of a result's data frame."""
    kind = type(value).__name__
    if kind == "ScoreResult":
        return [dataclasses.asdict(score) for score in value.scores]
    if kind == "ItemResult":
        return [{"id": value.id, **_wide(value.result.scores if value.result else ()), "error": _text(value.error)}]
    if kind == "RankResult":
        return [
            {
                "rank": entry.rank,
                "index": entry.index,
                **_wide([score for score in (entry.score, *entry.others) if score is not None]),
                "reason": entry.reason,
                "similar_to": entry.similar_to,
                "similarity": entry.similarity,
                "error": _text(entry.error),
            }
            for entry in value.ranking
        ]
    return [
        {
            "dimension": entry.dimension,
            "preference": entry.preference,
            **{
                f"{side}_{scale}": getattr(getattr(entry, side), scale)
                for side in ("first", "second")
                for scale in ("calibrated", "percentile", "raw")
            },
        }
        for entry in value.comparisons
    ]


def plain(value: Any) -> Any:
    """Dataclasses and errors as dictionaries, tuples as lists."""
    if isinstance(value, CritiqError):
        retry = None if value.retry_after is None else round(value.retry_after * 1000)
        return {"code": value.code, "message": value.message, "field": value.field, "retry_after_ms": retry}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def thumbnails_of(value: Shown) -> tuple[str, ...]:
    """Data URLs of its pictures, in the order of the request; an empty text for each that there is none of."""
    return getattr(value, "_thumbnails", ())


def attach(value: S, *pictures: Any) -> S:
    """``value`` with thumbnails of the pictures that it is about, if they are wanted."""
    if wanted():
        object.__setattr__(value, "_thumbnails", _made(pictures))
    return value


def attach_each(values: R, items: Any) -> R:
    """``values``, the results of a batch made of ``items``, with thumbnails if they are wanted."""
    if not wanted() or not _indexable(items):
        return values
    pictures = [_picture_of(items[at]) for at in range(min(len(values), MOST))]
    for value, thumbnail in zip(values, _made(pictures), strict=False):
        if value.result is not None:
            object.__setattr__(value.result, "_thumbnails", (thumbnail,))
    return values


def attach_all(value: S, pictures: Any) -> S:
    """As :func:`attach`, of a sequence or array of pictures."""
    if wanted() and _indexable(pictures):
        return attach(value, *[pictures[at] for at in range(min(len(pictures), MOST))])
    return value


async def in_thread(work: Callable[..., V], value: V, *pictures: Any) -> V:
    """``work(value, *pictures)`` off the event loop, if thumbnails are wanted at all."""
    return await asyncio.to_thread(work, value, *pictures) if wanted() else value


def _indexable(pictures: Any) -> bool:
    return isinstance(pictures, list | tuple) or len(getattr(pictures, "shape", ())) == 4


def _picture_of(item: Any) -> Any:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], str):
        return item[0]
    return getattr(item, "image", item) if type(item).__name__ == "Item" else item


def _made(pictures: Sequence[Any]) -> tuple[str, ...]:
    """A data URL for each picture; empty where there can be none, or the time is up."""
    until = time.monotonic() + BUDGET
    return tuple(_thumbnail(picture) if time.monotonic() < until else "" for picture in pictures[:MOST])


def _thumbnail(picture: Any) -> str:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return ""
    try:
        image = _opened(picture)
        if image is None or image.width * image.height > MAX_PIXELS:
            return ""
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size
        # A PIL image is the caller's: thumbnail() would shrink it.
        small = image.copy() if image is picture else image
        small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
        small = ImageOps.exif_transpose(small)
        if small.has_transparency_data:
            rgba = small.convert("RGBA")
            small = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        file = io.BytesIO()
        small.convert("RGB").save(file, "JPEG", quality=80)
    except Exception:  # a picture that cannot be shown must not lose its scores
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _opened(picture: Any) -> Image.Image | None:
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Image.open(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(picture))
    if hasattr(picture, "shape") and hasattr(picture, "__array__"):
        return _from_array(picture)
    return None


def _from_array(picture: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    from critiq.images import _channels_first, _is_tensor

    array = picture.detach().cpu() if _is_tensor(picture) else picture
    if array.ndim == 2:
        array = array[:, :, None]
    first = _channels_first(array.shape, prefer=_is_tensor(picture), field="")
    height, width = array.shape[1:] if first else array.shape[:2]
    step = max(1, max(height, width) // SIDE)  # a picture of the pixels that are needed, not of all
    array = array[:, ::step, ::step] if first else array[::step, ::step]
    values = np.asarray(array.float() if _is_tensor(picture) and "bfloat16" in str(array.dtype) else array)
    values = values.transpose(1, 2, 0) if first else values
    if values.dtype != np.uint8:
        values = (np.clip(np.nan_to_num(values.astype(np.float32)), 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else np.ascontiguousarray(values))


def _wide(scores: Sequence[Any]) -> dict[str, Any]:
    """Scores as columns: the calibrated value under the dimension's own name."""
    columns: dict[str, Any] = {}
    for score in scores:
        columns[score.dimension] = score.calibrated
        columns[f"{score.dimension}_percentile"] = score.percentile
        columns[f"{score.dimension}_raw"] = score.raw
    return columns


def _text(error: CritiqError | None) -> str:
    return "" if error is None else f"{error.code}: {error}"


def _frame(entries: list[dict[str, Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install pandas") from error
    return pandas.DataFrame(entries)
