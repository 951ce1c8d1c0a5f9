"""Between ComfyUI's IMAGE (float ``[count, height, width, channels]``, 0..1) and what the client sends."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

MOST_BYTES = 48 * 2**20
"""Pixels of one call; beyond that they travel as PNG files. The client and the server take 64 MiB."""


def pictures_of(images: Any) -> list[Any]:
    """The single pictures as uint8 arrays ``[height, width, 3 or 1]``, or as PNG files where they are many.

    Rounded to 8 bits here, as the server would do, since that is a quarter of the bytes. NaN becomes black, values
    outside 0..1 are cut, and alpha is dropped, as ComfyUI does when it saves.

    Raises:
        ValueError: it is no IMAGE, or there is no picture in it.
    """
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape:
        raise ValueError(f"an IMAGE [count, height, width, channels] with pictures in it is due, not {list(shape)}")
    levels = (images[..., :3].detach().cpu().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().numpy()
    return [_png(picture) for picture in levels] if levels.nbytes > MOST_BYTES else list(levels)


def chosen(images: Any, places: Sequence[int]) -> Any:
    """The pictures at these places, in their order; where there are none, what skips the nodes behind this output."""
    if places:
        return images[list(places)]
    block = blocker()
    return images[:0] if block is None else block


def blocker() -> Any:
    """ComfyUI's way to skip the nodes behind an output; ``None`` where it is too old to have one."""
    try:
        from comfy_execution.graph_utils import ExecutionBlocker  # type: ignore[import-not-found]
    except ImportError:
        return None
    return ExecutionBlocker(None)


def interrupt(message: str) -> None:
    """Ends the run as the user's own Cancel does. Outside ComfyUI: ``RuntimeError``."""
    try:
        from comfy.model_management import InterruptProcessingException  # type: ignore[import-not-found]
    except ImportError:
        raise RuntimeError(message) from None
    raise InterruptProcessingException(message)


def _png(picture: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
