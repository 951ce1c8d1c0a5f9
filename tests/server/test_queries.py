"""Which embedding a ranking compares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from critiq.errors import InvalidArgument
from critiq_server.queries import embedding_of
from critiq_server.runtime.base import TensorSpec


def served(stages: dict[str, dict[str, tuple[int, ...]]], read: list[str], lmms: tuple[str, ...] = ()) -> Any:
    """A model of these stages that see the picture; a dimension with a prompt reads those called ``read``."""
    made = {
        name: SimpleNamespace(
            spec=SimpleNamespace(name=name),
            lmm=object() if name in lmms else None,
            runtime=SimpleNamespace(outputs={key: TensorSpec("float32", shape) for key, shape in outputs.items()}),
        )
        for name, outputs in stages.items()
    }
    judgements = (
        {"alignment": SimpleNamespace(dimension=SimpleNamespace(needs_prompt=True, stage="head"))} if read else {}
    )
    model = SimpleNamespace(
        manifest=SimpleNamespace(name="model"),
        stages=made,
        vectors={
            name: tuple(key for key, shape in outputs.items() if len(shape) == 1) for name, outputs in stages.items()
        },
        judgements=judgements,
        plan=lambda names: SimpleNamespace(stages=[made[name] for name in (read if names else [])]),
    )
    return SimpleNamespace(model=model)


QUALITY: dict[str, tuple[int, ...]] = {"technical": (128,)}
CLIP: dict[str, tuple[int, ...]] = {"regions": (49, 256), "picture": (384,), "concept": (384,)}


@pytest.mark.parametrize(
    ("stages", "read", "lmms", "found"),
    [
        ({"quality": QUALITY, "clip": CLIP}, ["clip"], (), ("clip", "picture")),
        ({"quality": QUALITY, "clip": CLIP}, [], (), ("quality", "technical")),
        ({"lmm": {"feature": (64,)}, "clip": CLIP}, ["lmm"], ("lmm",), ("clip", "picture")),
        ({"lmm": {"feature": (64,)}}, ["lmm"], ("lmm",), ("lmm", "feature")),
        ({"score": {"rating": (1,)}, "clip": CLIP}, ["score"], (), ("clip", "picture")),
    ],
)
def test_the_default(stages: Any, read: list[str], lmms: tuple[str, ...], found: tuple[str, str]) -> None:
    assert embedding_of(served(stages, read, lmms), "") == found


def test_by_name() -> None:
    model = served({"quality": QUALITY, "clip": CLIP}, ["clip"])
    assert embedding_of(model, "quality") == ("quality", "technical")
    assert embedding_of(model, "clip/concept") == ("clip", "concept")
    for name in ("clip/regions", "head", "/technical"):
        with pytest.raises(InvalidArgument, match="it has quality/technical, clip/picture, clip/concept"):
            embedding_of(model, name)


def test_a_model_without_any() -> None:
    with pytest.raises(InvalidArgument, match="no stage that turns a picture into a vector") as caught:
        embedding_of(served({"network": {"quality": ()}}, []), "")
    assert caught.value.field == "diversity"
