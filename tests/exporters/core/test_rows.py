"""Rows of one shape and of several: kept, taken and grouped; a stage computes them group by group."""

from __future__ import annotations

import numpy as np

from critiq_exporters.core.evaluate import Arrays, run_in_batches
from critiq_exporters.core.rows import alike, as_rows, take
from critiq_server.bundles.manifest import ImageInput, NativeView, Stage

SIZES = ((4, 6), (5, 5), (4, 6), (4, 6), (5, 5))


def test_rows_of_one_shape_are_an_ordinary_array() -> None:
    rows = as_rows([np.full((2, 3), number) for number in range(4)])
    assert rows.shape == (4, 2, 3)
    assert np.array_equal(take(rows, np.array([3, 0])), rows[[3, 0]])


def test_rows_of_several_shapes_are_grouped_by_shape_of_every_array() -> None:
    pixels = as_rows([np.zeros(size) for size in SIZES])
    assert len(pixels) == 5
    assert [group.tolist() for group in alike({"image": pixels})] == [[0, 2, 3], [1, 4]]
    other = as_rows([np.zeros(length) for length in (1, 1, 1, 2, 1)])
    assert [group.tolist() for group in alike({"image": pixels, "other": other})] == [[0, 2], [1, 4], [3]]
    assert take(pixels, np.array([1, 4])).shape == (2, 5, 5)


def test_a_stage_gets_batches_of_one_shape_and_its_outputs_keep_their_order() -> None:
    stage = Stage(
        name="sizes", graph="a.onnx", inputs={"image": ImageInput(view=NativeView())}, outputs=["area", "picture"]
    )
    batches = []

    def run(_: Stage, arrays: Arrays) -> Arrays:
        batches.append(arrays["image"].shape)
        return {"area": arrays["image"].sum((1, 2)), "picture": arrays["image"]}

    rows = as_rows([np.full(size, number + 1) for number, size in enumerate(SIZES)])
    found = run_in_batches(stage, run, {"image": rows}, 2)
    assert batches == [(2, 4, 6), (1, 4, 6), (2, 5, 5)]
    assert found["area"].tolist() == [24, 50, 72, 96, 125]
    assert [picture.shape for picture in found["picture"]] == list(SIZES)
