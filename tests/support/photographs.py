"""Photographs from the data directory beside the checkout, and ways to spoil them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.fixtures.images import encoded

DATA = Path(__file__).parents[3] / "shared" / "data"


def photographs(name: str, count: int) -> list[tuple[Image.Image, dict[str, Any]]]:
    """The first pictures of a set with what is known of them; without the data the test is skipped, but fails in CI."""
    listing = DATA / name / "meta.jsonl"
    if not listing.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the pictures in ../shared/data/{name}")
        pytest.skip(f"the pictures in ../shared/data/{name} are not at hand")
    lines = [json.loads(line) for line in listing.read_text().splitlines()[:count]]
    return [(Image.open(DATA / name / line["file"]).convert("RGB"), line) for line in lines]


def blurred(image: Image.Image) -> bytes:
    return encoded(image.filter(ImageFilter.GaussianBlur(3)), "PNG")


def noisy(image: Image.Image) -> bytes:
    pixels = np.asarray(image, np.float32) + np.random.default_rng(3).normal(0, 30, (*image.size[::-1], 3))
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "PNG")


def compressed(image: Image.Image) -> bytes:
    return encoded(image, "JPEG", quality=6)


SPOILED = {"blurred": blurred, "noisy": noisy, "compressed": compressed}
