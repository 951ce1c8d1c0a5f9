"""What trainers hold as a batch of pictures -> what the client sends: uint8 pixels, never a lossy file.

Torch tensors are recognised by their methods: torch is never imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.errors import InvalidArgument
from critiq.images import ImageInput, is_array

TOLERANCE = 1 / 255
"""How far a float value may lie outside 0..1; the server's own."""


class Batch:
    """A batch by index. Each picture is converted when it is asked for: a batch may not fit twice into memory.

    Args:
        images: float ``[count, 3, height, width]`` 0..1 (any width, bfloat16 too), uint8 ``[count, height, width, 3]``,
            the other way round where only that fits, or a sequence of pictures: arrays with three axes, or anything
            else that :data:`critiq.images.ImageInput` allows. One channel (grey) instead of 3 will do.

    Raises:
        InvalidArgument: it is one picture, or nothing of the above.
    """

    def __init__(self, images: Any) -> None:
        if is_array(images):
            shape = tuple(images.shape)
            if len(shape) != 4:
                raise InvalidArgument(
                    f"an array of shape {list(shape)}; a batch has four axes, [count, channels, height, width] or "
                    "[count, height, width, channels]",
                    field="images",
                )
        elif not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise InvalidArgument(
                f"{type(images).__name__}, where an array with four axes or a list of pictures is due", field="images"
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ImageInput:
        """Raises :class:`~critiq.errors.InvalidArgument` if that picture is none, for instance if it holds NaN."""
        image = self._images[index]
        return _to_uint8(image) if is_array(image) else image


def _to_uint8(image: Any) -> NDArray[Any]:
    array = _as_numpy(image)
    if array.ndim != 3:
        raise InvalidArgument(f"an array of shape {list(array.shape)}; a picture has three axes", field="image")
    if array.dtype.kind == "f":
        array = _scaled(array)
    elif array.dtype != np.uint8:
        raise InvalidArgument(f"dtype {array.dtype}; pictures are float 0..1 or uint8 0..255", field="image")
    return array


def _as_numpy(image: Any) -> NDArray[Any]:
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        if "bfloat16" in str(image.dtype):  # NumPy has no such type
            image = image.float()
        array = np.asarray(image.numpy())
    else:
        array = np.asarray(image)
    if array.ndim == 3 and _channels_first(array):
        array = array.transpose(1, 2, 0)
    return array


def _channels_first(array: NDArray[Any]) -> bool:
    """Where both ends could be the channels, floats have them first and uint8 last, as trainers do."""
    first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if not first and not last:
        raise InvalidArgument(
            f"an array of shape {list(array.shape)}: neither the first nor the last axis has 1, 3 or 4 channels",
            field="image",
        )
    return array.dtype.kind == "f" if first and last else first


def _scaled(array: NDArray[Any]) -> NDArray[np.uint8]:
    """``round(255 * value)``, as the server would do it with four times the bytes."""
    low, high = float(array.min()), float(array.max())  # NaN if any value is
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        if math.isnan(low):
            raise InvalidArgument("it holds NaN; float pictures lie in 0..1", field="image")
        hint = "; send 0..255 as uint8" if high > 2 else "; clamp them first"
        raise InvalidArgument(f"values of {low:g}..{high:g}; float pictures lie in 0..1{hint}", field="image")
    scaled = np.multiply(array, 255, dtype=np.float32)
    np.rint(scaled, out=scaled)
    return np.ascontiguousarray(np.clip(scaled, 0, 255, out=scaled).astype(np.uint8))


def prompts_of(prompts: Any, count: int) -> list[str]:
    """One text for each picture; ``None`` means none has any.

    Raises:
        InvalidArgument: their number is not ``count``, or one is no text.
    """
    if prompts is None:
        return [""] * count
    if isinstance(prompts, str):
        raise InvalidArgument("one text, where a sequence of them is due, one for each picture", field="prompts")
    found = list(prompts)
    if len(found) != count:
        raise InvalidArgument(f"{len(found)} prompts for {count} pictures", field="prompts")
    for index, prompt in enumerate(found):
        if not isinstance(prompt, str):
            raise InvalidArgument(f"{type(prompt).__name__}, where text is due", field=f"prompts[{index}]")
    return [str(prompt) for prompt in found]
