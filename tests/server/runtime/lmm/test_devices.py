"""Which device, and what happens when its memory does not suffice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from critiq_server.runtime.lmm.devices import choose_device, in_halves
from critiq_server.runtime.lmm.folder import LmmUnavailable


@pytest.mark.parametrize("fits", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_computed_in_parts(fits: int) -> None:
    sizes: list[int] = []

    def compute(rows: Sequence[int]) -> NDArray[np.float32]:
        if len(rows) > fits:
            raise torch.cuda.OutOfMemoryError
        sizes.append(len(rows))
        return np.array([[row, 10 * row] for row in rows], np.float32)

    found = in_halves(compute, range(3, 10))
    assert found.tolist() == [[row, 10 * row] for row in range(3, 10)]
    assert max(sizes) <= fits


def test_a_picture_that_does_not_fit_alone_is_an_error() -> None:
    def compute(rows: Sequence[int]) -> NDArray[np.float32]:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        in_halves(compute, [1, 2])


def test_devices_are_named_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(LmmUnavailable, match=r"lmm\.device is 'gpu', which torch cannot use"):
        choose_device("gpu")
