from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw(path: Path, seed: int) -> None:
    """A picture of one of three sizes; the sizes alternate, so that batches must be put together."""
    size = [(64, 64), (96, 64), (64, 128)][seed % 3]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures with prompts beside them; two pairs are twins, one file is broken."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(58):
        path = root / f"{number % 4}" / f"{number:03}.png"
        draw(path, number)
        path.with_suffix(".txt").write_text(f"a picture of {number}\n")
    for number in (3, 40):
        twin = root / "twins" / f"{number}.png"
        twin.parent.mkdir(exist_ok=True)
        twin.write_bytes((root / f"{number % 4}" / f"{number:03}.png").read_bytes())
        twin.with_suffix(".txt").write_text(f"a picture of {number}\n")
    (root / "broken.png").write_bytes((root / "0" / "000.png").read_bytes()[:300])
    return root
