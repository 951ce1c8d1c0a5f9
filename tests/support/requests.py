"""Requests of the contract, and small pictures to put into them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from critiq.v1 import scoring_pb2


def flat(level: int = 51, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A file whose every pixel is the grey ``level``; the tests' bundle gives it brightness ``level`` / 255."""
    file = BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, kind)
    return file.getvalue()


def image(picture: bytes | scoring_pb2.RawImage) -> scoring_pb2.Image:
    if isinstance(picture, bytes):
        return scoring_pb2.Image(encoded=picture)
    return scoring_pb2.Image(raw=picture)


def raw(values: Any, *, chw: bool = False, **changes: Any) -> scoring_pb2.RawImage:
    """A raw tensor of a uint8 or float32 array; ``changes`` overwrite its fields."""
    array = np.asarray(values)
    kinds = scoring_pb2.RawImage
    message = kinds(
        data=array.tobytes(),
        shape=array.shape,
        dtype=kinds.DTYPE_FLOAT32 if array.dtype == np.float32 else kinds.DTYPE_UINT8,
        layout=kinds.LAYOUT_CHW if chw else kinds.LAYOUT_HWC,
    )
    for name, value in changes.items():
        if name == "shape":
            message.ClearField("shape")
            message.shape.extend(value)
        else:
            setattr(message, name, value)
    return message


def target(model: str = "", version: str = "", dimensions: Sequence[str] = ()) -> scoring_pb2.Target:
    return scoring_pb2.Target(model=model, version=version, dimensions=dimensions)


def score(picture: bytes | scoring_pb2.RawImage | None = None, prompt: str = "", **asked: Any) -> Any:
    source = image(flat() if picture is None else picture)
    return scoring_pb2.ScoreRequest(image=source, prompt=prompt, target=target(**asked))


def batch(requests: Sequence[Any], ids: Sequence[str] | None = None) -> Any:
    names = ids or [""] * len(requests)
    items = [scoring_pb2.ScoreItem(id=name, request=entry) for name, entry in zip(names, requests, strict=True)]
    return scoring_pb2.ScoreBatchRequest(items=items)


def rank(pictures: Sequence[bytes], prompt: str = "", top_k: int = 0, **asked: Any) -> Any:
    images = [image(picture) for picture in pictures]
    return scoring_pb2.RankRequest(images=images, prompt=prompt, top_k=top_k, target=target(**asked))


def compare(first: bytes, second: bytes, prompt: str = "", **asked: Any) -> Any:
    return scoring_pb2.CompareRequest(first=image(first), second=image(second), prompt=prompt, target=target(**asked))
